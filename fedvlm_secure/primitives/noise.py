"""Noise and coin tosses for differential privacy, from AES-256 in counter mode keyed by the operating system.

There is no seed argument: noise that can be made again can be taken off again. Nothing here is secret-independent in
time; what rejection sampling tells through its duration is outside every guarantee, as timing is altogether.

Three distributions, with what each of them promises:

- :meth:`NoiseSource.discrete_gaussian` is exact: no float error reaches the distribution (see :class:`_Coins`).
- :meth:`NoiseSource.bernoulli` is exact for the probability rounded down to a multiple of 2^-64.
- :meth:`NoiseSource.normal` is a float approximation. Its low bits do not identify the uniform numbers behind it, as
  those of a textbook sampler do (Mironov 2012): each value sums four (Holohan and Braghin 2021). That is a
  mitigation, not a proof; who needs a proof adds integers.
"""

import decimal
import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bits = NDArray[np.bool_]
Words = NDArray[np.uint64]

_WORD = np.dtype("<u8")
# How much is made at once: temporaries stay in a core's second-level cache, and below the size from which an allocator
# asks the operating system for fresh pages.
_POINTS = 1 << 10
_DRAWS = 3 << 12
_REKEY_BYTES = 1 << 30  # well below the 2^36 bytes after which GCM's counter would be used up

LARGEST_VARIANCE = 1 << 80  # a deviation of 2^40; values stay far inside int64
SMALLEST_VARIANCE = Fraction(1, 1 << 80)

# How far the doubles of `_Coins.toss` may be from the truth, with a factor of several hundred to spare.
MARGIN = 2.0**-40


