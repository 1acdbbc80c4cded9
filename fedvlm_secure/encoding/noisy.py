"""Client-level differential privacy inside the sum: the distributed discrete Gaussian (Kairouz, Liu and Steinke 2021).

Every client clips, rotates, scales and rounds its vector to integers, adds its share of the noise, an exact discrete
Gaussian, and sends the result modulo the ring (or BFV's plain modulus). Whoever reads the sum modulo M reads a function
of (sum of vectors + sum of noise), so wraps tell nothing. That holds for the modulus only: were the *reduced* integers
of several clients added without a modulus, the sum would also tell how often each of them had wrapped.

All numbers that the guarantee rests on are integers or fractions, in units of one step of the encoding:

- the clip norm is √d·M·2/17 steps, with M = 2^(value_bits-1), since the range is 8.5·clip/√d a coordinate;
- rounding is repeated until the integers' L2 norm is at most √:func:`largest_squared_norm`, checked exactly, so that
  no error of the clipping, the rotation or the scaling before it can exceed the sensitivity;
- the noise's variance is z²·(clip norm in steps)²/h, h being the noise shares that nobody who looks at the sum knows.
"""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.encoding.rotation import Floats
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.noise import LARGEST_VARIANCE, SMALLEST_VARIANCE, NoiseSource

Integers = NDArray[np.int64]

_PART = 1 << 16


def noise_shares(min_survivors: int, max_corrupt: int) -> int:
    """h, on how many clients' noise a guarantee may count: who looks at the sum knows its own, or its colluders'.

    Dropouts never weaken what is counted on, since no sum has fewer than ``min_survivors`` clients.
    """
    return min_survivors - max(max_corrupt, 1)


def squared_clip(layout: VectorLayout) -> Fraction:
    """The squared clip norm in steps, exact: (√d·M/8.5)²."""
    return Fraction(layout.update * layout.levels**2 * 4, 289)


def noise_variance(layout: VectorLayout, noise_multiplier: float, shares: int) -> Fraction:
    """The parameter σ² of one client's discrete Gaussian in squared steps: (z·clip/√h)².

    Args:
        noise_multiplier: z, the deviation of ``shares`` clients' noise together in clip norms; 0 is no noise.

    Raises:
        MisuseError: z is negative or no number, there are no shares, or the variance is beyond what can be drawn.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise MisuseError(f"noise_multiplier is {noise_multiplier}; it must be a finite number, 0 or more")
    if not noise_multiplier or not layout.update:
        return Fraction(0)
    if shares < 1:
        raise MisuseError("nobody's noise is unknown to whoever looks at the sum; raise min_survivors")
    variance = Fraction(noise_multiplier) ** 2 * squared_clip(layout) / shares
    if not SMALLEST_VARIANCE <= variance <= LARGEST_VARIANCE:
        raise MisuseError(f"noise_multiplier is {noise_multiplier}: its noise cannot be drawn; change it or value_bits")
    return variance


def noise_tail(variance: Fraction, clients: int) -> int:
    """Ten deviations of all clients' noise together, in steps.

    A discrete Gaussian is subgaussian with its parameter (Canonne, Kamath and Steinke 2020), so that any
    of up to 2^31 coordinates goes beyond with a chance of at most 2^32·exp(-50) < 2^-40. It would cost accuracy, never
    privacy.
    """
    return math.isqrt(math.ceil(100 * clients * variance))


def check_noisy(protocol: str, layout: VectorLayout, rounding: str) -> None:
    """What a round with noise must be like; raises :class:`MisuseError`."""
    if protocol == "ckks":
        raise MisuseError("ckks adds reals without a modulus: its sums would show by how much each client wrapped")
    if protocol not in ("pairwise", "bfv"):
        raise MisuseError(f"{protocol} shows single vectors, with a share of the noise only; use pairwise or bfv")
    if layout.weight_max != 1 or len(layout.counters) != 1:
        raise MisuseError("noise is for one client as much as for another: weight_max is 1, no counter but the weight")
    if rounding != "stochastic":
        raise MisuseError("noise takes stochastic rounding: the bound on a rounded vector's norm is for that")


def squared_norm_bound(clip: float, size: int) -> float:
    """The squared L2 norm that a vector of ``size`` integers may have, rounded from reals of norm ``clip``.

    As in Kairouz, Liu and Steinke 2021, on conditional rounding: min{(C + √d)², C² + d/4 + √(2·ln(1/β))·(C + √d/2)}
    for β = exp(-1/2).
    """
    root = math.sqrt(size)
    return min((clip + root) ** 2, clip**2 + size / 4 + clip + root / 2)


def largest_squared_norm(layout: VectorLayout) -> int:
    """:func:`squared_norm_bound` for the layout, in squared steps."""
    return math.floor(squared_norm_bound(math.sqrt(squared_clip(layout)), layout.update))


def round_within(scaled: Floats, layout: VectorLayout, integers: Integers) -> None:
    """Round ``scaled`` [d] up or down at random into ``integers``, again until their norm is within the bound.

    A try fails with a chance of at most exp(-1/2), by the choice of the bound, and in practice hardly ever: rounding
    adds d/6 to the squared norm on average, and the bound leaves room for d/4.
    """
    bound = largest_squared_norm(layout)
    while True:
        round_stochastically(scaled, integers)
        if squared_norm(integers) <= bound:
            return


def round_stochastically(scaled: Floats, integers: Integers) -> None:
    """Round ``scaled`` into ``integers``, unbiased, in parts: temporaries of the whole length would triple it."""
    draws = np.frombuffer(entropy.random_bytes(4 * len(scaled)), np.dtype("<u4"))
    for start in range(0, len(scaled), _PART):
        part = slice(start, start + _PART)
        integers[part] = np.floor(scaled[part] + draws[part] * 2.0**-32)


def squared_norm(integers: Integers) -> int:
    """Exact for magnitudes up to 2^23: no part's sum exceeds 2^62."""
    parts = (integers[start : start + _PART] for start in range(0, len(integers), _PART))
    return sum(int(part @ part) for part in parts)


def add_noise(integers: Integers, variance: Fraction) -> None:
    """Add one client's share of the noise, in place; no sum of both comes near the end of int64."""
    source = NoiseSource()
    for start in range(0, len(integers), _PART):
        part = integers[start : start + _PART]
        part += source.discrete_gaussian(variance, len(part))
