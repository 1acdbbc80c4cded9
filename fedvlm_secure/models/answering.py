"""Asks a model one question about one picture."""

from typing import Any

import torch
from PIL import Image

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models.loading import LoadedModel
from fedvlm_secure.models.plain import Decoded, Suffixed

# Some checkpoints come with other habits, under which a model would not say what evaluation counts as its answer.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@torch.no_grad()
def answer(
    model: LoadedModel | Any, processor: Any, image: Image.Image, question: str, max_new_tokens: int = 16
) -> str:
    """Return the model's answer, generated greedily.

    Args:
        model: a :class:`LoadedModel`, or a Hugging Face or PEFT model.
        processor: the one of its LoadedModel, or any with a chat template; None takes that of ``model``.
        image: any mode and size; converted to RGB and resized by the processor.

    Raises:
        MisuseError: the question is empty, or there is no processor or it cannot ask.
    """
    if not question.strip():
        raise MisuseError("the question is empty")
    if isinstance(model, LoadedModel):
        model, processor = model.model, processor or model.processor
    if processor is None:
        raise MisuseError("a processor is needed to ask a model that was not loaded by fedvlm_secure.models.load")
    asked, said_before = _asked(processor, image.convert("RGB"), question.strip())
    inputs = {name: tensor.to(model.device) for name, tensor in asked.items()}
    training = model.training
    model.eval()
    try:
        said = model.generate(**inputs, **_GREEDY, max_new_tokens=max_new_tokens)
    finally:
        model.train(training)
    return str(processor.tokenizer.decode(said[0, said_before:], skip_special_tokens=True)).strip()


def _asked(processor: Any, image: Image.Image, question: str) -> tuple[dict[str, torch.Tensor], int]:
    """What ``generate`` takes, and how many tokens of what it returns come before the answer."""
    if isinstance(processor, Suffixed | Decoded):
        return processor.asked(image, question)
    if not getattr(processor, "chat_template", None):
        raise MisuseError("this processor has no chat template; use the processor of fedvlm_secure.models.load")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = dict(processor(text=[text], images=[[image]], return_tensors="pt"))
    return inputs, inputs["input_ids"].shape[1]