class NoiseSource:
    """Random numbers that nobody can make again: neither a seed, nor a fork, nor a copy repeats them."""

    def __init__(self) -> None:
        self._coins = _Coins(self._words)
        self._rekey()

    def bernoulli(self, probability: float, size: int) -> Bits:
        """``size`` independent coin tosses as bool [size], true with ``probability``.

        64-bit words are compared with ⌊2^64·probability⌋: exact for every double from 2^-12 up, and below that smaller
        than asked for by less than 2^-64. Sampling a little too rarely errs on the private side.

        Raises:
            MisuseError: ``probability`` is not in [0, 1], or ``size`` is negative.
        """
        if not 0 <= probability <= 1:
            raise MisuseError(f"a probability of {probability}; it must be 0 to 1")
        threshold = math.floor(Fraction(probability) * (1 << 64))
        words = self._words(_checked(size))
        return np.ones(size, np.bool_) if threshold == 1 << 64 else words < np.uint64(threshold)

    def normal(self, size: int) -> Floats:
        """``size`` independent standard normals as float64 [size]: each half the sum of four by Marsaglia's method.

        A point uniform in the unit disc gives two normals; they go to two different values, so that the four summands
        of a value stem from four points of twice 54 bits. No value exceeds 24.3; a true normal does once in 10^129.

        Raises:
            MisuseError: ``size`` is negative.
        """
        result = np.empty(_checked(size), np.float64)
        for start in range(0, size, 2 * _POINTS):
            part = result[start : start + 2 * _POINTS]
            count = -(-len(part) // 2)
            first, second, squared = self._points(4 * count)
            factors = np.log(squared)
            factors /= squared
            factors *= -0.5  # half of √(-2·ln q / q)
            np.sqrt(factors, out=factors)
            first *= factors
            second *= factors
            part[:count] = first.reshape(4, count).sum(axis=0)
            part[count:] = second.reshape(4, count).sum(axis=0)[: len(part) - count]
        return result

    def _points(self, size: int) -> tuple[Floats, Floats, Floats]:
        """Points uniform in the unit disc: both coordinates and the squared distance from the centre, never zero."""
        first, second, squared, filled = np.empty(size), np.empty(size), np.empty(size), 0
        while filled < size:
            draws = int(1.29 * (size - filled)) + 32  # π/4 of the square is the disc
            words = self._words(2 * draws).view(np.int64)
            words >>= 10
            coordinates = words.astype(np.float64)
            coordinates *= 2.0**-53
            across, up = coordinates[:draws], coordinates[draws:]
            distances = across * across
            distances += up * up
            inside = np.flatnonzero((distances < 1) & (distances > 0))[: size - filled]
            part = slice(filled, filled + len(inside))
            for values, kept in ((across, first), (up, second), (distances, squared)):
                values.take(inside, out=kept[part], mode="clip")  # "clip" lets it write without a buffer
            filled += len(inside)
        return first, second, squared

    def discrete_gaussian(self, variance: Fraction, size: int) -> Integers:
        """``size`` independent integers, int64 [size], with probability of x proportional to exp(-x²/(2·variance)).

        Canonne, Kamath and Steinke 2020, algorithms 1 to 3. Their algorithm 3 accepts a discrete Laplace Y of scale t
        with probability exp(-(|Y| - σ²/t)²/(2σ²)). As exp(-|y|/t) times that is exp(-y²/(2σ²))·exp(-σ²/(2t²)), any t
        will do; here it is a power of two near σ, which makes uniform numbers below t and their quotients by t exact.

        Args:
            variance: the parameter σ², exact, from 2^-80 to 2^80; the variance of the result is at most that.

        Raises:
            MisuseError: ``variance`` is outside that range, or ``size`` is negative.
        """
        variance = Fraction(variance)
        if not SMALLEST_VARIANCE <= variance <= LARGEST_VARIANCE:
            raise MisuseError("a discrete Gaussian's variance must be 2^-80 to 2^80")
        scale = 1
        while 2 * scale * scale < variance:
            scale *= 2
        result, filled = np.empty(_checked(size), np.int64), 0
        while filled < size:
            # 0.63 of the draws are a Laplace's, and from 0.65 to 0.76 of those a Gaussian's.
            drawn = self._discrete_laplace(scale, min(_DRAWS, 3 * (size - filled) + 16))
            kept = drawn[self._gaussian_accepts(drawn, variance, scale)][: size - filled]
            result[filled : filled + len(kept)] = kept
            filled += len(kept)
        return result

    def _gaussian_accepts(self, drawn: Integers, variance: Fraction, scale: int) -> Bits:
        centre = variance / scale
        exponents = np.abs(drawn).astype(np.float64)
        exponents -= float(centre)
        np.square(exponents, out=exponents)
        exponents /= 2 * float(variance)
        return self._coins.toss(exponents, lambda index: (abs(int(drawn[index])) - centre) ** 2 / (2 * variance))

    def _discrete_laplace(self, scale: int, draws: int) -> Integers:
        """As many as ``draws`` attempts give of integers with probability proportional to exp(-|x|/scale).

        Algorithm 2 with s = 1 and t = ``scale``, a power of two: all attempts that reach its end, in order.
        """
        words = self._words(draws)
        remainders = (words & np.uint64(scale - 1)).view(np.int64)
        negative = words >> np.uint64(63) == 1  # scale is at most 2^40, so this bit is not among the remainder's
        accepted = self._coins.toss(remainders / scale, lambda index: Fraction(int(remainders[index]), scale))
        remainders, negative = remainders[accepted], negative[accepted]
        values = self._quotients(len(remainders))
        values *= scale
        values += remainders
        kept = ~(negative & (values == 0))  # else zero would come up twice as often
        values[negative] *= -1
        result: Integers = values[kept]
        return result

    def _quotients(self, size: int) -> Integers:
        """Geometric: how many tosses of probability 1/e succeed before the first that does not."""
        result, active = np.zeros(size, np.int64), np.arange(size)
        while len(active):
            active = active[self._coins.toss(np.ones(len(active)), lambda _: Fraction(1))]
            result[active] += 1
        return result

    def _words(self, count: int) -> Words:
        """The next ``count`` words of 64 bits."""
        if os.getpid() != self._process or self._used + 8 * count > _REKEY_BYTES:
            self._rekey()  # a forked process would go on with its parent's numbers
        self._used += 8 * count
        words = np.empty(count, _WORD)
        self._stream.fill(words)
        return words

    def _rekey(self) -> None:
        self._stream, self._used, self._process = MaskStream(Secret.generate()), 0, os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a NoiseSource is neither copied nor pickled: two of them would make the same noise")


class _Coins:
    """Tosses that succeed with probability exactly exp(-γ), for rational γ ≥ 0 (what algorithm 1 is for).

    A toss is U < exp(-γ) with U a real number uniform in [0, 1), whose binary digits are drawn as they are needed.
    The first 64 are compared with a double e ≈ exp(-γ). Let u be the number that the 64 digits make, as a double. Then
    |u - U| ≤ 2^-54 + 2^-64. And |e - exp(-γ)| < 2^-48: γ comes from a handful of operations, each off by at most 2^-53
    relatively, a difference by that much of its terms; γ·exp(-γ) < 1/2 bounds what that does to the result; the
    exponential itself is off by at most 4 units in the last place. So where u and e differ by more than MARGIN, they
    tell whether U < exp(-γ). Elsewhere, about once in 2^39 tosses, more digits of U are drawn and compared with
    rational bounds of exp(-γ), until they tell it apart. No float error ever decides.
    """

    def __init__(self, words: Callable[[int], Words]) -> None:
        self._words = words

    def toss(self, exponents: Floats, exact: Callable[[int], Fraction]) -> Bits:
        """A toss for every γ of ``exponents``, as bool; ``exact`` gives the true γ of an index."""
        words = self._words(len(exponents))
        difference = words.astype(np.float64)
        difference *= 2.0**-64
        difference -= np.exp(-exponents)
        result = difference < 0
        for index in np.flatnonzero(np.abs(difference) <= MARGIN).tolist():
            result[index] = self._exactly(int(words[index]), exact(index))
        return result

    def _exactly(self, digits: int, exponent: Fraction) -> bool:
        """Whether U < exp(-exponent), where U begins with the 64 binary ``digits``."""
        count = 64
        while True:
            low, high = _exp_bounds(exponent, count // 2)
            if Fraction(digits + 1, 1 << count) <= low:
                return True
            if Fraction(digits, 1 << count) >= high:
                return False
            digits, count = (digits << 64) + int(self._words(1)[0]), count + 64


def _exp_bounds(exponent: Fraction, precision: int) -> tuple[Fraction, Fraction]:
    """Rational bounds of exp(-exponent), about ``precision`` decimal digits apart.

    The decimal module rounds a quotient as told and an exponential correctly, so one unit either side holds the truth.
    """
    bounds = []
    for rounding in (decimal.ROUND_CEILING, decimal.ROUND_FLOOR):
        context = decimal.Context(prec=precision, rounding=rounding, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
        quotient = context.divide(decimal.Decimal(exponent.numerator), decimal.Decimal(exponent.denominator))
        bounds.append((context, context.exp(quotient.copy_negate())))  # a minus sign would round to 28 digits
    (context, low), (_, high) = bounds
    return Fraction(context.next_minus(low)), Fraction(context.next_plus(high))


def _checked(size: int) -> int:
    if size < 0:
        raise MisuseError(f"{size} numbers; the size must not be negative")
    return size
