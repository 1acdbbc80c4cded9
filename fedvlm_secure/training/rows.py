"""Which sample a row of a layer's input belongs to.

Per-sample gradients take the first dimension of each layer's input as the sample. In the text tower that is what it
is; in a vision tower it may count tiles or patches, and clipping those one by one would let a picture of n tiles move
the sum by n times what the privacy accounting assumes. What is known here is how each model family lays its pictures
out; :mod:`fedvlm_secure.training.soundness` refuses adapters in the vision part of any other.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

Batch = Mapping[str, torch.Tensor]
Owners = Callable[[Batch, str, int], torch.Tensor]

_TEXT = re.compile(r"(?:^|\.)(?:text_model|language_model|text_encoder|text_decoder|lm_head)(?:\.|$)")


def is_text(layer: str) -> bool:
    """Whether the layer of this name sees one row per sample: it is in the text tower or the head."""
    return _TEXT.search(layer) is not None


def owners(model: torch.nn.Module, layer: str, batch: Batch) -> torch.Tensor | None:
    """Which sample each row of the layer's input belongs to, int64 [rows]; None where rows are samples.

    Args:
        model: the base model, of a family in :data:`VISION_ROWS` or with ``layer`` in the text tower.
        layer: the module's name in it.
        batch: the model's inputs and ``labels`` [B, T].

    Raises:
        ValueError: the batch holds other than one picture a sample where that has to be so.
        KeyError: the batch has no pictures: features were computed beforehand, and the layer was not run.
    """
    if is_text(layer):
        return None
    config: Any = model.config
    merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)
    return VISION_ROWS[config.model_type](batch, layer, int(merge))


def _tiles(batch: Batch, layer: str, merge: int) -> torch.Tensor:
    """Idefics3 and SmolVLM: pictures [B, tiles, …], of which the model drops those that are zero everywhere."""
    pictures = batch["pixel_values"]
    real = (pictures != 0).flatten(2).any(dim=2)
    return real.nonzero()[:, 0]


def _pictures(batch: Batch, layer: str, merge: int) -> torch.Tensor:
    """LLaVA and PaliGemma: pictures [B, …]."""
    count = len(batch["pixel_values"])
    _one_each(count, batch)
    return torch.arange(count)


def _patches(batch: Batch, layer: str, merge: int) -> torch.Tensor:
    """Qwen2-VL: patches of all pictures one after the other; behind the merger, merge² patches are one row."""
    sizes = batch["image_grid_thw"].prod(dim=1)
    _one_each(len(sizes), batch)
    if ".merger.mlp." in f".{layer}.":
        sizes = sizes // merge**2
    return torch.arange(len(sizes)).repeat_interleave(sizes.cpu())


def _one_each(pictures: int, batch: Batch) -> None:
    if pictures != len(batch["labels"]):
        raise ValueError(f"{pictures} pictures for {len(batch['labels'])} rows; there has to be one a row")


VISION_ROWS: Mapping[str, Owners] = MappingProxyType(
    {"idefics3": _tiles, "smolvlm": _tiles, "llava": _pictures, "paligemma": _pictures, "qwen2_vl": _patches}
)
