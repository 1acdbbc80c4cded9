"""The primitives against vectors that others published, as shipped with `cryptography_vectors`."""

import hashlib
import hmac
from collections.abc import Iterator

import cryptography_vectors
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity, SignatureError, verify
from fedvlm_secure.primitives.stream import MaskStream
from fedvlm_secure.primitives.wire import encode


def lines_of(name: str) -> list[str]:
    with cryptography_vectors.open_vector_file(name, "r") as file:
        return file.read().splitlines()


def records(name: str) -> Iterator[dict[str, str]]:
    """The `KEY = value` records of a NIST-style file, split at COUNT."""
    record: dict[str, str] = {}
    for line in [*lines_of(name), "COUNT = end"]:
        key, equals, value = (part.strip() for part in line.partition("="))
        if key == "COUNT" and record:
            yield record
            record = {}
        if equals and key != "COUNT":
            record[key.upper()] = value


def rfc5869(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 as RFC 5869 writes it, of the standard library only."""
    key = hmac.digest(salt or bytes(32), ikm, hashlib.sha256)
    block, out = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), hashlib.sha256)
        out += block
    return out[:length]


def test_hkdf_vectors_and_derive():
    vectors = list(records("KDF/rfc-5869-HKDF-SHA256.txt"))
    assert len(vectors) >= 3
    for vector in vectors:
        ikm, salt, info = (bytes.fromhex(vector.get(name, "")) for name in ("IKM", "SALT", "INFO"))
        assert rfc5869(ikm, salt, info, int(vector["L"])).hex() == vector["OKM"]
    for length in (16, 32, 96):
        info = encode([SPEC_VERSION, "purpose", b"context", 7, "name"])
        ours = derive(Secret(bytes(range(32))), "purpose", b"context", 7, "name", length=length).reveal()
        assert ours == rfc5869(bytes(range(32)), b"", info, length)


def test_aes256_ctr_vectors():
    vectors = [vector for vector in records("ciphers/AES/CTR/aes-256-ctr.txt") if "CIPHERTEXT" in vector]
    assert len(vectors) >= 3
    for vector in vectors:
        key, counter = Secret(bytes.fromhex(vector["KEY"])), int(vector["IV"], 16)
        plaintext, ciphertext = bytes.fromhex(vector["PLAINTEXT"]), bytes.fromhex(vector["CIPHERTEXT"])
        blocks = -(-len(plaintext) // 16)
        ecb = Cipher(algorithms.AES256(key.reveal()), modes.ECB()).encryptor()

        def keystream(first: int, count: int, ecb=ecb) -> bytes:
            return ecb.update(b"".join((first + block).to_bytes(16) for block in range(count)))

        assert bytes(a ^ b for a, b in zip(plaintext, keystream(counter, blocks), strict=False)) == ciphertext
        # Ours starts at counter two: the same construction that the vector has just confirmed.
        words = np.zeros(5000, np.dtype("<u8"))
        MaskStream(key, words.dtype).add_to(words)
        assert words.tobytes() == keystream(2, 2500)


@pytest.mark.parametrize("word", ["<u4", "<u8"])
def test_a_stream_in_pieces_is_the_stream_and_subtracts_to_zero(word):
    whole, pieces = np.zeros(1000, word), np.zeros(1000, word)
    MaskStream(Secret(b"k" * 32), whole.dtype).add_to(whole)
    stream = MaskStream(Secret(b"k" * 32), whole.dtype)
    for start, end in ((0, 1), (1, 17), (17, 999), (999, 1000)):
        stream.add_to(pieces[start:end])
    np.testing.assert_array_equal(whole, pieces)
    MaskStream(Secret(b"k" * 32), whole.dtype).subtract_from(pieces)
    assert not pieces.any()
    with pytest.raises(TypeError):
        MaskStream(Secret(b"k" * 32), np.dtype("<u4")).add_to(np.zeros(4, "<u8"))


def test_ed25519_vectors():
    lines = [line.split(":") for line in lines_of("asymmetric/Ed25519/sign.input")]
    assert len(lines) > 500
    for seed, public, message, signed, *_ in lines[::8]:
        identity, text = Identity(Secret(bytes.fromhex(seed)[:32])), bytes.fromhex(message)
        assert identity.public.hex() == public
        Ed25519PublicKey.from_public_bytes(identity.public).verify(bytes.fromhex(signed)[:64], text)
        # Ours is the same signature, over version, purpose and message.
        ours = identity.sign("purpose", text)
        Ed25519PublicKey.from_public_bytes(identity.public).verify(ours, encode([SPEC_VERSION, "purpose", text]))
        verify(identity.public, "purpose", text, ours)
        for bad in ((identity.public, "other", text, ours), (identity.public, "purpose", text + b"\0", ours)):
            with pytest.raises(SignatureError):
                verify(*bad)


@pytest.mark.parametrize(("public", "signature"), [(bytes(32), bytes(64)), (b"", bytes(64)), (b"\xff" * 32, b"")])
def test_malformed_keys_and_signatures_do_not_verify(public, signature):
    with pytest.raises(SignatureError):
        verify(public, "purpose", b"message", signature)
