"""Compute once what no training changes: the frozen vision tower's view of each picture, or all below the last layer.

A layer that no adapter precedes says the same of a row in every step.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedvlm_secure.data.collate import EncodedSplit
from fedvlm_secure.training.answers import (
    FEATURES,
    IGNORED,
    LISTED_FEATURES,
    Split,
    accepts,
    answer_logits,
    bare,
    model_inputs,
)
from fedvlm_secure.training.context import ContextSplit, Top, top_of
from fedvlm_secure.training.evaluation import evaluating

_MOST_BYTES = 4 << 30  # a split that would take more stays as it is
_PICTURES = ("pixel_values", "pixel_attention_mask")
_GRID = "image_grid_thw"  # says of Qwen-VL's pictures how large they are; positions of text follow from it


@dataclass(frozen=True)
class FeatureSplit:
    """A split whose batches hold ``image_features`` in place of pictures.

    Attributes:
        split: the rows' text.
        features: [rows, image tokens, hidden], on the CPU, in the model's dtype.
        name: under which a batch holds them.
    """

    split: Split
    features: torch.Tensor
    name: str = FEATURES

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :class:`~fedvlm_secure.training.Split`."""
        batch = {name: tensor for name, tensor in self.split.batch(indices).items() if name not in _PICTURES}
        return batch | {self.name: self.features[torch.as_tensor(indices)]}


def precompute(model: torch.nn.Module, split: Split, batch_size: int = 128) -> Split:
    """``split`` with as much of the frozen model's work done as the adapter allows, where that gives the same answers.

    An adapter on the text tower's last layer only (and not on its keys and values) leaves that layer to be run, on the
    answers' tokens: :class:`~fedvlm_secure.training.context.ContextSplit`. Otherwise the pictures' features are
    computed: :func:`precompute_image_features`.
    """
    top = top_of(bare(model))
    if top is not None and len(split):
        context = _contexts(model, top, split, batch_size)
        if context is not None and _same_answers(model, split, context):
            return context
    return precompute_image_features(model, split, batch_size)


def _contexts(model: torch.nn.Module, top: Top, split: Split, batch_size: int) -> ContextSplit | None:
    """Run the whole model on every row and keep what arrives at its last layer."""
    base, parts = bare(model), []
    arrived: dict[str, Any] = {}

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arrived.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = top.layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with evaluating(model), torch.inference_mode():
            for start in range(0, len(split), batch_size):
                batch = split.batch(range(start, min(start + batch_size, len(split))))
                inputs = {name: tensor.to(next(base.parameters()).device) for name, tensor in batch.items()}
                labels = inputs.pop("labels")
                cache = base(**model_inputs(inputs), use_cache=True).past_key_values
                part = _context(labels, arrived, cache)
                if part is None or sum(t.nbytes for t in part) * len(split) > _MOST_BYTES * len(labels):
                    return None
                parts.append(part)
    finally:
        handle.remove()
    return ContextSplit(*(_joined(tensors) for tensors in zip(*parts, strict=True)))


def _context(labels: torch.Tensor, arrived: dict[str, Any], cache: Any) -> tuple[torch.Tensor, ...] | None:
    """A batch's tensors in :class:`ContextSplit`'s order; None where the model does not keep what is needed."""
    answered = labels[:, 1:] != IGNORED
    lengths = answered.sum(dim=1)
    first = answered.to(torch.int8).argmax(dim=1)
    embeddings, layers = arrived.get("position_embeddings"), getattr(cache, "layers", None)
    if not layers or embeddings is None or embeddings[0].ndim != 3 or not lengths.all():
        return None
    places = first[:, None] + torch.arange(int(lengths.max()), device=labels.device)
    inside = places < (first + lengths)[:, None]
    if not bool((answered.gather(1, places.clamp(max=answered.shape[1] - 1)) | ~inside).all()):
        return None  # an answer in several pieces
    places = places.clamp(max=answered.shape[1] - 1)
    targets = labels[:, 1:].gather(1, places).masked_fill(~inside, IGNORED)
    hidden = arrived["hidden"]
    cos, sin = (e.expand(len(hidden), -1, -1) for e in embeddings)
    keys, values = (t[:, :, : int(first.max())] for t in (layers[-1].keys, layers[-1].values))
    at = (torch.take_along_dim(t, places[..., None], dim=1) for t in (hidden, cos, sin))
    return tuple(t.cpu().clone() for t in (*at, keys, values, first, targets))


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parts below one another, filled up to the longest: answers in the second dimension, prompts in the third."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    along = 2 if parts[0].ndim == 4 else 1
    longest = max(part.shape[along] for part in parts)
    fill = IGNORED if parts[0].ndim == 2 else 0
    sized = []
    for part in parts:
        shape = list(part.shape)
        shape[along] = longest - shape[along]
        sized.append(torch.cat([part, part.new_full(shape, fill)], dim=along))
    return torch.cat(sized)


def _same_answers(model: torch.nn.Module, split: Split, cached: Split) -> bool:
    """Whether a trial batch gives the same logits."""
    trial = range(min(len(split), 8))
    with evaluating(model), torch.inference_mode():
        expected, targets = answer_logits(model, split.batch(trial))
        actual, seen = answer_logits(model, cached.batch(trial))
    real = targets != IGNORED
    return torch.equal(targets, seen) and torch.allclose(actual[real], expected[real], rtol=1e-3, atol=1e-4)


def precompute_image_features(model: torch.nn.Module, split: Split, batch_size: int = 128) -> Split:
    """``split`` with the frozen vision tower's output in place of pictures, where that gives the same answers.

    Where it cannot be done ``split`` itself comes back: the model takes no features, an adapter sits in the
    vision tower or the connector, pictures differ in their number of tiles, or the logits of a trial batch
    differ. Memory: rows x image tokens x hidden numbers.
    """
    base = bare(model)
    if len(split) == 0 or not (hasattr(base, "get_image_features") and accepts(base, "mm_encoder_outputs")):
        return split
    parts: list[torch.Tensor] = []
    with evaluating(model):
        for start in range(0, len(split), batch_size):
            features = _features(base, split.batch(range(start, min(start + batch_size, len(split)))))
            if features is None or (parts and features[0].shape[1:] != parts[0].shape[1:]):
                return split
            parts.append(features[0])
            name = features[1]
        cached = FeatureSplit(_without_pictures(split), torch.cat(parts), name)
    return cached if _same_answers(model, split, cached) else split


def _without_pictures(split: Split) -> Split:
    """Let go of the pictures where the split is known to hold them in memory: 50 KB a row at 64x64."""
    if not isinstance(split, EncodedSplit):
        return split
    return EncodedSplit({name: tensor for name, tensor in split.tensors.items() if name not in _PICTURES})


def _features(base: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, str] | None:
    """[B, image tokens, hidden] for the batch's pictures and the name under which the model takes them.

    None where there is no such tensor or it may be trained.
    """
    device = next(base.parameters()).device
    wanted = inspect.signature(base.get_image_features).parameters
    pictures = {name: batch[name].to(device) for name in (*_PICTURES, _GRID) if name in batch and name in wanted}
    if "pixel_values" not in pictures:
        return None
    with torch.enable_grad():
        pooled = base.get_image_features(**pictures).pooler_output
    rows = list(pooled)
    # A gradient would flow into the picture's features: an adapter sits there.
    if len(rows) != len(batch["labels"]) or any(row.requires_grad or row.shape != rows[0].shape for row in rows):
        return None
    return torch.stack(rows).cpu(), FEATURES if isinstance(pooled, torch.Tensor) else LISTED_FEATURES
