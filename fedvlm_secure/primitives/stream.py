"""Mask streams: AES-256 in counter mode, read as little-endian words.

A key serves one stream only (it is derived for one plan, pair and purpose), so every stream starts at the same counter
block: twelve zero bytes and the 32-bit number 2. That is where GCM with a zero nonce starts (NIST SP 800-38D, section
7.1), and GCM is asked for the key stream, since OpenSSL runs it at about twice the speed of its plain counter mode on
processors with vector AES, and no slower elsewhere. The tag is not used: masks need secrecy, uploads are signed.

Where one key serves many short streams, they are numbered: stream n starts at the counter block n·2^64.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
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


class NumberedStreams:
    """AES-256 in plain counter mode: 2^64 streams of up to 2^68 bytes under one key, told apart by their number."""

    def __init__(self, key: Secret) -> None:
        self._encryptor = Cipher(AES256(key.reveal()), CTR(bytes(16))).encryptor()

    def fill(self, number: int, words: Words) -> None:
        """Overwrite ``words``, a contiguous array, with the start of stream ``number``, 0..2^64-1."""
        self._encryptor.reset_nonce((number << 64).to_bytes(16))
        self._encryptor.update_into(_zeros(words.nbytes), words.view(np.uint8).data)


_ZEROS = bytes(CHUNK * 8)


def _zeros(size: int) -> memoryview | bytes:
    return memoryview(_ZEROS)[:size] if size <= len(_ZEROS) else bytes(size)
