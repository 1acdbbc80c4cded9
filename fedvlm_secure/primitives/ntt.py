"""The number-theoretic transform modulo X^N + 1 and a prime p < 2^31 with p ≡ 1 (mod 2N), on 32-bit words.

The transform of a polynomial s is its values s(ψ^(2·b(i)+1)) for i = 0..N-1, where ψ is a fixed 2N-th root of unity and
b(i) reverses the log2(N) bits of i: products of polynomials modulo X^N + 1 are then products of values. Cooley and
Tukey's butterflies lead there, Gentleman and Sande's back, with the powers of ψ merged in (Longa and Naehrig 2016).

For the processor's vectors, the N words are a matrix. The strides of the first butterflies are whole rows of
[ROWS, N / ROWS]; then the matrix is transposed, and the strides of the remaining ones are whole rows of
[N / ROWS, ROWS]. It is left so. Hence the order: word c·ROWS + r is the value for i = r·(N / ROWS) + c.

A factor w that is used often comes with its quotient ⌊w·2^32/p⌋, and then a product modulo p takes three
multiplications and no division (Shoup; Harvey 2014, section 2). Harvey also leaves sums unreduced below 4p, which needs
p < 2^30; here all words are reduced to below p at every step, by a minimum: x - p wraps round to a large word if x < p.
No branch and no address depends on a word's value.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.primitives.compiled import compiled

Words = NDArray[np.uint32]

ROWS = 64
LARGEST_PRIME = 1 << 31

_32 = np.uint64(32)


@dataclass(frozen=True, eq=False)
class Twiddles:
    """The factors of one direction, each with its quotient: arrays [..., 0] and [..., 1] of the second-last axis.

    Attributes:
        outer: uint32 [2, ROWS], entry m + i for block i of m blocks of rows of [ROWS, N / ROWS].
        inner: uint32 [2, N / ROWS, ROWS], row m + i for block i of m blocks of rows of [N / ROWS, ROWS].
    """

    outer: Words
    inner: Words


def root_of_unity(degree: int, prime: int) -> int:
    """ψ = g^((p-1)/2N) for the least g ≥ 2 that makes ψ^N = -1: a primitive 2N-th root of unity modulo ``prime``.

    Raises:
        ValueError: ``degree`` is no power of two from ROWS up, or ``prime`` is not ≡ 1 (mod 2N) and below 2^31.
    """
    if degree & (degree - 1) or degree < ROWS or prime % (2 * degree) != 1 or prime >= LARGEST_PRIME:
        raise ValueError(f"no transform of degree {degree} modulo {prime}")
    powers = (pow(base, (prime - 1) // (2 * degree), prime) for base in range(2, prime))
    return next(power for power in powers if pow(power, degree, prime) == prime - 1)


def twiddles(degree: int, prime: int, *, inverse: bool = False) -> Twiddles:
    """The factors ψ^b(j), or their inverses, where b reverses log2(N) bits."""
    root = root_of_unity(degree, prime)
    root = pow(root, -1, prime) if inverse else root
    bits, columns = degree.bit_length() - 1, degree // ROWS
    factors = np.array([pow(root, int(f"{j:0{bits}b}"[::-1], 2), prime) for j in range(degree)], np.uint32)
    # A block of the first half is cut into `columns` rows by the second half, so that its m blocks are m·ROWS there.
    inner = np.zeros((columns, ROWS), np.uint32)
    blocks = 1
    while blocks < columns:
        inner[blocks : 2 * blocks] = factors[blocks * ROWS : 2 * blocks * ROWS].reshape(ROWS, blocks).T
        blocks *= 2
    return Twiddles(with_quotients(factors[:ROWS], prime), with_quotients(inner, prime))


def with_quotients(factors: Words, prime: int) -> Words:
    """uint32 [2, ...]: ``factors`` below ``prime``, and ⌊factor·2^32/prime⌋ for each."""
    return np.stack([factors, ((factors.astype(np.uint64) << _32) // np.uint64(prime)).astype(np.uint32)])


@compiled
def times(x: np.uint32, factor: np.uint32, quotient: np.uint32, prime: np.uint32) -> np.uint32:
    """x·factor mod prime, for every 32-bit x: Shoup's remainder is below 2·prime, and a minimum makes it the least."""
    high = np.uint32((np.uint64(x) * np.uint64(quotient)) >> _32)
    remainder = np.uint32(np.uint32(x * factor) - np.uint32(high * prime))
    return min(remainder, np.uint32(remainder - prime))


@compiled
def plus(x: np.uint32, y: np.uint32, prime: np.uint32) -> np.uint32:
    """x + y mod prime, for x and y below prime."""
    total = np.uint32(x + y)
    return min(total, np.uint32(total - prime))


@compiled
def minus(x: np.uint32, y: np.uint32, prime: np.uint32) -> np.uint32:
    """x - y mod prime, for x and y below prime."""
    difference = np.uint32(x - y)
    return min(difference, np.uint32(difference + prime))


