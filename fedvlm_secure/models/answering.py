"""Asks a model one question about one picture."""

from typing import Any

import torch
from PIL import Image

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models.loading import LoadedModel


@torch.no_grad()
def answer(
    model: LoadedModel | Any, processor: Any, image: Image.Image, question: str, max_new_tokens: int = 16
) -> str:
    """Return the model's answer, generated greedily.

    Args:
        model: a :class:`LoadedModel`, or a Hugging Face or PEFT model.
        processor: its processor; None takes the one of the LoadedModel.
        image: any mode and size; converted to RGB and resized by the processor.

    Raises:
        MisuseError: the question is empty, or there is no processor.
    """
    if not question.strip():
        raise MisuseError("the question is empty")
    if isinstance(model, LoadedModel):
        model, processor = model.model, processor or model.processor
    if processor is None:
        raise MisuseError("a processor is needed to ask a model that was not loaded by fedvlm_secure.models.load")
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.strip()}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[image.convert("RGB")]], return_tensors="pt").to(model.device)
    training = model.training
    model.eval()
    try:
        said = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    finally:
        model.train(training)
    return str(processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
