"""Which question, answer and row an update was made from: gradient matching over candidates.

The server knows the base model and A, so it can compute the gradient that any row would give (iDLG, Zhao et al. 2020,
arXiv 2001.02610, reads a label off a gradient's sign; for outputs of several words one compares candidates instead, as
Gupta et al. 2022, arXiv 2205.08514, and Petrov et al. 2024, arXiv 2405.15586, do). It does not know the
picture: it tries each question and answer with a few public ones. A batch's gradient is a mean of its rows' gradients,
and so is a sum over hospitals: which candidates make it up is a non-negative least squares problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from attack.hospital import World
from fedvlm_secure.training import Split, answer_logits, sample_losses

_BATCH = 32


def row_gradients(world: World, split: Split) -> torch.Tensor:
    """Each row's gradient of its loss by every lora_B, float32 [rows, d] in the order of the shared vector."""
    parts = [_gradients(world, split, range(at, min(at + _BATCH, len(split)))) for at in range(0, len(split), _BATCH)]
    return torch.cat(parts)


def _gradients(world: World, split: Split, rows: Sequence[int]) -> torch.Tensor:
    """Per-row gradients from what enters each lora_B and what comes back to it (Goodfellow 2015, arXiv 1510.01799)."""
    entered: dict[str, torch.Tensor] = {}
    returned: dict[str, torch.Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            entered[name] = given[0].detach()
            out.register_hook(lambda gradient: returned.__setitem__(name, gradient))

        return world.adapter.peft_model.get_submodule(name).register_forward_hook(keep)

    names = [_module(name) for name in world.b_only.names]
    handles = [watch(name) for name in names]
    try:
        loss = sample_losses(*answer_logits(world.adapter.peft_model, split.batch(rows))).sum()
        torch.autograd.grad(loss, [world.adapter.parameters[name] for name in world.b_only.names])
    finally:
        for handle in handles:
            handle.remove()
    products = [torch.einsum("bto,btr->bor", returned[name], entered[name]) for name in names]
    return torch.cat([product.flatten(1) for product in products], dim=1)


def _module(name: str) -> str:
    """Where peft keeps the module of a canonical tensor name."""
    return f"base_model.model.{name.removesuffix('.weight')}.default"


def shaped(gradients: torch.Tensor, optimizer: str) -> torch.Tensor:
    """What one step of the optimizer makes of gradients [n, d], of length 1: AdamW's first step is their sign."""
    moved = gradients.sign() if optimizer == "adamw" else gradients
    return torch.nn.functional.normalize(moved, dim=1)


@dataclass(frozen=True)
class Dictionary:
    """Steps of every pair of question and answer with each public picture.

    Attributes:
        pairs: how many pairs there are; atoms come pair by pair.
        basis, weights: a QR decomposition of the atoms, [d, atoms] and [atoms, atoms].
    """

    pairs: int
    basis: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, gradients: torch.Tensor, pairs: int, optimizer: str) -> "Dictionary":
        """From gradients [pairs · pictures, d]."""
        basis, weights = torch.linalg.qr(shaped(gradients, optimizer).T)
        return cls(pairs, basis, weights)

    def guess(self, step: torch.Tensor, count: int) -> list[int]:
        """The ``count`` pairs that explain a step [d] best, the most likely one first."""
        share, _ = nnls(self.weights.double().numpy(), (self.basis.T @ step).double().numpy())
        return [int(pair) for pair in np.argsort(-share.reshape(self.pairs, -1).sum(axis=1), kind="stable")[:count]]

    def rest(self, steps: torch.Tensor) -> torch.Tensor:
        """What of steps [n, d] public rows do not explain."""
        return steps - (steps @ self.basis) @ self.basis.T


def which_row(dictionary: Dictionary, step: torch.Tensor, candidates: torch.Tensor, optimizer: str) -> int:
    """Which of the candidates' gradients [n, d] is in a step [d], by the cosine of what public rows do not explain."""
    own = torch.nn.functional.normalize(dictionary.rest(shaped(candidates, optimizer)), dim=1)
    return int((own @ dictionary.rest(step[None])[0]).argmax())


def dictionary_gradients(world: World, pictures: int, rng: np.random.Generator) -> torch.Tensor:
    """Gradients of all pairs with so many public pictures, [pairs · pictures, d]."""
    shown = [world.public[int(row)] for row in rng.choice(len(world.public), pictures, replace=False)]
    rows = [{**row, "question": question, "chosen": answer} for question, answer in world.pairs for row in shown]
    return row_gradients(world, world.encoded(rows))