@compiled
def forward(words: Words, outer: Words, inner: Words, prime: np.uint32, result: Words) -> None:
    """The transform of ``words`` [N], which are overwritten, into ``result`` [N] (see the module's text)."""
    columns = len(words) // ROWS
    blocks = 1
    while blocks < ROWS:
        size = len(words) // (2 * blocks)
        for i in range(blocks):
            low, high = words[2 * i * size : (2 * i + 1) * size], words[(2 * i + 1) * size : 2 * (i + 1) * size]
            factor, quotient = outer[0, blocks + i], outer[1, blocks + i]
            for j in range(size):
                product = times(high[j], factor, quotient, prime)
                high[j] = minus(low[j], product, prime)
                low[j] = plus(low[j], product, prime)
        blocks *= 2
    matrix = result.reshape(columns, ROWS)
    _transpose(words.reshape(ROWS, columns), matrix)
    blocks = 1
    while blocks < columns:
        size = columns // (2 * blocks)
        for i in range(blocks):
            factors, quotients = inner[0, blocks + i], inner[1, blocks + i]
            for row in range(2 * i * size, (2 * i + 1) * size):
                low, high = matrix[row], matrix[row + size]
                for j in range(ROWS):
                    product = times(high[j], factors[j], quotients[j], prime)
                    high[j] = minus(low[j], product, prime)
                    low[j] = plus(low[j], product, prime)
        blocks *= 2


@compiled
def inverse(words: Words, outer: Words, inner: Words, prime: np.uint32, result: Words) -> None:
    """N times the polynomial whose transform is ``words`` [N], which are overwritten, into ``result`` [N].

    The factor N is left to the caller, who has something to multiply with anyway.
    """
    columns = len(words) // ROWS
    matrix = words.reshape(columns, ROWS)
    blocks = columns // 2
    while blocks:
        size = columns // (2 * blocks)
        for i in range(blocks):
            factors, quotients = inner[0, blocks + i], inner[1, blocks + i]
            for row in range(2 * i * size, (2 * i + 1) * size):
                low, high = matrix[row], matrix[row + size]
                for j in range(ROWS):
                    difference = np.uint32(np.uint32(low[j] - high[j]) + prime)
                    low[j] = plus(low[j], high[j], prime)
                    high[j] = times(difference, factors[j], quotients[j], prime)
        blocks //= 2
    _transpose(matrix, result.reshape(ROWS, columns))
    blocks = ROWS // 2
    while blocks:
        size = len(words) // (2 * blocks)
        for i in range(blocks):
            low, high = result[2 * i * size : (2 * i + 1) * size], result[(2 * i + 1) * size : 2 * (i + 1) * size]
            factor, quotient = outer[0, blocks + i], outer[1, blocks + i]
            for j in range(size):
                difference = np.uint32(np.uint32(low[j] - high[j]) + prime)
                low[j] = plus(low[j], high[j], prime)
                high[j] = times(difference, factor, quotient, prime)
        blocks //= 2


@compiled
def multiply_add(
    expanded: Words,
    secret: Words,
    outer: Words,
    inner: Words,
    primes: Words,
    modulus: np.int64,
    addend: NDArray[np.int64],
    result: NDArray[np.uint64],
) -> None:
    """a_k·s + addend_k mod q = p1·p2, for :func:`fedvlm_secure.primitives.polynomial.multiply_add`.

    Args:
        expanded: the transforms of the a_k modulo p1 and p2, [k, 2, N].
        secret: the transforms of s/N and their quotients, [2, 2, N].
        outer, inner: of both primes' inverse :class:`Twiddles`, stacked.
        primes: p1 < p2, and p1^-1 mod p2 with its quotient.
        modulus: q < 2^62.
        addend: [k, N], above -q and below q.
        result: [k, N], to be filled with words below q.
    """
    degree = expanded.shape[2]
    values, residues = np.empty(degree, np.uint32), np.empty((2, degree), np.uint32)
    for k in range(len(expanded)):
        for i in range(2):
            row, factors, quotients, prime = expanded[k, i], secret[i, 0], secret[i, 1], primes[i]
            for j in range(degree):
                values[j] = times(row[j], factors[j], quotients[j], prime)
            inverse(values, outer[i], inner[i], prime, residues[i])
        # Garner: c = c1 + p1·((c2 - c1)/p1 mod p2) is the one number below q with these remainders.
        first, second, summand, target = residues[0], residues[1], addend[k], result[k]
        for j in range(degree):
            difference = np.uint32(np.uint32(second[j] - first[j]) + primes[1])
            digit = times(difference, primes[2], primes[3], primes[1])
            total = np.int64(first[j]) + np.int64(primes[0]) * np.int64(digit) + summand[j]
            total += (total >> 63) & modulus
            total -= modulus
            target[j] = total + ((total >> 63) & modulus)


@compiled
def _transpose(source: Words, target: Words) -> None:
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[j, i] = source[i, j]
