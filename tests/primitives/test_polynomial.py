"""The transform and the ring's arithmetic against their definitions, in Python's integers."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm_secure.primitives import ntt, polynomial
from fedvlm_secure.primitives.polynomial import LARGE, SMALL, PolynomialRing, expand, mask, multiply_add
from fedvlm_secure.primitives.secret import Secret

TINY = PolynomialRing(64, (257, 12289))  # 12289 of 2^14 words are below the prime: replacements are common
WIDE = PolynomialRing(128, (7681, 2147377153))
KEY = Secret(bytes(range(32)))


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def exponents(degree: int) -> list[int]:
    """Of ψ, in the order in which the transform holds the values."""
    bits, columns = degree.bit_length() - 1, degree // 64
    return [2 * int(f"{r * columns + c:0{bits}b}"[::-1], 2) + 1 for c in range(columns) for r in range(64)]


def transform(values: list[int], prime: int) -> list[int]:
    """By Horner's rule."""
    root, result = ntt.root_of_unity(len(values), prime), []
    for exponent in exponents(len(values)):
        point, value = pow(root, exponent, prime), 0
        for coefficient in reversed(values):
            value = (value * point + coefficient) % prime
        result.append(value)
    return result


def times(one: list[int], other: list[int], modulus: int) -> list[int]:
    """The product modulo X^N + 1 and the modulus: schoolbook, with numpy's convolution of Python integers."""
    full = [*np.convolve(np.array(one, object), np.array(other, object)).tolist(), 0]
    return [(low - high) % modulus for low, high in zip(full[: len(one)], full[len(one) :], strict=True)]


