"""Gradients of one tensor, one for each row or privacy unit: their norms, and their weighted sum.

A linear layer's gradient for a row is a sum of outer products, one for each token. Where there are few tokens the
factors are far smaller than the products, and norm and sum follow from them (Goodfellow 2015, arXiv 1510.01799; Li et
al. 2021, arXiv 2110.05679): rank 64 on a layer that sees an answer's five tokens takes a tenth of the memory.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Dense:
    """Gradients as they are, [U, n]."""

    rows: torch.Tensor

    def norms(self) -> torch.Tensor:
        """L2 norms, float64 [U]; not finite where a gradient is not."""
        return torch.linalg.vector_norm(self.rows, dim=1).double()

    def sum(self, factors: torch.Tensor) -> torch.Tensor:
        """Σ factors[u] · gradient u, [n]; a gradient whose factor is zero is left out, whatever it holds."""
        kept = factors != 0
        rows = self.rows if kept.all() else self.rows[kept]
        return factors[kept].to(rows.dtype) @ rows

    def dense(self) -> torch.Tensor:
        """All gradients, [U, n]."""
        return self.rows

    def grouped(self, groups: torch.Tensor, count: int) -> "Dense":
        """Sums over rows of the same group; ``groups`` int64 [rows] is ascending and names all of 0 … count - 1."""
        if len(self.rows) == count:
            return self  # a row each, in order
        return Dense(self.rows.new_zeros(count, self.rows.shape[1]).index_add_(0, groups, self.rows))


@dataclass(frozen=True)
class Outer:
    """Gradients Σₜ outputs[u, t] · inputs[u, t]ᵀ of a weight [out, in]: inputs [U, T, in], outputs [U, T, out]."""

    inputs: torch.Tensor
    outputs: torch.Tensor

    def norms(self) -> torch.Tensor:
        """L2 norms, float64 [U]; not finite where a gradient is not."""
        # Products of tokens' gradients cancel where they point apart: in float32 little might be left of a small norm.
        inputs, outputs = self.inputs.double(), self.outputs.double()
        squares = (inputs @ inputs.transpose(1, 2)) * (outputs @ outputs.transpose(1, 2))
        return squares.sum(dim=(1, 2)).clamp(min=0).sqrt()

    def sum(self, factors: torch.Tensor) -> torch.Tensor:
        """Σ factors[u] · gradient u, [n]; a gradient whose factor is zero is left out, whatever it holds."""
        kept = factors != 0
        inputs, outputs = (self.inputs, self.outputs) if kept.all() else (self.inputs[kept], self.outputs[kept])
        scaled = outputs * factors[kept].to(outputs.dtype)[:, None, None]
        return (scaled.flatten(0, 1).T @ inputs.flatten(0, 1)).flatten()

    def dense(self) -> torch.Tensor:
        """All gradients, [U, n]."""
        return (self.outputs.transpose(1, 2) @ self.inputs).flatten(1)

    def grouped(self, groups: torch.Tensor, count: int) -> "Outer":
        """Sums over rows of the same group; ``groups`` int64 [rows] is ascending and names all of 0 … count - 1."""
        if len(self.inputs) == count:
            return self
        sizes = torch.bincount(groups, minlength=count)
        places = torch.arange(len(groups), device=groups.device) - (sizes.cumsum(0) - sizes)[groups]
        return Outer(*(_side_by_side(part, groups, places, sizes) for part in (self.inputs, self.outputs)))


def _side_by_side(part: torch.Tensor, groups: torch.Tensor, places: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """[rows, T, d] as [groups, most rows in a group x T, d], zero where a group has fewer rows."""
    result = part.new_zeros(len(sizes), int(sizes.max()), *part.shape[1:])
    result[groups, places] = part
    return result.flatten(1, 2)


UnitGradients = Dense | Outer


def gradients_of(inputs: torch.Tensor, outputs: torch.Tensor) -> Outer | None:
    """:class:`Outer` of a linear layer's activations and backpropagated gradients where that is the smaller way."""
    if inputs.ndim != 3:
        return None
    width, height = inputs.shape[2], outputs.shape[2]
    return Outer(inputs, outputs) if 2 * inputs.shape[1] * (width + height) <= width * height else None
