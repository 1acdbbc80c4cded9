"""Float vectors to ring integers and back: clip, rotate, weight, round; unrotate and divide.

The weight multiplies in float64 *before* rounding. Rounding first would leave the weight as a common divisor of every
coordinate, readable in any sum over few clients, and would lose precision by the same factor.

With noise, for differential privacy at the level of clients, rounding is conditional and every client adds its share:
see :mod:`fedvlm_secure.encoding.noisy`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.encoding.noisy import add_noise, round_stochastically, round_within
from fedvlm_secure.encoding.rotation import Floats, rotate, unrotate
from fedvlm_secure.errors import MisuseError

# After rotation a coordinate of a vector of norm c is about normal with deviation c/√d; beyond 8.5 of those lies less
# than 2e-17 of the mass. Where d is just below a power of two and the vector lies in one of the rotation's two windows,
# the deviation is √2 times that, and the mass 2e-9. Saturations are counted all the same.
RANGE_DEVIATIONS = 8.5

ROUNDINGS = ("stochastic", "nearest")

_PRECISE = 2.0**-500  # squares of it are still normal numbers

_CHECKS = (1, 0, 0)  # what every client adds to the check coordinates

Total = NDArray[np.int64] | NDArray[np.float64]  # integers, or floats whose counters and checks are whole numbers


class GarbageSumError(ValueError):
    """The sum cannot be a sum of honestly encoded vectors: its check or counter coordinates are off."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one client contributes in a round, before encoding.

    Attributes:
        values: float32 or float64 [d], finite: the shared part of the adapter minus the global one.
        counters: one integer for each of the layout's counters; ``weight`` is at least 1.
    """

    values: NDArray[np.floating]
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Signed integers [layout.size], and how many coordinates were outside the range and moved to its edge."""

    integers: NDArray[np.int64]
    saturated: int
    clipped: bool


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded sum: the weighted mean float64 [d], the counters' sums, and how many clients took part."""

    mean: Floats
    counters: dict[str, int]
    participants: int


