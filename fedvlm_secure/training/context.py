"""Rows as they arrive at the text tower's last layer, for adapters that sit nowhere else.

All below the last layer is frozen, and so are its keys and values of the prompt if the adapter leaves ``k_proj`` and
``v_proj`` alone: they are computed once. What is left of a step is that one layer on the answer's few tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

IGNORED = -100
HIDDEN = "context_hidden"


@dataclass(frozen=True)
class ContextSplit:
    """A split whose batches go to :func:`continue_from`; all tensors on the CPU.

    Attributes:
        hidden: [rows, K, hidden size], what the last layer is given at the positions that predict the answer.
        cos, sin: [rows, K, head size], rotary embeddings there.
        keys, values: [rows, key heads, P, head size], the last layer's for the prompt before those positions.
        lengths: int64 [rows], how many of the P positions are the row's own.
        targets: int64 [rows, K], the answer's tokens, filled up with −100.
    """

    hidden: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :class:`~fedvlm_secure.training.Split`: the rows, cut to the longest prompt and answer among them."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        lengths, targets = self.lengths[rows], self.targets[rows]
        prompt = int(lengths.max()) if len(rows) else 0
        answer = int((targets != IGNORED).sum(dim=1).max()) if len(rows) else 0
        return {
            HIDDEN: self.hidden[rows, :answer],
            "context_cos": self.cos[rows, :answer],
            "context_sin": self.sin[rows, :answer],
            "context_keys": self.keys[rows, :, :prompt],
            "context_values": self.values[rows, :, :prompt],
            "context_lengths": lengths,
            "labels": targets[:, :answer],
        }


@dataclass(frozen=True)
class Top:
    """The part of a model that is still run: the text tower's last layer, its final norm, the output embedding."""

    layer: torch.nn.Module
    norm: torch.nn.Module
    head: torch.nn.Module


def top_of(base: Any) -> Top | None:
    """The last layer of the one tower in which adapters sit; None where they sit elsewhere too, or change its keys."""
    adapted = {name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, tower in base.named_modules():
        layers, norm = getattr(tower, "layers", None), getattr(tower, "norm", None)
        if not isinstance(layers, torch.nn.ModuleList) or not isinstance(norm, torch.nn.Module) or not len(layers):
            continue
        last = f"{name}.layers.{len(layers) - 1}."
        inside = {adapter for adapter in adapted if adapter.startswith(last)}
        if inside and inside == adapted and not any(a.endswith((".k_proj", ".v_proj")) for a in adapted):
            return Top(layers[-1], norm, base.get_output_embeddings())
    return None


def continue_from(base: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets as of :func:`~fedvlm_secure.training.answer_logits`, from a batch of :class:`ContextSplit`."""
    top = top_of(base)
    assert top is not None  # since the split was made for this adapter
    hidden, lengths = batch[HIDDEN], batch["context_lengths"]
    prompt, answer = batch["context_keys"].shape[2], hidden.shape[1]
    before = torch.arange(prompt, device=hidden.device) < lengths[:, None, None]
    own = torch.ones(answer, answer, dtype=torch.bool, device=hidden.device).tril()
    seen = torch.cat([before.expand(-1, answer, -1), own.expand(len(hidden), -1, -1)], dim=2)[:, None]
    mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
    mask.masked_fill_(~seen, torch.finfo(hidden.dtype).min)
    out = top.layer(
        hidden,
        attention_mask=mask,
        position_ids=None,
        past_key_values=_Prompt(batch["context_keys"], batch["context_values"]),
        position_embeddings=(batch["context_cos"], batch["context_sin"]),
    )
    return top.head(top.norm(out[0] if isinstance(out, tuple) else out)), batch["labels"]


class _Prompt:
    """What an attention layer asks of a cache: the keys and values so far, this step's behind them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self._keys, keys], dim=2), torch.cat([self._values, values], dim=2)
