import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.errors import MisuseError

BITS = range(8, 65, 8)


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
def test_pack_unpack(bits, data):
    ring = Ring(bits)
    values = data.draw(st.lists(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1), max_size=20))
    words = ring.from_signed(np.array(values, np.int64))
    packed = ring.pack(words)
    assert len(packed) == len(values) * bits // 8
    assert words.dtype == ring.word
    assert words.dtype.itemsize == (4 if bits <= 32 else 8)
    assert packed == b"".join((value % (1 << bits)).to_bytes(bits // 8, "little") for value in values)
    assert ring.to_signed(words).tolist() == values
    assert ring.to_signed(ring.unpack(memoryview(packed))).tolist() == values
    assert ring.pack(ring.unpack(packed)) == packed


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
def test_sums_are_those_of_the_ring(bits, data):
    """Whatever stands in a word's upper bits, which a 4- or 8-byte stream fills, the sum is right modulo 2^bits."""
    ring, top = Ring(bits), 1 << 8 * Ring(bits).word.itemsize
    rows = data.draw(st.lists(st.lists(st.integers(0, top - 1), min_size=3, max_size=3), min_size=1, max_size=6))
    total = ring.zeros(3)
    for row in rows:
        total += np.array(row, ring.word)
    over_the_wire = ring.zeros(3)
    for row in rows:
        over_the_wire += ring.unpack(ring.pack(np.array(row, ring.word)))
    for index, value in enumerate(ring.to_signed(total).tolist()):
        assert (value - sum(row[index] for row in rows)) % (1 << bits) == 0
        assert -(1 << bits - 1) <= value < 1 << bits - 1
    np.testing.assert_array_equal(ring.to_signed(total), ring.to_signed(over_the_wire))


@pytest.mark.parametrize("bits", [0, 4, 12, 65, 72, -8])
def test_other_rings_are_refused(bits):
    with pytest.raises(ValueError, match="multiple of 8"):
        Ring(bits)


def test_torn_values_are_refused():
    with pytest.raises(ValueError, match="whole number"):
        Ring(40).unpack(bytes(11))


def layout(value_bits=20, weight_max=4096, counters=(), update=5) -> VectorLayout:
    return VectorLayout(update, (Counter("weight", weight_max), *counters), value_bits, weight_max)


@given(st.integers(2, 24), st.integers(1, 1 << 20), st.integers(1, 4096), st.integers(0, 1 << 30))
def test_headroom_formula(value_bits, weight_max, clients, bound):
    largest = max(weight_max * (1 << (value_bits - 1)) + 1, bound)
    bits = 8 * -(-((clients * largest).bit_length() + 1) // 8)
    if bits > 64:
        with pytest.raises(MisuseError):
            layout(value_bits, weight_max, [Counter("loss", bound)]).ring_bits(clients)
        return
    assert layout(value_bits, weight_max, [Counter("loss", bound)]).ring_bits(clients) == bits
    # Neither the largest sum nor its negative wraps, and a ring of a byte less would not hold it.
    assert clients * largest <= (1 << bits - 1) - 1
    assert bits == 8 or clients * largest > (1 << bits - 9) - 1


def test_the_default_is_40_bits_for_100_clients():
    assert layout().ring_bits(100) == 40
    assert layout().ring_bits(255) == 40
    assert layout().ring_bits(256) == 48


@pytest.mark.parametrize(
    "wrong",
    [
        {"update": -1},
        {"update": 1 << 32},
        {"value_bits": 1},
        {"value_bits": 25},
        {"weight_max": 0},
        {"weight_max": 1 << 32},
        {"counters": [Counter("weight", 3)]},
        {"counters": [Counter("loss", 3), Counter("loss", 3)]},
    ],
)
def test_layouts_refused(wrong):
    with pytest.raises(MisuseError):
        layout(**wrong)
    with pytest.raises(MisuseError):
        VectorLayout(5, (), 20, 1)
    with pytest.raises(MisuseError):
        VectorLayout(5, (Counter("loss", 1), Counter("weight", 1)), 20, 1)
    with pytest.raises(MisuseError):
        VectorLayout(5, (Counter("weight", 2),), 20, 1)
