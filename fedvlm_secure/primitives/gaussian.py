"""Noise for lattice masks: the discrete Gaussian over the integers with σ² = 41/2, from a table, in constant passes.

P(x) is proportional to exp(-x²/41), so σ = 4.5277, and √2·3.2 = 4.5255. The width is fixed since the table is. For the
noise of differential privacy, of any width, :mod:`fedvlm_secure.primitives.noise` has an exact sampler, not constant.

Inversion of a cumulative table (Peikert 2010, section 4.1; Micciancio and Walter 2017). A number U uniform below 2^128
is a sign bit and V uniform below 2^127; the result is as large as the number of table entries T_k that exceed V, where
T_k is 2^127·P(|X| ≥ k), rounded to the nearest integer. Values beyond :data:`LARGEST`, where P(|X| > LARGEST) < 2^-128,
are cut. So every P(x) is off by at most 2^-127, and the statistical distance to the Gaussian is below 2^-120.

Only the leading 63 bits of V are drawn at first. They are compared with those of every entry, for every sample: no
branch and no address depends on a sample. They equal an entry's with odds below 2^-57 a sample; then, and only then, 64
more bits decide, in Python, and the time tells so.
"""

from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.primitives.compiled import compiled

Samples = NDArray[np.int8]
Words = NDArray[np.uint64]

TWICE_VARIANCE = 41  # 2·σ²
LARGEST = 59
DIGITS = 127

# Samples made at once: words and counts stay in a core's first-level cache.
BLOCK = 1 << 10
_LOW_63 = np.uint64((1 << 63) - 1)


class Source(Protocol):
    """Uniform words, such as a :class:`~fedvlm_secure.primitives.stream.MaskStream` under a fresh key."""

    def fill(self, words: Words) -> None:
        """Overwrite ``words``, a contiguous array, with uniform ones."""
        ...


@cache
def table() -> tuple[int, ...]:
    """T_1 .. T_LARGEST, descending: 2^127·P(|X| ≥ k), rounded to nearest. Decimals of 100 digits, rounded correctly."""
    exact = Context(prec=100, rounding=ROUND_HALF_EVEN)
    masses = [exact.exp(exact.divide(Decimal(-x * x), Decimal(TWICE_VARIANCE))) for x in range(2 * LARGEST)]
    whole, tail, entries = Decimal(0), Decimal(0), []
    for mass in reversed(masses[1:]):
        tail = exact.add(tail, exact.multiply(2, mass))
        entries.append(tail)
    whole = exact.add(tail, masses[0])
    scaled = [exact.multiply(exact.divide(entry, whole), 1 << DIGITS) for entry in reversed(entries)]
    return tuple(int(exact.to_integral_value(entry)) for entry in scaled[:LARGEST])


def sample(count: int, source: Source) -> Samples:
    """``count`` independent samples, int8 [count], each at most :data:`LARGEST` in size.

    Args:
        source: gives one word a sample, and a second one once in 2^57 samples. Whoever has its key has the noise.
    """
    result, words, leading = np.empty(count, np.int8), np.empty(min(count, BLOCK), "<u8"), _leading()
    for start in range(0, count, BLOCK):
        part = result[start : start + BLOCK]
        drawn = words[: len(part)]
        source.fill(drawn)
        if _count_above(drawn, leading, part):
            _decide(drawn, leading, part, source)
    return result


def _decide(words: Words, leading: Words, result: Samples, source: Source) -> None:
    """Overwrite the samples whose leading bits equal an entry's, with another word for each."""
    for index in np.flatnonzero(np.isin(words & _LOW_63, leading)).tolist():
        following = np.empty(1, "<u8")
        source.fill(following)
        number = (int(words[index]) << 64) + int(following[0])
        size = sum(number % (1 << DIGITS) < entry for entry in table())
        result[index] = -size if number >> DIGITS else size


@cache
def _leading() -> Words:
    """The entries' leading 63 bits, each once: the last entries have none, and no number is below zero."""
    return np.array(sorted({entry >> 64 for entry in table()}), np.uint64)


@compiled
def _count_above(words: Words, leading: Words, result: Samples) -> bool:
    """How many of ``leading`` exceed each word's low 63 bits, with its top bit as the sign; whether any equals one."""
    low, sizes = words & _LOW_63, np.zeros(len(words), np.int64)
    equal = False
    for entry in leading:
        for j in range(len(words)):
            sizes[j] += low[j] < entry
            equal |= low[j] == entry
    for j in range(len(words)):
        sign = -np.int64(words[j] >> np.uint64(63))
        result[j] = (sizes[j] ^ sign) - sign
    return equal
