"""Mask streams: AES-256 in counter mode, read as little-endian words and added in place.

A key serves one stream only (it is derived for one plan, pair and purpose), so every stream starts at the same counter
block: twelve zero bytes and the 32-bit number 2. That is where GCM with a zero nonce starts (NIST SP 800-38D, section
7.1), and GCM is asked for the key stream, since OpenSSL runs it at about twice the speed of its plain counter mode on
processors with vector AES, and no slower elsewhere. The tag is not used: masks need secrecy, uploads are signed.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from numpy.typing import NDArray

from fedvlm_secure.primitives.secret import Secret

Words = NDArray[np.unsignedinteger]

# Elements a stream expands at once: key stream and sum stay in a core's cache.
CHUNK = 1 << 15


class MaskStream:
    """A pseudorandom stream of words, uniform over Z_2^32 or Z_2^64 and hence over every smaller Z_2^b."""

    def __init__(self, key: Secret, word: np.dtype[np.unsignedinteger]) -> None:
        self._word = word
        self._encryptor = Cipher(AES256(key.reveal()), GCM(bytes(12))).encryptor()

    def add_to(self, total: Words) -> None:
        """``total += next words``, modulo the word size, in place."""
        np.add(total, self._next(total), out=total)

    def subtract_from(self, total: Words) -> None:
        """``total -= next words``, modulo the word size, in place."""
        np.subtract(total, self._next(total), out=total)

    def _next(self, total: Words) -> Words:
        if total.dtype != self._word:
            raise TypeError(f"a stream of {self._word} words cannot mask {total.dtype}")
        size = total.nbytes
        keystream = np.empty(size, np.uint8)
        self._encryptor.update_into(_zeros(size), keystream.data)
        return keystream.view(self._word)


_ZEROS = bytes(CHUNK * 8)


def _zeros(size: int) -> memoryview | bytes:
    return memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)
