"""Why noised integers are summed modulo the ring: reduced one by one and then added, they would tell who had wrapped.

Everything here is computed, not drawn: one coordinate, three clients, and an attacker who sees their sum.
"""

import math

import numpy as np
import pytest

from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.secagg.encrypted.bfv import _reduced
from fedvlm_secure.secagg.encrypted.parameters import HALF_MODULUS, PLAIN_MODULUS, packing

DEVIATION, CLIENTS, MODULUS, OWN, OTHERS, EPSILON = 3.0, 3, 36, 5, 17, 4.0
REACH = 40


def noise() -> np.ndarray:
    weights = np.exp(-(np.arange(-REACH, REACH + 1) ** 2) / (2 * DEVIATION**2))
    return weights / weights.sum()


def reduced(value: int) -> np.ndarray:
    """The distribution of one client's integer, reduced to the modulus before it is sent."""
    result = np.zeros(MODULUS)
    np.add.at(result, (np.arange(-REACH, REACH + 1) + value + MODULUS // 2) % MODULUS, noise())
    return result


def summed(parts: list[np.ndarray]) -> np.ndarray:
    total = parts[0]
    for part in parts[1:]:
        total = np.convolve(total, part)
    return total


def modulo(total: np.ndarray) -> np.ndarray:
    result = np.zeros(MODULUS)
    np.add.at(result, np.arange(len(total)) % MODULUS, total)
    return result


def delta(one: np.ndarray, other: np.ndarray) -> float:
    """The least δ with which the two are (ε, δ)-close."""
    ways = ((one, other), (other, one))
    return max(float(np.maximum(p - math.exp(EPSILON) * q, 0).sum()) for p, q in ways)


def test_sums_of_reduced_integers_leak_what_sums_modulo_do_not():
    """The client's integer is 0 or 5. The others', public here, lie where wrapping is likely."""
    free = np.pad(summed([noise()] * CLIENTS), OWN)
    promised = delta(free, np.roll(free, OWN))
    as_integers = [summed([reduced(own), *[reduced(OTHERS)] * (CLIENTS - 1)]) for own in (0, OWN)]
    as_residues = [modulo(total) for total in as_integers]
    assert delta(*as_integers) > 100 * promised
    assert delta(*as_residues) <= promised
    # The sum modulo is that of the unreduced integers: it says nothing that they do not.
    shifted = modulo(np.roll(free, OTHERS * (CLIENTS - 1)))
    assert np.allclose(np.sort(as_residues[0]), np.sort(shifted), atol=1e-12)


@pytest.mark.parametrize("value", [0, 7, -HALF_MODULUS, 3 * HALF_MODULUS, -(10**15), 1 << 46])
def test_bfv_reduces_each_integer_modulo_t(value):
    (found,) = _reduced(np.array([value], np.int64)).tolist()
    assert -HALF_MODULUS <= found <= HALF_MODULUS
    assert (found - value) % PLAIN_MODULUS == 0


def test_two_noised_coordinates_never_share_a_slot():
    """From such a slot's upper coordinate one would read how often the lower one wrapped."""
    layout = VectorLayout(10, (Counter("weight", 1),), 4, 1)
    assert packing(layout, 3).per_slot > 1
    assert packing(layout, 3, tail=1).per_slot == 1


@pytest.mark.parametrize("bits", [8, 24, 32, 40])
def test_the_ring_reduces_each_integer(bits):
    ring, values = Ring(bits), np.array([0, 5, -(1 << 46), (1 << 46) + 3, -1], np.int64)
    uploaded = ring.unpack(ring.pack(ring.from_signed(values)))
    assert ((ring.to_signed(uploaded) - values) % (1 << bits) == 0).all()
    assert len(ring.pack(ring.from_signed(values))) == 5 * bits // 8
