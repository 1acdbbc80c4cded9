"""Packing against one Python integer that holds all words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm_secure.primitives import packing
from fedvlm_secure.primitives.packing import add_packed, pack, packed_size, unpack
from fedvlm_secure.primitives.polynomial import LARGE, SMALL

BITS = range(33, 63)


def packed_plainly(words: list[int], bits: int) -> bytes:
    whole = sum(word << (bits * index) for index, word in enumerate(words))
    return whole.to_bytes(len(words) * bits // 8, "little")


def drawn(seed: int, below: int, count: int) -> np.ndarray:
    words = np.random.default_rng(seed).integers(0, below, count, dtype=np.uint64)
    words[:: max(1, count // 5)] = below - 1
    return words


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [0, 64, 192, 2048])
def test_words_lie_end_to_end(bits, count):
    words = drawn(bits, 1 << bits, count)
    data = pack(words, bits)
    assert data == packed_plainly(words.tolist(), bits)
    assert len(data) == packed_size(count, bits)
    for form in (data, bytearray(data), memoryview(bytes(3) + data)[3:]):
        assert (unpack(form, bits, count) == words).all()


@settings(deadline=None)
@given(st.sampled_from(BITS), st.data())
def test_one_word_alone_comes_back(bits, data):
    """Nothing leaks into a word's neighbours, wherever it stands."""
    place, word = data.draw(st.integers(0, 127)), data.draw(st.integers(0, (1 << bits) - 1))
    words = np.zeros(128, np.uint64)
    words[place] = word
    assert pack(words, bits) == packed_plainly(words.tolist(), bits)
    assert (unpack(pack(words, bits), bits, 128) == words).all()


@pytest.mark.parametrize("bits", BITS)
def test_no_word_is_read_from_beyond_the_packed_ones(bits):
    """Compiled, that would go unnoticed."""
    packed = np.full(bits, (1 << 64) - 1, np.uint64)
    for index in range(64):
        assert packing._word.py_func(packed, np.uint64(index), np.uint64(bits)) == (1 << bits) - 1


@pytest.mark.parametrize(("bits", "modulus"), [(51, SMALL.modulus), (62, LARGE.modulus), (33, 1 << 33), (62, 1 << 62)])
def test_packed_words_are_added(bits, modulus):
    total, expected = drawn(1, modulus, 256), drawn(1, modulus, 256).tolist()
    for upload in range(5):
        words = drawn(upload, modulus, 256)
        add_packed(total, pack(words, bits), bits, modulus)
        expected = [(one + other) % modulus for one, other in zip(expected, words.tolist(), strict=True)]
        assert total.tolist() == expected


@pytest.mark.parametrize("outside", [0, 1, (1 << 51) - 1 - SMALL.modulus])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_word_from_outside_the_ring_changes_nothing(outside, place):
    total, words = drawn(1, SMALL.modulus, 64), drawn(2, SMALL.modulus, 64)
    words[place] = SMALL.modulus + outside
    for start in (total, np.zeros_like(total), np.full_like(total, SMALL.modulus - 1)):
        before = start.copy()
        with pytest.raises(ValueError, match="not below the modulus"):
            add_packed(start, pack(words, 51), 51, SMALL.modulus)
        assert (start == before).all()


def test_misuse_is_refused():
    words = drawn(1, 1 << 51, 64)
    data = pack(words, 51)
    for bits, count in ((51, 8), (51, 65), (32, 64), (63, 64)):
        with pytest.raises(ValueError, match="multiples of 64 words of 33 to 62 bits"):
            packed_size(count, bits)
    for wrong in (data[:-1], data + b"0", b""):
        with pytest.raises(ValueError, match="are not 64 words"):
            unpack(wrong, 51, 64)
        with pytest.raises(ValueError, match="are not 64 words"):
            add_packed(words, wrong, 51, 1 << 51)
    with pytest.raises(TypeError, match="int64 where uint64"):
        pack(words.view(np.int64), 51)
    with pytest.raises(TypeError, match="int64 where uint64"):
        add_packed(words.view(np.int64), data, 51, 1 << 51)
    with pytest.raises(ValueError, match="more than 50 bits"):
        pack(words, 50)
    for modulus in (0, (1 << 51) + 1):
        with pytest.raises(ValueError, match="modulus"):
            add_packed(words, data, 51, modulus)