def keystream(key: Secret, number: int, size: int) -> bytes:
    """AES on one counter block after the other."""
    encryptor = Cipher(AES256(key.reveal()), ECB()).encryptor()
    return b"".join(encryptor.update(((number << 64) + block).to_bytes(16)) for block in range(-(-size // 16)))


def expanded_plainly(key: Secret, ring: PolynomialRing, number: int) -> list[list[int]]:
    words = iter(memoryview(keystream(key, number, 64 * ring.degree)).cast("I").tolist())
    both = [[next(words) % (1 << prime.bit_length()) for _ in range(ring.degree)] for prime in ring.primes]
    for prime, values in zip(ring.primes, both, strict=True):
        for place in range(ring.degree):
            while values[place] >= prime:
                values[place] = next(words) % (1 << prime.bit_length())
    return both


def from_transforms(ring: PolynomialRing, transforms: np.ndarray) -> list[int]:
    """The polynomial modulo q with these transforms: interpolated as Σ_e v_e·ψ^(-e·i) / N and put together by CRT."""
    both = []
    for prime, row in zip(ring.primes, transforms.tolist(), strict=True):
        back = pow(ntt.root_of_unity(ring.degree, prime), -1, prime)
        powers = [pow(back, each, prime) for each in range(2 * ring.degree)]
        degrees = np.arange(ring.degree)[:, np.newaxis]
        matrix = np.array(powers)[np.array(exponents(ring.degree)) * degrees % len(powers)]
        over = pow(ring.degree, -1, prime)
        both.append([value * over % prime for value in (matrix * np.array(row) % prime).sum(axis=1).tolist()])
    first, second = ring.primes
    inverses = second * pow(second, -1, first), first * pow(first, -1, second)
    return [(one * inverses[0] + other * inverses[1]) % ring.modulus for one, other in zip(*both, strict=True)]


def test_the_primes_are_the_largest_of_their_kind():
    def largest(degree: int, bits: int) -> Iterator[int]:
        return filter(is_prime, range((1 << bits) + 1 - 2 * degree, 0, -2 * degree))

    assert SMALL.primes == (next(largest(2048, 25)), next(largest(2048, 26)))
    assert LARGE.primes == tuple(reversed(list(islice(largest(4096, 31), 2))))
    assert (SMALL.bits, LARGE.bits) == (51, 62)
    assert all(ring.modulus == ring.primes[0] * ring.primes[1] < 1 << ring.bits for ring in (SMALL, LARGE))


@pytest.mark.parametrize(("degree", "prime"), [(64, 257), (128, 12289), (512, 2147377153), (2048, 33550337)])
def test_the_root_is_a_primitive_one(degree, prime):
    root = ntt.root_of_unity(degree, prime)
    assert pow(root, degree, prime) == prime - 1
    assert len({pow(root, odd, prime) for odd in range(1, 2 * degree, 2)}) == degree


@pytest.mark.parametrize(("degree", "prime"), [(4096, 12289), (96, 193), (64, 2**31 + 11 * 128 + 1), (32, 193)])
def test_what_has_no_transform_is_refused(degree, prime):
    with pytest.raises(ValueError, match="no transform"):
        ntt.root_of_unity(degree, prime)


@pytest.mark.parametrize("ring", [TINY, WIDE, SMALL])
def test_a_transform_is_the_values_at_odd_powers(ring):
    rng = np.random.default_rng(1)
    values = rng.integers(-(1 << 62), 1 << 62, ring.degree)
    for prime, row in zip(ring.primes, ring.transform(values).tolist(), strict=True):
        assert row == transform([value % prime for value in values.tolist()], prime)


@pytest.mark.parametrize("value", [-1, 0, 1, 2147377152])
@pytest.mark.parametrize("ring", [TINY, WIDE, SMALL, LARGE])
def test_forth_and_back_at_the_edges(ring, value):
    """All words at the largest or least value, where an unreduced sum would overflow."""
    for prime in ring.primes:
        words = np.full(ring.degree, value % prime, np.uint32)
        there, back = np.empty_like(words), np.empty_like(words)
        for make, inverse, source, target in (
            (ntt.forward, False, words, there),
            (ntt.inverse, True, there, back),
        ):
            factors = ntt.twiddles(ring.degree, prime, inverse=inverse)
            make(source.copy(), factors.outer, factors.inner, np.uint32(prime), target)
        assert there.max() < prime
        assert (back == ring.degree * (value % prime) % prime).all()


@settings(deadline=None)
@given(st.data())
def test_products_modulo_a_prime(data):
    """Every 32-bit x, every factor below every prime of the two rings."""
    prime = data.draw(st.sampled_from([*SMALL.primes, *LARGE.primes, 257]))
    edges = st.sampled_from([0, 1, prime - 1])
    x, factor = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, prime - 1) | edges)
    arguments = (np.uint32(each) for each in (x, factor, (factor << 32) // prime, prime))
    assert ntt.times(*arguments) == x * factor % prime


@pytest.mark.parametrize(("ring", "count"), [(TINY, 5), (WIDE, 3), (SMALL, 1)])
def test_the_words_of_a_mask_are_those_of_the_schoolbook(ring, count):
    rng = np.random.default_rng(2)
    secret = rng.integers(-20, 21, ring.degree)
    addend = rng.integers(1 - ring.modulus, ring.modulus, (count, ring.degree))
    addend[:, 0], addend[:, 1] = ring.modulus - 1, 1 - ring.modulus
    expanded = expand(KEY, ring, 7, count)
    result = multiply_add(ring, expanded, ring.transform(secret), addend)
    products = ring.product(expanded, ring.transform(secret))
    for k in range(count):
        product = times(from_transforms(ring, expanded[k]), secret.tolist(), ring.modulus)
        assert products[k].tolist() == product
        assert result[k].tolist() == [(a + b) % ring.modulus for a, b in zip(product, addend[k].tolist(), strict=True)]


@pytest.mark.parametrize("ring", [SMALL, LARGE])
def test_full_size_products_at_the_edges(ring):
    """(q-1)·X^j, whose transform has no structure, times polynomials: a rotation with signs."""
    degree, last = ring.degree, ring.modulus - 1
    rng = np.random.default_rng(3)
    for shift in (0, 1, 63, 64, degree - 1):
        monomial = np.zeros(degree, np.int64)
        monomial[shift] = last
        a = rng.integers(0, ring.modulus, degree)
        product = ring.product(ring.transform(a)[np.newaxis], ring.transform(monomial))[0].tolist()
        rotated = [-each for each in a.tolist()[: degree - shift]], a.tolist()[degree - shift :]
        assert product == [each % ring.modulus for each in (*rotated[1], *rotated[0])]


@pytest.mark.parametrize("ring", [TINY, WIDE, SMALL, LARGE])
@pytest.mark.parametrize("first", [0, 3, 2**63])
def test_public_polynomials_are_read_as_specified(ring, first):
    found = expand(KEY, ring, first, 3)
    assert found.dtype == np.uint32
    assert found.tolist() == [expanded_plainly(KEY, ring, number) for number in range(first, first + 3)]


def test_a_word_that_is_the_prime_itself_is_replaced(monkeypatch):
    def fill(self, number, words):
        words[:] = 256
        words[5], words[100], words[128:] = 257, 12289, [256 + 512 * 9, 1, *range(14)]

    monkeypatch.setattr(polynomial.NumberedStreams, "fill", fill)
    found = expand(KEY, TINY, 0, 1)[0]
    assert (found[0] == 256).all()
    assert found[1].tolist() == [1 if place == 36 else 256 for place in range(64)]


def test_a_reserve_that_is_too_short_changes_nothing(monkeypatch):
    usual = expand(KEY, TINY, 0, 50)
    monkeypatch.setattr(polynomial, "RESERVE", 1)
    assert (expand(KEY, TINY, 0, 50) == usual).all()
    monkeypatch.setattr(polynomial, "BATCH", 7)
    assert (expand(KEY, TINY, 0, 50) == usual).all()
    assert (expand(KEY, TINY, 13, 37) == usual[13:]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**40))
def test_the_sum_of_the_secrets_takes_off_the_sum_of_the_masks(clients, count, first):
    rng = np.random.default_rng(clients)
    secrets = rng.integers(-20, 21, (clients, TINY.degree))
    addends = rng.integers(-1000, 1000, (clients, count, TINY.degree))
    masks = [mask(KEY, TINY, TINY.transform(s), a, first) for s, a in zip(secrets, addends, strict=True)]
    total = np.sum(masks, axis=0, dtype=np.uint64) % np.uint64(TINY.modulus)
    opened = mask(KEY, TINY, TINY.transform(-secrets.sum(axis=0)), total, first)
    assert (opened.view(np.int64) == addends.sum(axis=0) % TINY.modulus).all()


@pytest.mark.parametrize("ring", [SMALL, LARGE])
def test_a_mask_is_its_two_parts(ring):
    addend = np.arange(3 * ring.degree).reshape(3, ring.degree)
    secret = ring.transform(np.arange(ring.degree) % 9 - 4)
    assert (mask(KEY, ring, secret, addend, 5) == multiply_add(ring, expand(KEY, ring, 5, 3), secret, addend)).all()


def test_misuse_is_refused():
    expanded, secret = expand(KEY, TINY, 0, 2), TINY.transform(np.zeros(64, np.int64))
    good = np.zeros((2, 64), np.int64)
    for outside in (TINY.modulus, -TINY.modulus, -(2**63)):
        addend = good.copy()
        addend[1, 5] = outside
        with pytest.raises(ValueError, match="above -q and below q"):
            multiply_add(TINY, expanded, secret, addend)
        with pytest.raises(ValueError, match="above -q and below q"):
            mask(KEY, TINY, secret, addend)
    for arguments in (
        (expanded[:1], secret, good),
        (expanded, secret[:1], good),
        (expanded, secret, good[:, :5]),
        (expanded, secret, good.astype(np.float64)),
    ):
        with pytest.raises(ValueError, match="degree 64"):
            multiply_add(TINY, *arguments)
    with pytest.raises(TypeError, match="uint64 where uint32"):
        multiply_add(TINY, expanded.astype(np.uint64), secret, good)
    with pytest.raises(ValueError, match="64 coefficients"):
        TINY.transform(np.zeros(65, np.int64))
    with pytest.raises(ValueError, match="not float64"):
        TINY.transform(np.zeros(64))


def test_what_is_not_used_is_not_imported():
    probe = "import sys, fedvlm_secure.secagg, fedvlm_secure.primitives.stream; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
