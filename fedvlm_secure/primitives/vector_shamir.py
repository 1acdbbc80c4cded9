"""Shamir's secret sharing of vectors of small integers, over the field of p = 2^31 - 1, with wrong shares found.

One polynomial of degree below the threshold for each entry, whose constant term is the entry; a share is the
polynomials' values at one point. Shares of several vectors at one point add up to a share of the vectors' sum. Any
threshold of shares give the entries, fewer are uniform and say nothing about them.

Shares of one entry at a points are a word of a Reed-Solomon code (Reed and Solomon 1960). So a - threshold linear
forms, the syndromes, are zero for right shares, and up to (a - threshold)/2 wrong ones can be named (Gao 2003). A row
that is wrong anywhere is wrong in a random combination of its entries, but for odds of 1/p: :func:`inner` makes one
word of many, and :func:`locate` decodes it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.primitives.compiled import compiled, reading
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import ShareError
from fedvlm_secure.primitives.stream import MaskStream

Shares = NDArray[np.uint32]
Integers = NDArray[np.int64]

PRIME = (1 << 31) - 1
LARGEST = PRIME // 2  # an entry's absolute value

_PRIME = np.uint64(PRIME)
_31 = np.uint64(31)


def split(values: Integers, threshold: int, points: Sequence[int]) -> Shares:
    """Shares of ``values``, int64 [L] of at most :data:`LARGEST` in size: uint32 [points, L], a row for each point.

    Raises:
        ValueError: a threshold outside 1..len(points), an entry too large, repeated points or points outside 1..p-1.
    """
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} with {len(points)} points")
    if values.size and not -LARGEST <= values.min() <= values.max() <= LARGEST:
        raise ValueError(f"entries to be shared are at most {LARGEST} in size")
    coefficients = np.empty((threshold, len(values)), np.uint32)
    coefficients[0] = values % PRIME
    coefficients[1:] = _uniform((threshold - 1) * len(values)).reshape(threshold - 1, len(values))
    return _product(_powers(points, threshold).T, coefficients)


def weights(points: Sequence[int], at: int = 0) -> list[int]:
    """Lagrange's weights: Σ weight·f(point) = f(at) modulo p, for every polynomial f of degree below len(points).

    Raises:
        ValueError: repeated points, or points outside 1..p-1.
    """
    _check_points(points)
    result = []
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator = numerator * (at - other) % PRIME
                denominator = denominator * (point - other) % PRIME
        result.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return result


def recover(points: Sequence[int], shares: Shares) -> Integers:
    """The entries whose polynomials have these values: int64 [L], at most :data:`LARGEST` in size.

    Wrong shares give wrong entries: :func:`syndromes` of more shares than the threshold tell so.

    Args:
        shares: uint32 [points, L], of at least a threshold's worth of points.

    Raises:
        ValueError: repeated points, points outside 1..p-1, or another number of rows.
        ShareError: a share is no element of the field.
    """
    _check(points, shares)
    entries: Integers = _product(np.array([weights(points)], np.uint32), shares)[0].astype(np.int64)
    entries[entries > LARGEST] -= PRIME
    return entries


def syndromes(points: Sequence[int], shares: Shares, threshold: int) -> Shares:
    """uint32 [len(points) - threshold, L]: a column is zero if, and only if, that entry's shares lie on one polynomial.

    Form j is Σ share·point^j / Π(point - other), the dual code of the shares' (Roth 2006, section 5.1).

    Raises:
        As :func:`recover`, and ValueError for a threshold outside 1..len(points).
    """
    _check(points, shares)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} with {len(points)} points")
    forms = _powers(points, len(points) - threshold) * np.array(_multipliers(points), np.uint64) % _PRIME
    return _product(forms.astype(np.uint32), shares)


def inner(rho: NDArray[np.uint32], shares: Shares) -> int:
    """Σ rho_j·shares_j mod p, of two uint32 [L]."""
    return int((rho.astype(np.uint64) * shares % _PRIME).sum() % _PRIME)


def locate(points: Sequence[int], word: NDArray[np.uint32], threshold: int) -> tuple[int, ...]:
    """The points whose shares are wrong, in the order of ``points``: those off the one polynomial that fits enough.

    That polynomial has a degree below the threshold and leaves at most (len(points) - threshold) // 2 shares aside; no
    second one does. Gao's decoder: Euclid's algorithm on Π(x - point) and the polynomial through all the shares,
    stopped half-way, gives the error locator and its product with the polynomial sought.

    Args:
        word: uint32 [points], one share for each point.

    Raises:
        ShareError: there is no such polynomial: more shares are wrong than can be located.
        ValueError: as :func:`syndromes`.
    """
    _check(points, word[:, np.newaxis])
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} with {len(points)} points")
    values = word.tolist()
    older = _vanishing(points)
    newer = _interpolated(points, values, older)
    before, locator = [], [1]
    while 2 * (len(newer) - 1) >= len(points) + threshold:
        quotient, remainder = _divided(older, newer)
        older, newer = newer, remainder
        before, locator = locator, _minus(before, _times(quotient, locator))
    found, _ = _divided(newer, locator)  # checked below, so a remainder need not be
    wrong = tuple(point for point, value in zip(points, values, strict=True) if _at(found, point) != value)
    if len(found) > threshold or 2 * len(wrong) > len(points) - threshold:
        raise ShareError("more shares are wrong than can be located")
    return wrong


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or not all(1 <= point < PRIME for point in points):
        raise ValueError("points must be distinct and within 1..p-1")


def _check(points: Sequence[int], shares: Shares) -> None:
    _check_points(points)
    if not points or len(shares) != len(points):
        raise ValueError(f"{len(shares)} rows of shares for {len(points)} points")
    if shares.max(initial=0) >= PRIME:
        raise ShareError("a share is no element of the field")


def _uniform(count: int) -> NDArray[np.uint32]:
    """Words uniform below p, from the operating system by way of one AES stream: 31 bits each, p itself drawn again."""
    stream, words = MaskStream(Secret.generate()), np.empty(count, "<u4")
    stream.fill(words)
    words &= np.uint32(PRIME)
    while (rejected := np.flatnonzero(words == PRIME)).size:
        following = np.empty(len(rejected), "<u4")
        stream.fill(following)
        words[rejected] = following & np.uint32(PRIME)
    return words


def _powers(points: Sequence[int], count: int) -> Shares:
    """uint32 [count, points]: row j is every point to the power of j."""
    result = np.ones((count, len(points)), np.uint32)
    for j in range(1, count):
        result[j] = result[j - 1] * np.array(points, np.uint64) % _PRIME
    return result


def _multipliers(points: Sequence[int]) -> list[int]:
    """1/Π(point - other) for every point."""
    result = []
    for point in points:
        product = 1
        for other in points:
            if other != point:
                product = product * (point - other) % PRIME
        result.append(pow(product, -1, PRIME))
    return result


def _product(left: Shares, right: Shares) -> Shares:
    """The product of matrices modulo p, uint32 [m, n] times uint32 [n, L]."""
    result = np.empty((len(left), right.shape[1]), np.uint32)
    _multiply(reading(left, np.uint32), reading(right, np.uint32), result)
    return result


@compiled
def _multiply(left: Shares, right: Shares, result: Shares) -> None:
    """As :func:`_product`: no branch and no address depends on an entry."""
    for i in range(left.shape[0]):
        sums = np.zeros(right.shape[1], np.uint64)
        for k in range(left.shape[1]):
            factor, row = np.uint64(left[i, k]), right[k]
            for j in range(len(row)):
                # 2^31 ≡ 1, so bits from the 31st on count as much as those below. Sums stay below 2^34.
                total = sums[j] + factor * np.uint64(row[j])
                sums[j] = (total & _PRIME) + (total >> _31)
        for j in range(len(sums)):
            least = (sums[j] & _PRIME) + (sums[j] >> _31)
            result[i, j] = min(least, least - _PRIME)


# Polynomials over the field: coefficients from the constant term up, the last one not zero, none at all for zero.


def _trimmed(polynomial: list[int]) -> list[int]:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial


def _at(polynomial: list[int], point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def _times(one: list[int], other: list[int]) -> list[int]:
    result = [0] * max(len(one) + len(other) - 1, 0)
    for i, coefficient in enumerate(one):
        for j, factor in enumerate(other):
            result[i + j] = (result[i + j] + coefficient * factor) % PRIME
    return _trimmed(result)


def _minus(one: list[int], other: list[int]) -> list[int]:
    size = max(len(one), len(other))
    pairs = zip(one + [0] * (size - len(one)), other + [0] * (size - len(other)), strict=True)
    return _trimmed([(first - second) % PRIME for first, second in pairs])


def _divided(dividend: list[int], divisor: list[int]) -> tuple[list[int], list[int]]:
    """Quotient and remainder."""
    rest, inverse = list(dividend), pow(divisor[-1], -1, PRIME)
    quotient = [0] * max(len(dividend) - len(divisor) + 1, 0)
    for shift in reversed(range(len(quotient))):
        factor = quotient[shift] = rest[shift + len(divisor) - 1] * inverse % PRIME
        for j, coefficient in enumerate(divisor):
            rest[shift + j] = (rest[shift + j] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _vanishing(points: Sequence[int]) -> list[int]:
    """Π(x - point)."""
    result = [1]
    for point in points:
        result = _times(result, [-point % PRIME, 1])
    return result


def _interpolated(points: Sequence[int], values: Sequence[int], vanishing: list[int]) -> list[int]:
    """The polynomial of degree below len(points) with these values: Lagrange's."""
    result = [0] * len(points)
    for point, value, multiplier in zip(points, values, _multipliers(points), strict=True):
        basis, _ = _divided(vanishing, [-point % PRIME, 1])
        for j, coefficient in enumerate(basis):
            result[j] = (result[j] + value * multiplier * coefficient) % PRIME
    return _trimmed(result)
