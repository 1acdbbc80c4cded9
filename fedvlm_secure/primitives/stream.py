"""Mask streams: AES-256 in counter mode, read as little-endian words.

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
    """A pseudorandom stream of bytes: read as words, uniform over Z_2^32 or Z_2^64 and so over every smaller Z_2^b."""

    def __init__(self, key: Secret) -> None:
        self._encryptor = Cipher(AES256(key.reveal()), GCM(bytes(12))).encryptor()

    def fill(self, words: Words) -> None:
        """Overwrite ``words``, a contiguous array, with the next of the stream."""
        self._encryptor.update_into(_zeros(words.nbytes), words.view(np.uint8).data)


_ZEROS = bytes(CHUNK * 8)


def _zeros(size: int) -> memoryview | bytes:
    return memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)
