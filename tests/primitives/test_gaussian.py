"""The table against other formulas in other arithmetic; samples against the law, with false alarms once in 10^9."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedvlm_secure.primitives import gaussian
from fedvlm_secure.primitives.gaussian import LARGEST, sample, table
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream

FALSE_ALARM = 1e-9
ONE = 1 << 700  # fixed-point numbers


def arctan_of_inverse(x: int) -> int:
    return sum((-1) ** k * ONE // ((2 * k + 1) * x ** (2 * k + 1)) for k in range(200))


def mass(x: int) -> int:
    """exp(-x²/41) by Taylor's series, a power of exp(-1/41)."""
    base = sum((-1) ** k * ONE // (math.factorial(k) * 41**k) for k in range(100))
    result = ONE
    for _ in range(x * x):
        result = result * base // ONE
    return result


def entries() -> list[int]:
    """2^127·P(|X| ≥ k). The sum of all masses is √(41π)·Σ exp(-41π²k²) (Poisson); for k = 1 that is below 2^-583."""
    pi = 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))  # Machin
    whole = math.isqrt(41 * pi * ONE)
    inside, result = mass(0), []
    for k in range(1, LARGEST + 1):
        result.append(round(Fraction((whole - inside) << 127, whole)))
        inside += 2 * mass(k)
    return result


def test_the_table_is_right_to_its_last_bit():
    assert list(table()) == entries()


def test_what_is_cut_is_below_2_to_the_minus_128():
    def beyond(size: int) -> Fraction:
        return Fraction(2 * sum(mass(x) for x in range(size + 1, 100)), sum(mass(abs(x)) for x in range(-99, 100)))

    assert beyond(LARGEST) < Fraction(1, 1 << 128) < beyond(LARGEST - 1)


def test_the_statistical_distance_is_as_stated():
    """Of the table's own law, exact in 128 bits, to the Gaussian."""
    whole = sum(mass(abs(x)) for x in range(-120, 121))
    bounds = [1 << 127, *table(), 0]
    distance = Fraction(2 * sum(mass(x) for x in range(LARGEST + 1, 121)), whole)
    for x in range(LARGEST + 1):
        both = Fraction(mass(x) * (2 if x else 1), whole)
        distance += abs(Fraction(bounds[x] - bounds[x + 1], 1 << 127) - both)
    assert distance / 2 < Fraction(1, 1 << 120)


def source() -> MaskStream:
    return MaskStream(Secret.generate())


def test_samples_follow_the_law():
    count = 2_000_000
    samples = sample(count, source()).astype(np.int64)
    edge = 22
    found = np.bincount(np.clip(samples, -edge, edge) + edge, minlength=2 * edge + 1)
    law = np.array([math.exp(-x * x / 41) for x in range(-80, 81)])
    law /= law.sum()
    expected = law[80 - edge : 81 + edge].copy()
    expected[[0, -1]] += law[: 80 - edge].sum()
    assert stats.chisquare(found, count * expected / expected.sum()).pvalue > FALSE_ALARM
    assert abs(samples.mean()) < 6.5 * math.sqrt(20.5 / count)
    assert abs((samples**2).mean() - 20.5) < 6.5 * 20.5 * math.sqrt(2 / count)
    assert abs((samples[1:] * samples[:-1]).mean()) < 6.5 * 20.5 / math.sqrt(count)


def test_the_exact_sampler_agrees():
    count, edge = 200_000, 16
    ours, theirs = sample(count, source()), NoiseSource().discrete_gaussian(Fraction(41, 2), count)
    counts = [np.bincount(np.clip(each, -edge, edge) + edge, minlength=2 * edge + 1) for each in (ours, theirs)]
    assert stats.chi2_contingency(counts).pvalue > FALSE_ALARM


class Words:
    """A source that gives the words it is told to, and then no more."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)

    def fill(self, words: np.ndarray) -> None:
        assert len(self.words) >= len(words), "more words than a sample without a tie needs"
        words[:] = self.words[: len(words)]
        del self.words[: len(words)]


@pytest.mark.parametrize("sign", [0, 1])
def test_leading_words_next_to_an_entry_decide_alone(sign):
    for k, entry in enumerate(table(), 1):
        leading = entry >> 64
        below, above = (sign << 63) + leading - 1, (sign << 63) + leading + 1
        if leading > 1:
            assert sample(1, Words(below)).tolist() == [-k if sign else k]
            assert sample(1, Words(above)).tolist() == [1 - k if sign else k - 1]


@pytest.mark.parametrize("sign", [0, 1])
def test_a_tie_is_decided_by_the_next_word(sign):
    for k, entry in enumerate(table(), 1):
        leading, rest = (sign << 63) + (entry >> 64), entry & (2**64 - 1)
        if rest:
            assert sample(1, Words(leading, rest - 1)).tolist() == [-k if sign else k]
        assert sample(1, Words(leading, rest)).tolist() == [1 - k if sign else k - 1]


def test_ties_among_others_take_their_words_in_order():
    tie, other = table()[4] >> 64, 1 << 62
    plain = sample(1, Words(other))[0]
    found = sample(4, Words(other, tie, other, tie, 2**64 - 1, 0))
    assert found.tolist() == [plain, 4, plain, 5]


def test_the_extremes():
    most = (1 << 63) - 1
    assert sample(2, Words(most, most + (1 << 63))).tolist() == [0, 0]
    assert sample(2, Words(0, 1 << 63, 0, 0)).tolist() == [LARGEST, -LARGEST]


@pytest.mark.parametrize("count", [0, 1, gaussian.BLOCK - 1, gaussian.BLOCK, gaussian.BLOCK + 1])
def test_every_count_is_served(count):
    samples = sample(count, source())
    assert samples.shape == (count,)
    assert samples.dtype == np.int8
    assert np.abs(samples).max(initial=0) <= LARGEST
