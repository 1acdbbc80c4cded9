"""Canaries in DP-SGD: units that are no rows of anybody, put where the training asks for a unit's gradient.

They look like rows to who draws them; their gradient is one coordinate axis. It is never written out, so that thousands
of them cost next to nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.training import Split, private
from fedvlm_secure.training.unit_gradients import UnitGradients

Rows = NDArray[np.int64]

LENGTH = 10.0  # a canary's gradient before clipping, in clip norms
_PLACE = "_unit_gradients"


@dataclass(slots=True)
class Canaries:
    """Units that are no rows of anybody, and the coins that decided which of them join.

    Attributes:
        coordinates: int64 [m], all different: the axis that each one's gradient lies on.
        included: bool [m].
        first: the number of the first row that is a canary's; those that join follow each other.
        rows: how many each one has.
        length: L2 norm of a canary's gradient before clipping.
        seen: how many canaries' gradients were asked for, counted once per step.
    """

    coordinates: Rows
    included: NDArray[np.bool_]
    first: int
    rows: int
    length: float = LENGTH
    seen: int = field(default=0)

    @classmethod
    def scattered(cls, count: int, trainable: int, *, first: int, rows: int = 1, clip_norm: float = 1.0) -> "Canaries":
        """``count`` canaries of ``rows`` rows each on random axes among ``trainable``.

        Raises:
            MisuseError: there are fewer axes than canaries.
        """
        if count > trainable:
            raise MisuseError(f"{count} canaries do not fit into an adapter of {trainable} numbers")
        source = NoiseSource()
        axes = np.argsort(source.normal(trainable))[:count]
        return cls(axes.astype(np.int64), source.bernoulli(0.5, count), first, rows, LENGTH * clip_norm)

    def without(self) -> "Canaries":
        """The same canaries, none of which joins."""
        return Canaries(self.coordinates, np.zeros_like(self.included), self.first, self.rows, self.length)

    @property
    def joined(self) -> int:
        """How many rows they add to the data."""
        return self.rows * int(np.count_nonzero(self.included))

    def axes(self, units: Sequence[Rows]) -> Rows:
        """The axes of those who joined with these rows: int64 [units]."""
        self.seen += len(units)
        return self.coordinates[self.included][[(int(rows[0]) - self.first) // self.rows for rows in units]]


@dataclass(frozen=True, slots=True)
class _Mixed:
    """One tensor's gradients of a batch of units, as :mod:`fedvlm_secure.training.unit_gradients` has them.

    Attributes:
        like: a tensor of the shape and kind of one gradient, [n].
        units: how many there are, U.
        rows: those of the units ``real``, as the training made them; None if there are none.
        own, places: the units whose canary lies in this tensor, and where: int64 [k] each.
    """

    like: torch.Tensor
    units: int
    rows: UnitGradients | None
    real: Rows
    own: Rows
    places: Rows
    length: float

    def norms(self) -> torch.Tensor:
        """L2 norms, float64 [U]."""
        norms = self.like.new_zeros(self.units, dtype=torch.float64)
        if self.rows is not None:
            norms[self.real] = self.rows.norms()
        norms[self.own] = self.length
        return norms

    def sum(self, factors: torch.Tensor) -> torch.Tensor:
        """Σ factors[u] · gradient u, [n]."""
        total = torch.zeros_like(self.like) if self.rows is None else self.rows.sum(factors[self.real])
        places = torch.from_numpy(self.places).to(total.device)
        return total.index_add(0, places, (self.length * factors[self.own]).to(total.dtype))


@contextmanager
def planted(canaries: Canaries) -> Iterator[None]:
    """Inside the block, DP-SGD takes a canary's gradient from ``canaries`` and a row's from the model as ever."""
    original = getattr(private, _PLACE)

    def unit_gradients(
        adapter: Adapter, learned: Mapping[str, torch.nn.Parameter], split: Split, units: Sequence[Rows]
    ) -> tuple[list[Any], torch.Tensor]:
        ours = np.array([int(rows[0]) >= canaries.first for rows in units])
        losses = next(iter(learned.values())).detach().new_zeros(len(units))
        real, own = np.flatnonzero(~ours), np.flatnonzero(ours)
        parts: list[UnitGradients | None] = [None] * len(learned)
        if len(real):
            found, losses[real] = original(adapter, learned, split, [units[unit] for unit in real.tolist()])
            parts = list(found)
        axes = canaries.axes([units[unit] for unit in own.tolist()])
        ends = np.cumsum([parameter.numel() for parameter in learned.values()])
        mixed = []
        for part, parameter, end in zip(parts, learned.values(), ends.tolist(), strict=True):
            places = axes - (end - parameter.numel())
            here = (places >= 0) & (axes < end)
            like = parameter.detach().flatten()
            mixed.append(_Mixed(like, len(units), part, real, own[here], places[here], canaries.length))
        return mixed, losses

    setattr(private, _PLACE, unit_gradients)
    try:
        yield
    finally:
        setattr(private, _PLACE, original)


@dataclass(frozen=True, slots=True)
class Joined:
    """``split`` with further rows, which look like its own to who asks: their gradients come from elsewhere."""

    split: Split
    rows: int

    def __len__(self) -> int:
        return self.rows

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Rows of the split, whatever is asked for beyond them."""
        return self.split.batch([index % len(self.split) for index in indices])
