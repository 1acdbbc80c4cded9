"""Look at each picture once: the vision tower is frozen, so what it says about a picture never changes."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedvlm_secure.data.collate import EncodedSplit
from fedvlm_secure.training.answers import FEATURES, Split, accepts, answer_logits, bare
from fedvlm_secure.training.evaluation import evaluating

_PICTURES = ("pixel_values", "pixel_attention_mask")


@dataclass(frozen=True)
class FeatureSplit:
    """A split whose batches hold ``image_features`` in place of pictures.

    Attributes:
        split: the rows' text.
        features: [rows, image tokens, hidden], on the CPU, in the model's dtype.
    """

    split: Split
    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :class:`~fedvlm_secure.training.Split`."""
        batch = {name: tensor for name, tensor in self.split.batch(indices).items() if name not in _PICTURES}
        return batch | {FEATURES: self.features[torch.as_tensor(indices)]}


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
            if features is None or (parts and features.shape[1:] != parts[0].shape[1:]):
                return split
            parts.append(features)
        cached = FeatureSplit(_without_pictures(split), torch.cat(parts))
        trial = range(min(len(split), 8))
        with torch.inference_mode():
            expected, _ = answer_logits(model, split.batch(trial))
            actual, _ = answer_logits(model, cached.batch(trial))
    return cached if torch.allclose(actual, expected, rtol=1e-3, atol=1e-4) else split


def _without_pictures(split: Split) -> Split:
    """Let go of the pictures where the split is known to hold them in memory: 50 KB a row at 64x64."""
    if not isinstance(split, EncodedSplit):
        return split
    return EncodedSplit({name: tensor for name, tensor in split.tensors.items() if name not in _PICTURES})


def _features(base: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """[B, image tokens, hidden] for the batch's pictures; None where there is no such tensor or it may be trained."""
    device = next(base.parameters()).device
    wanted = inspect.signature(base.get_image_features).parameters
    pictures = {name: batch[name].to(device) for name in _PICTURES if name in batch and name in wanted}
    if "pixel_values" not in pictures:
        return None
    with torch.enable_grad():
        pooled = base.get_image_features(**pictures).pooler_output
    rows = list(pooled)
    # A gradient would flow into the picture's features: an adapter sits there.
    if len(rows) != len(batch["labels"]) or any(row.requires_grad or row.shape != rows[0].shape for row in rows):
        return None
    return torch.stack(rows).cpu()
