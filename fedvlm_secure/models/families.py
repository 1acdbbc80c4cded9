"""The families of vision-language models, and all that differs between them: one entry each in :data:`FAMILIES`.

A family says which class loads it, where its language side is and which projections there LoRA goes to, and how a row
becomes tensors, which settles how labels are masked and how an answer is generated:

- in a chat: by the processor's chat template; labels are the answer and its end of turn, as
  :mod:`fedvlm_secure.data.collate` finds them; the answer is what follows the template's generation prompt;
- :class:`~fedvlm_secure.models.plain.Suffixed`: the bare question, then the answer, in one sequence;
- :class:`~fedvlm_secure.models.plain.Decoded`: the bare question in an encoder, the answer in a decoder.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Idefics3Processor

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models import lite0  # noqa: F401 - makes its tower known to AutoConfig and AutoModel
from fedvlm_secure.models.library import BlipForAnswers, QwenVLPictureProcessor
from fedvlm_secure.models.plain import Decoded, Suffixed

Rows = Callable[[Any, Any], Any]
_LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def chat(processor: Any, config: Any) -> Any:
    """The processor as it is, if it can ask.

    Raises:
        MisuseError: it has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise MisuseError("it has no chat template: it cannot be asked questions")
    return processor


def _suffixed(processor: Any, config: Any) -> Suffixed:
    return Suffixed(processor)


def _florence(processor: Any, config: Any) -> Decoded:
    tokenizer = processor.tokenizer
    start = (config.text_config.decoder_start_token_id, tokenizer.bos_token_id)
    return Decoded(processor, start, tokenizer.eos_token_id, config.text_config.max_position_embeddings)


def _blip(processor: Any, config: Any) -> Decoded:
    text = config.text_config
    return Decoded(processor, (text.bos_token_id,), text.sep_token_id, text.max_position_embeddings)


@dataclass(frozen=True)
class Family:
    """What is particular to a family of models.

    Attributes:
        name: as people know it.
        types: the ``model_type`` of its configurations.
        tower: regular expression for where in a module's full name the language side begins. Naming the projections
            alone would also hit vision towers.
        projections: the linear modules in it that LoRA goes to.
        top: as ``tower``, for the part whose layers ``adapter.layers`` counts.
        stack: what the list of layers is called.
        model, processor: what loads it, by ``from_pretrained``.
        rows: makes of processor and configuration what :func:`fedvlm_secure.data.encode` and
            :func:`fedvlm_secure.models.answer` take.
    """

    name: str
    types: tuple[str, ...]
    tower: str = "text_model|language_model"
    projections: tuple[str, ...] = _LLAMA_LIKE
    top: str = "text_model|language_model"
    stack: str = "layers"
    model: Any = AutoModelForImageTextToText
    processor: Any = AutoProcessor
    rows: Rows = chat


FAMILIES = (
    # SmolVLM's own processor needs torchvision and num2words, for videos; with pictures Idefics3's does the same.
    Family("SmolVLM/Idefics3", ("smolvlm", "idefics3"), processor=Idefics3Processor),
    Family("Qwen2-VL/Qwen2.5-VL", ("qwen2_vl", "qwen2_5_vl"), processor=QwenVLPictureProcessor),
    Family("LLaVA", ("llava",)),
    Family("PaliGemma", ("paligemma",), rows=_suffixed),
    Family(
        "Florence-2",
        ("florence2",),
        tower="language_model",
        projections=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        top=r"language_model\.decoder",
        rows=_florence,
    ),
    Family(
        "BLIP-VQA",
        ("blip",),
        tower=r"text_encoder\.encoder|text_decoder\.bert\.encoder",
        projections=("query", "key", "value", "dense"),
        top=r"text_decoder\.bert\.encoder",
        stack="layer",
        model=BlipForAnswers,
        rows=_blip,
    ),
)
# Any other model that is asked in a chat and whose text tower looks like Llama's.
OTHER = Family("other", ())


def family_of(config: Any) -> Family:
    """The family of a model with this configuration; :data:`OTHER` if it is none of :data:`FAMILIES`."""
    return next((family for family in FAMILIES if config.model_type in family.types), OTHER)


def known() -> str:
    """The families' names, for people."""
    return ", ".join(family.name for family in FAMILIES)


def lora_targets(model: torch.nn.Module, layers: int | None = None, modules: Sequence[str] = ()) -> str:
    """Return a regular expression for projections of the language side, checked against the model.

    Args:
        layers: only those of the last so many layers, of the decoder if there is an encoder too; None is all.
        modules: which of the family's projections, by name (``"q_proj"``); empty is all.

    Raises:
        MisuseError: it would match nothing, or a module or so many layers are not there.
    """
    family = family_of(model.config)
    start, projections = rf"(?:.*\.)?(?:{family.tower})\.(?:.*\.)?", "|".join(modules or family.projections)
    pattern = rf"{start}(?:{projections})"
    matched = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    if not matched and not modules:
        raise MisuseError(
            f"this model's text tower has none of {', '.join(family.projections)}, where LoRA goes; "
            f"families known are {known()}"
        )
    if missing := [module for module in modules if not any(name.endswith(f".{module}") for name in matched)]:
        choices = ", ".join(family.projections)
        raise MisuseError(f"adapter.modules: this model's text tower has no {missing[0]!r}; {choices}")
    if layers is None:
        return pattern
    start = rf"(?:.*\.)?(?:{family.top})\.(?:.*\.)?"
    place = re.compile(rf"{start}{family.stack}\.(\d+)\.")
    numbers = sorted({int(found[1]) for name in matched if (found := place.match(name))})
    if layers > len(numbers):
        raise MisuseError(f"adapter.layers is {layers}; this model's text tower has {len(numbers)} layers")
    chosen = "|".join(str(number) for number in numbers[-layers:])
    return rf"{start}{family.stack}\.(?:{chosen})\.(?:.*\.)?(?:{projections})"
