"""Words of 33 to 62 bits without gaps between them: the form in which coefficients modulo q travel.

Bit j of the packed bytes is bit j mod 8 of byte j // 8, counted from the lowest, and word i takes the bits from i·bits
on, lowest first. Words come in groups of 64, so that a group fills ``bits`` whole little-endian words of 64 bits;
polynomials have a multiple of that many coefficients.
"""

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.primitives.compiled import compiled, reading

Words = NDArray[np.uint64]

GROUP = 64
LEAST_BITS, MOST_BITS = 33, 62

_1, _63 = np.uint64(1), np.uint64(63)


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` words take.

    Raises:
        ValueError: ``count`` is no multiple of 64, or ``bits`` is not 33 to 62.
    """
    if count % GROUP or not LEAST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"{count} words of {bits} bits; packing takes multiples of {GROUP} words of 33 to 62 bits")
    return count * bits // 8


def pack(words: Words, bits: int) -> bytes:
    """The words, uint64 [count], one after the other.

    Raises:
        ValueError: a word needs more than ``bits`` bits, or as :func:`packed_size`.
    """
    packed = np.empty(packed_size(len(words), bits) // 8, "<u8")
    if _pack(reading(words, np.uint64), np.uint64(bits), packed) >> bits:
        raise ValueError(f"a word of more than {bits} bits")
    return packed.tobytes()


def unpack(data: bytes | bytearray | memoryview, bits: int, count: int) -> Words:
    """The inverse of :func:`pack`: uint64 [count], each below 2^bits.

    Raises:
        ValueError: ``data`` has another size than ``count`` words, or as :func:`packed_size`.
    """
    words = np.empty(count, np.uint64)
    _unpack(_groups(data, bits, count), np.uint64(bits), words)
    return words


def add_packed(total: Words, data: bytes | bytearray | memoryview, bits: int, modulus: int) -> None:
    """Add packed words to ``total``, uint64 [count], whose words are below ``modulus`` before and after.

    Sums are reduced at once: that costs less than what decides when to do it.

    Raises:
        ValueError: a packed word is not below ``modulus``, or as :func:`unpack`; ``total`` is as before then.
    """
    if total.dtype != np.uint64:
        raise TypeError(f"a total of {total.dtype} where uint64 is needed")
    if not 0 < modulus <= 1 << bits:
        raise ValueError(f"modulus {modulus} for words of {bits} bits")
    if _add(_groups(data, bits, len(total)), np.uint64(bits), np.uint64(modulus), total) >= modulus:
        # Without the words again, each total is what it was or less than that by the modulus; 2^64 wraps round.
        total -= unpack(data, bits, len(total))
        total += np.uint64(modulus)
        total %= np.uint64(modulus)
        raise ValueError("a packed word is not below the modulus")


def _groups(data: bytes | bytearray | memoryview, bits: int, count: int) -> Words:
    if len(data) != packed_size(count, bits):
        raise ValueError(f"{len(data)} bytes are not {count} words of {bits} bits")
    return reading(np.frombuffer(data, "<u8"), np.uint64)


@compiled
def _pack(words: Words, bits: np.uint64, packed: Words) -> np.uint64:
    """Fill ``packed``; return all words ORed together."""
    every, part, filled, place = np.uint64(0), np.uint64(0), np.uint64(0), 0
    for word in words:
        every |= word
        part |= word << filled
        filled += bits
        if filled > _63:
            packed[place] = part
            place += 1
            filled -= np.uint64(64)
            part = word >> (bits - filled)
    return every


@compiled
def _word(packed: Words, index: np.uint64, bits: np.uint64) -> np.uint64:
    """Word ``index``, from the one or two words of ``packed`` that it lies in."""
    position = index * bits
    shift = position & _63
    low, high = packed[position >> np.uint64(6)], packed[(position + bits - _1) >> np.uint64(6)]
    # If both are one, what the second term adds lies above the word's bits.
    return np.uint64(((low >> shift) | ((high << _1) << (_63 - shift))) & ((_1 << bits) - _1))


@compiled
def _unpack(packed: Words, bits: np.uint64, words: Words) -> None:
    for i in range(len(words)):
        words[i] = _word(packed, np.uint64(i), bits)


@compiled
def _add(packed: Words, bits: np.uint64, modulus: np.uint64, total: Words) -> np.uint64:
    """Add to ``total``, subtract the modulus where the sum reaches it, and return the largest packed word."""
    largest = np.uint64(0)
    for i in range(len(total)):
        word = _word(packed, np.uint64(i), bits)
        largest = max(largest, word)
        added = total[i] + word
        total[i] = min(added, added - modulus)
    return largest
