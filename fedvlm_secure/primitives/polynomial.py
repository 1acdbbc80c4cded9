"""Polynomials modulo X^N + 1 with coefficients modulo q = p1·p2: the arithmetic of masks that are sums of RLWE samples.

A mask is a_k·s + e_k, where the a_k are public and uniform, s is a secret polynomial, the e_k are noise and k numbers
the polynomials of a long vector (Lyubashevsky, Peikert and Regev 2010; many a_k for one s, as in Regev 2005). Here are
the a_k, the products and the sums; noise is :mod:`fedvlm_secure.primitives.gaussian`. Both primes allow the transform
of :mod:`fedvlm_secure.primitives.ntt`, and the a_k are drawn as transforms: of a uniform polynomial, that is uniform.

Two rings are offered and no others. What they are worth is judged by the protocol, with its noise and its secrets.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.primitives import ntt
from fedvlm_secure.primitives.compiled import compiled, reading
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import NumberedStreams

Residues = NDArray[np.uint32]
Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

# Polynomials handled at once: their words stay in a core's second-level cache.
BATCH = 32
# Words read ahead of need, to replace rejected ones: one polynomial in three needs any, fewer than one in 10^20 more.
RESERVE = 16


@dataclass(frozen=True)
class PolynomialRing:
    """Z_q[X]/(X^degree + 1) for q = primes[0]·primes[1]; ascending primes ≡ 1 (mod 2·degree) below 2^31."""

    degree: int
    primes: tuple[int, int]

    @cached_property
    def modulus(self) -> int:
        """q = p1·p2, below 2^62."""
        return self.primes[0] * self.primes[1]

    @property
    def bits(self) -> int:
        """How many bits hold a coefficient."""
        return self.modulus.bit_length()

    def transform(self, values: Integers) -> Residues:
        """The transforms modulo both primes of a polynomial, int64 [N], as uint32 [2, N] in the order of ``ntt``.

        Raises:
            ValueError: ``values`` has another shape or type.
        """
        if values.shape != (self.degree,) or values.dtype != np.int64:
            raise ValueError(f"a polynomial has {self.degree} coefficients, not {values.dtype} {list(values.shape)}")
        result = np.empty((2, self.degree), np.uint32)
        for prime, factors, row in zip(self.primes, self._forward, result, strict=True):
            ntt.forward((values % prime).astype(np.uint32), factors.outer, factors.inner, np.uint32(prime), row)
        return result

    def product(self, expanded: Residues, secret_ntt: Residues) -> Words:
        """a_k·s mod q, uint64 [k, N]: :func:`multiply_add` without an addend."""
        return multiply_add(self, expanded, secret_ntt, np.zeros((len(expanded), self.degree), np.int64))

    @cached_property
    def _forward(self) -> tuple[ntt.Twiddles, ...]:
        return tuple(ntt.twiddles(self.degree, prime) for prime in self.primes)

    @cached_property
    def tables(self) -> tuple[Residues, Residues, Residues, np.int64]:
        """What :func:`multiply_add` looks up: the factors of the inverse transforms modulo both primes, ``outer`` and
        ``inner``; p1, p2, p1^-1 mod p2 and that one's quotient; and q.
        """
        first, second = self.primes
        both = [ntt.twiddles(self.degree, prime, inverse=True) for prime in self.primes]
        back = ntt.with_quotients(np.array(pow(first, -1, second), np.uint32), second)
        constants = np.array([first, second, *back], np.uint32)
        outer, inner = np.stack([each.outer for each in both]), np.stack([each.inner for each in both])
        return outer, inner, constants, np.int64(self.modulus)


# The largest primes ≡ 1 (mod 4096) below 2^25 and 2^26: q < 2^51.
SMALL = PolynomialRing(2048, (33550337, 67104769))
# The two largest primes ≡ 1 (mod 8192) below 2^31: q < 2^62.
LARGE = PolynomialRing(4096, (2147352577, 2147377153))


def expand(key: Secret, ring: PolynomialRing, first: int, count: int) -> Residues:
    """The transforms of a_first .. a_(first+count-1), each uniform and public: uint32 [count, 2, N].

    Polynomial k is read from stream k of ``key`` (:class:`~fedvlm_secure.primitives.stream.NumberedStreams`) as
    little-endian words of 32 bits. Let b be the bit length of a prime p. The first N words, each cut to its lowest b
    bits, are the values modulo p1, and the next N those modulo p2, likewise. Then, in the order in which the values
    stand, each value that is not below its prime is replaced by the next word of the stream, cut to as many bits, and
    again until it is below. No value depends on ``first`` or ``count``.
    """
    streams, result = NumberedStreams(key), np.empty((count, 2, ring.degree), np.uint32)
    for start in range(0, count, BATCH):
        part, reserve = result[start : start + BATCH], RESERVE
        while not _read(streams, ring, first + start, reserve, part):
            reserve *= 2
    return result


def _read(streams: NumberedStreams, ring: PolynomialRing, first: int, reserve: int, result: Residues) -> bool:
    """Fill ``result`` as :func:`expand` says; false if a polynomial needs more than ``reserve`` replacements."""
    words = np.empty((len(result), 2 * ring.degree + reserve), "<u4")
    for number, row in enumerate(words, first):
        streams.fill(number, row)
    masks = [(1 << prime.bit_length()) - 1 for prime in ring.primes]
    return _accept(words, np.array([ring.primes, masks], np.uint32), result)


def multiply_add(ring: PolynomialRing, expanded: Residues, secret_ntt: Residues, addend: Integers | Words) -> Words:
    """c_k = a_k·s + addend_k mod q, as uint64 [k, N] below q.

    Args:
        expanded: the transforms of the a_k, uint32 [k, 2, N], from :func:`expand`.
        secret_ntt: the transform of s, uint32 [2, N], from :meth:`PolynomialRing.transform`.
        addend: int64 or uint64 [k, N], each above -q and below q.

    Raises:
        ValueError: shapes do not fit, or an addend is out of range.
    """
    if expanded.shape != (len(addend), 2, ring.degree):
        raise ValueError(f"{expanded.shape} words for {len(addend)} polynomials of degree {ring.degree}")
    over, addend = _over_degree(ring, secret_ntt), _in_range(ring, addend)
    result = np.empty(addend.shape, np.uint64)
    ntt.multiply_add(reading(expanded, np.uint32), over, *ring.tables, addend, result)
    return result


def mask(key: Secret, ring: PolynomialRing, secret_ntt: Residues, addend: Integers | Words, first: int = 0) -> Words:
    """a_k·s + addend_k mod q for the a_k of ``key`` from ``first`` on: :func:`expand` and :func:`multiply_add` at once.

    Nothing but the result grows with the number of polynomials. A sum of masks is taken off by adding to it, with
    another call, the product of the same a_k with the negative of the sum of the secrets.

    Raises:
        ValueError: shapes do not fit, or an addend is out of range.
    """
    over, addend = _over_degree(ring, secret_ntt), _in_range(ring, addend)
    result = np.empty(addend.shape, np.uint64)
    for start in range(0, len(addend), BATCH):
        part = slice(start, start + BATCH)
        expanded = expand(key, ring, first + start, len(addend[part]))
        ntt.multiply_add(reading(expanded, np.uint32), over, *ring.tables, addend[part], result[part])
    return result


def _in_range(ring: PolynomialRing, addend: Integers | Words) -> Integers:
    if addend.shape != (len(addend), ring.degree) or addend.dtype not in (np.int64, np.uint64):
        raise ValueError(f"addends are {addend.dtype} {list(addend.shape)} for degree {ring.degree}")
    if addend.size and not (-ring.modulus < addend.min() and addend.max() < ring.modulus):
        raise ValueError("an addend must be above -q and below q")
    return reading(addend.astype(np.int64, copy=False), np.int64)


def _over_degree(ring: PolynomialRing, secret_ntt: Residues) -> Residues:
    """``secret_ntt``/N with quotients, uint32 [2, 2, N]: ``ntt.inverse`` multiplies by N."""
    if secret_ntt.shape != (2, ring.degree):
        raise ValueError(f"a transform of shape {secret_ntt.shape} for degree {ring.degree}")
    both = []
    for prime, row in zip(ring.primes, secret_ntt, strict=True):
        over = row * np.uint64(pow(ring.degree, -1, prime)) % np.uint64(prime)
        both.append(ntt.with_quotients(over.astype(np.uint32), prime))
    return np.stack(both)


@compiled
def _accept(words: Residues, bounds: Residues, result: Residues) -> bool:
    """``bounds`` holds the primes and the masks. Everything here is public: it may branch on values."""
    degree = result.shape[2]
    for k in range(len(result)):
        following = 2 * degree
        for i in range(2):
            source, row, prime, mask = words[k, i * degree : (i + 1) * degree], result[k, i], bounds[0, i], bounds[1, i]
            largest = np.uint32(0)
            for j in range(degree):
                row[j] = source[j] & mask
                largest = max(largest, row[j])
            if largest < prime:
                continue
            for j in range(degree):
                while row[j] >= prime:
                    if following == words.shape[1]:
                        return False
                    row[j] = words[k, following] & mask
                    following += 1
    return True
