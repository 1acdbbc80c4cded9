"""The ring Z_2^b in which vectors are masked and summed: words in memory, exactly b/8 bytes a value on the wire.

Whole bytes and a power-of-two modulus make a masked upload uniform *as bytes*, with nothing left over to tell it from
random. Sums wrap in the machine word, which is a multiple of 2^b, and are reduced once at the end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True)
class Ring:
    """Z_2^bits with ``bits`` a multiple of 8 up to 64."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in range(8, 65, 8):
            raise ValueError(f"ring of {self.bits} bits; it must be a multiple of 8 from 8 to 64")

    @property
    def word(self) -> np.dtype[np.unsignedinteger]:
        """The little-endian machine word that holds one value: ``uint32`` up to 32 bits, else ``uint64``."""
        return np.dtype("<u4") if self.bits <= 32 else np.dtype("<u8")

    @property
    def value_bytes(self) -> int:
        """Bytes one value takes on the wire."""
        return self.bits // 8

    def zeros(self, size: int) -> Words:
        """``size`` words of zero."""
        return np.zeros(size, self.word)

    def from_signed(self, values: NDArray[np.int64]) -> Words:
        """Signed integers as words; the upper bits of a word beyond ``bits`` carry no meaning."""
        return values.astype(self.word)

    def to_signed(self, words: Words) -> NDArray[np.int64]:
        """The representatives in [-2^(bits-1), 2^(bits-1)) as ``int64``."""
        shift = np.uint64(64 - self.bits)
        return (words.astype(np.uint64) << shift).view(np.int64) >> np.int64(shift)

    def pack(self, words: Words) -> bytes:
        """``bits/8`` bytes a value, little-endian."""
        as_bytes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, self.word.itemsize)
        return as_bytes[:, : self.value_bytes].tobytes()

    def unpack(self, data: bytes | memoryview) -> Words:
        """The inverse of :meth:`pack`, to be read only: the words overlap, and their upper bits carry no meaning.

        Raises:
            ValueError: ``data`` is no whole number of values.
        """
        count, rest = divmod(len(data), self.value_bytes)
        if rest:
            raise ValueError(f"{len(data)} bytes are no whole number of {self.value_bytes}-byte values")
        # Reading whole words at a stride of b/8 bytes is five times faster than widening every value first.
        padded = b"".join((data, bytes(self.word.itemsize - self.value_bytes)))
        return np.ndarray((count,), self.word, padded, strides=(self.value_bytes,))
