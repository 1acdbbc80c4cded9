"""A randomised Hadamard rotation of any length, without padding.

Two power-of-two windows overlap to cover the vector: the first p coordinates, then the last p, with p the largest
power of two that fits. Each step is orthonormal (random signs, then a normalised Walsh-Hadamard transform), so the L2
norm is kept exactly and the inverse is the same steps backwards. Signs come from a public seed: the rotation spreads a
few large coordinates over all of them, and hides nothing.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream

Floats = NDArray[np.float64]

_FACTOR_BITS = 7  # one matrix product of 128 x 128 replaces seven passes over memory


def rotate(values: Floats, seed: bytes) -> Floats:
    """``values`` [d] rotated by the public ``seed``; a new array."""
    result = values.astype(np.float64, copy=True)
    for number, window in enumerate(_windows(len(result))):
        part = result[window]
        part *= _signs(seed, number, len(part))
        result[window] = _hadamard(part)
    return result


def unrotate(values: Floats, seed: bytes) -> Floats:
    """The inverse of :func:`rotate`; a new array."""
    result = values.astype(np.float64, copy=True)
    for number, window in reversed(list(enumerate(_windows(len(result))))):
        part = _hadamard(result[window])
        result[window] = part * _signs(seed, number, len(part))
    return result


def _windows(size: int) -> list[slice]:
    if size == 0:
        return []
    power = 1 << (size.bit_length() - 1)
    return [slice(0, power)] if power == size else [slice(0, power), slice(size - power, size)]


def _signs(seed: bytes, window: int, size: int) -> Floats:
    key = derive(Secret(seed), "rotation-signs", window)
    words = np.empty(-(-size // 64), np.dtype("<u8"))
    MaskStream(key).fill(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:size]
    signs: Floats = 1.0 - 2.0 * bits.astype(np.float64)
    return signs


def _hadamard(values: Floats) -> Floats:
    """The orthonormal Walsh-Hadamard transform of a power-of-two length, as a Kronecker product of small factors."""
    size = len(values)
    remaining = size.bit_length() - 1
    result: Floats = values
    while remaining:
        bits = min(remaining, _FACTOR_BITS)
        # Transform the leading axis, then move it last: after all factors the axes stand as they did.
        result = (_matrix(bits) @ result.reshape(1 << bits, -1)).T.reshape(-1)
        remaining -= bits
    return result / math.sqrt(size)


def _matrix(bits: int) -> Floats:
    matrix: Floats = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