@dataclass(frozen=True, slots=True)
class Codec:
    """One round's encoding; equal at every party, since all of it is in the plan.

    Attributes:
        clip_norm: largest L2 norm of an update; a longer one is scaled down to it.
        seed: public, 32 bytes; signs of the rotation.
        rounding: ``"stochastic"`` (unbiased, from OS randomness) or ``"nearest"`` (reproducible).
        noise: variance of the discrete Gaussian that a client adds to every coordinate of its update, in squared steps;
            0 is none. The decoded mean then has noise of deviation step·√(noise/participants).
    """

    layout: VectorLayout
    clip_norm: float
    seed: bytes
    rounding: str = "stochastic"
    noise: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise MisuseError(f"clip_norm is {self.clip_norm}; it must be a positive finite number")
        if self.rounding not in ROUNDINGS:
            raise MisuseError(f"rounding is {self.rounding!r}; it must be one of {', '.join(ROUNDINGS)}")
        if self.noise and (self.rounding != "stochastic" or self.layout.weight_max != 1):
            raise MisuseError("noise takes stochastic rounding and a weight of 1")
        if self.noise and not _PRECISE <= self.step <= 1 / _PRECISE:
            raise MisuseError(f"clip_norm is {self.clip_norm}; with noise its steps must be doubles of full precision")

    @property
    def step(self) -> float:
        """The float that one integer stands for, at weight 1."""
        return RANGE_DEVIATIONS * self.clip_norm / math.sqrt(max(self.layout.update, 1)) / self.layout.levels

    def encode(self, update: Update) -> Encoded:
        """The update as signed integers, ready for the ring; with noise they may exceed it, and are to be reduced.

        Raises:
            MisuseError: wrong length, dtype or shape, a NaN or infinity, a counter missing or out of bounds, weight 0.
        """
        values, counters = self.check(update)
        scaled, saturated, clipped = self._quantisable(values)
        scaled *= counters[0]
        integers = np.empty(self.layout.size, np.int64)
        self._round(scaled, integers[: len(scaled)])
        if self.noise:
            add_noise(integers[: len(scaled)], self.noise)
        integers[len(scaled) :] = [*counters, *_CHECKS]
        return Encoded(integers, saturated, clipped)

    def weigh(self, update: Update) -> tuple[Floats, list[int]]:
        """What :meth:`encode` would round: the weighted update in steps, float64 [d], and counters and checks.

        For protocols that sum floats; raises as :meth:`encode` does, and where there should be noise.
        """
        if self.noise:
            raise MisuseError("floats have no modulus, and noise needs one")
        values, counters = self.check(update)
        scaled, _, _ = self._quantisable(values)
        scaled *= counters[0]
        return scaled, [*counters, *_CHECKS]

    def saturation(self, update: Update) -> tuple[int, bool]:
        """What :meth:`encode` would say of ``update``: coordinates beyond the range, and whether it is clipped.

        For the update's owner to see; raises as :meth:`encode` does.
        """
        _, saturated, clipped = self._quantisable(self.check(update)[0])
        return saturated, clipped

    def _quantisable(self, values: Floats) -> tuple[Floats, int, bool]:
        """The values clipped, rotated and scaled to steps within the range."""
        with np.errstate(over="ignore"):
            norm = float(np.linalg.norm(values))
        if not math.isfinite(norm):
            raise MisuseError("the update's norm is beyond float64; the local training diverged, nothing was sent")
        clipped = norm > self.clip_norm
        if clipped:
            values = values * (self.clip_norm / norm)
        scaled = rotate(values, self.seed)
        scaled /= self.step
        edge = float(self.layout.levels)
        saturated = int(np.count_nonzero(scaled > edge) + np.count_nonzero(scaled < -edge))
        np.clip(scaled, -edge, edge, out=scaled)
        return scaled, saturated, clipped

    def decode(self, total: Total) -> Decoded:
        """The weighted mean from the sum [layout.size] of encoded or weighed updates; raises as :meth:`counted`."""
        counters, participants = self.counted(total)
        scaled: Floats = total[: self.layout.update].astype(np.float64) * (self.step / counters["weight"])
        return Decoded(unrotate(scaled, self.seed), counters, participants)

    def counted(self, total: Total) -> tuple[dict[str, int], int]:
        """The counters' sums, and how many clients took part.

        Raises:
            GarbageSumError: the checks are not (count, 0, 0) or a counter exceeds what the count allows.
        """
        *sums, participants, zero, other_zero = (int(value) for value in total[self.layout.update :])
        if participants < 1 or zero != 0 or other_zero != 0:
            raise GarbageSumError(f"check coordinates sum to ({participants}, {zero}, {other_zero})")
        counters = {counter.name: value for counter, value in zip(self.layout.counters, sums, strict=True)}
        for counter in self.layout.counters:
            if not 0 <= counters[counter.name] <= participants * counter.bound:
                raise GarbageSumError(f"counter {counter.name} sums to {counters[counter.name]}")
        if counters["weight"] < participants:
            raise GarbageSumError(f"{participants} participants with a total weight of {counters['weight']}")
        return counters, participants

    def check(self, update: Update) -> tuple[Floats, list[int]]:
        """The update's values as float64 and its counters in the layout's order; raises as :meth:`encode` does."""
        values = np.asarray(update.values)
        if values.dtype not in (np.float32, np.float64):
            raise MisuseError(f"the update has dtype {values.dtype}; it must be float32 or float64")
        if values.shape != (self.layout.update,):
            raise MisuseError(
                f"the update has shape {values.shape}; the plan's layout asks for ({self.layout.update},)"
            )
        if not np.isfinite(values).all():
            raise MisuseError("the update holds a NaN or an infinity; the local training diverged, nothing was sent")
        expected = [counter.name for counter in self.layout.counters]
        if sorted(update.counters) != sorted(expected):
            raise MisuseError(f"counters are {sorted(update.counters)}; the plan's layout asks for {sorted(expected)}")
        for counter in self.layout.counters:
            value, least = update.counters[counter.name], int(counter.name == "weight")
            if (
                isinstance(value, bool)
                or not isinstance(value, int | np.integer)
                or not least <= value <= counter.bound
            ):
                raise MisuseError(f"{counter.name} is {value!r}; it must be an integer from {least} to {counter.bound}")
        return values.astype(np.float64), [int(update.counters[name]) for name in expected]

    def _round(self, scaled: Floats, integers: NDArray[np.int64]) -> None:
        if self.noise:
            round_within(scaled, self.layout, integers)
        elif self.rounding == "stochastic":
            round_stochastically(scaled, integers)
        else:
            np.rint(scaled, out=scaled)
            integers[:] = scaled
