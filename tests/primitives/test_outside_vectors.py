"""The primitives against vectors that others published, as shipped with `cryptography_vectors`."""

import hashlib
import hmac
import json
from collections.abc import Iterator

import cryptography_vectors
import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.sealing import SealingKey, seal
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
        if key.upper() == "COUNT":
            if record:
                yield record
            record = {}
        elif equals:
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
        words = np.empty(5000, np.dtype("<u8"))
        MaskStream(key).fill(words)
        assert words.tobytes() == keystream(2, 2500)


@pytest.mark.parametrize("word", ["<u4", "<u8"])
def test_a_stream_in_pieces_is_the_stream(word):
    whole, pieces = np.zeros(100_000, word), np.zeros(100_000, word)
    MaskStream(Secret(b"k" * 32)).fill(whole)
    stream = MaskStream(Secret(b"k" * 32))
    for start, end in ((0, 1), (1, 17), (17, 40_000), (40_000, 99_999), (99_999, 100_000)):
        stream.fill(pieces[start:end])
    np.testing.assert_array_equal(whole, pieces)
    with pytest.raises(ValueError, match="contiguous"):
        stream.fill(whole[::2])


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


def test_x25519_vectors():
    vectors = list(records("asymmetric/X25519/rfc7748.txt"))
    assert len(vectors) == 3
    for vector in vectors:
        key = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["INPUT_SCALAR"]))
        point = X25519PublicKey.from_public_bytes(bytes.fromhex(vector["INPUT_U"]))
        assert key.exchange(point).hex() == vector["OUTPUT_U"]


def test_mlkem768_vectors():
    vectors = list(records("asymmetric/MLKEM/kat_MLKEM_768.rsp"))
    assert len(vectors) > 50
    for vector in vectors:
        key = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["D"] + vector["Z"]))
        assert key.public_key().public_bytes_raw().hex() == vector["PK"]
        assert key.decapsulate(bytes.fromhex(vector["CT"])).hex() == vector["SS"]


def test_aes256_gcm_vectors():
    opened, refused = 0, 0
    for vector in records("ciphers/AES/GCM/gcmDecrypt256.rsp"):
        if (len(vector.get("IV", "")), len(vector.get("TAG", ""))) != (24, 32):
            continue  # HPKE's nonces have 96 bits, its tags 128
        key, iv, text, aad, tag = (bytes.fromhex(vector[name]) for name in ("KEY", "IV", "CT", "AAD", "TAG"))
        if "PT" in vector:
            assert AESGCM(key).decrypt(iv, text + tag, aad).hex() == vector["PT"]
            opened += 1
        else:
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(iv, text + tag, aad)
            refused += 1
    assert opened > 100
    assert refused > 100


def hpke_key(mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey, enc: bytes, info: bytes, aead: int) -> bytes:
    """Key and first nonce of HPKE's base mode, of the primitives above: RFC 9180 and MLKEM768-X25519 (X-Wing)."""
    suite = b"HPKE" + b"".join(number.to_bytes(2) for number in (0x647A, 0x0001, aead))

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, hashlib.sha256)

    def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:  # no more than one block is needed
        message = length.to_bytes(2) + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, message + b"\x01", hashlib.sha256)[:length]

    point, public = enc[1088:], x25519.public_key().public_bytes_raw()
    both = mlkem.decapsulate(enc[:1088]) + x25519.exchange(X25519PublicKey.from_public_bytes(point))
    shared = hashlib.sha3_256(both + point + public + b"\\.//^\\").digest()
    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    return expand(secret, b"key", context, 32) + expand(secret, b"base_nonce", context, 12)


def test_hybrid_hpke_vectors_and_our_boxes():
    """The published vector has another AEAD (3, ChaCha20-Poly1305) than our boxes (2, AES-256-GCM)."""
    with cryptography_vectors.open_vector_file("HPKE/hpke-pq-test-vectors.json", "r") as file:
        suites = {(vector["kem_id"], vector["kdf_id"]): vector for vector in json.load(file)}
    vector = suites[0x647A, 1]
    expanded = hashlib.shake_256(bytes.fromhex(vector["skRm"])).digest(96)
    mlkem, x25519 = (
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        X25519PrivateKey.from_private_bytes(expanded[64:]),
    )
    key = hpke_key(mlkem, x25519, bytes.fromhex(vector["enc"]), bytes.fromhex(vector["info"]), vector["aead_id"])
    assert key.hex() == vector["key"] + vector["base_nonce"]
    first = vector["encryptions"][0]
    text, aad = bytes.fromhex(first["ct"]), bytes.fromhex(first["aad"])
    assert ChaCha20Poly1305(key[:32]).decrypt(key[32:], text, aad).hex() == first["pt"]
    # Ours, opened by the same construction.
    seed = bytes(range(32))
    expanded = rfc5869(seed, b"", encode([SPEC_VERSION, "sealing-key"]), 96)
    mlkem, x25519 = (
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        X25519PrivateKey.from_private_bytes(expanded[64:]),
    )
    ours = SealingKey(Secret(seed)).public
    assert ours == mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    box = seal(ours, Secret(b"a seed"), "purpose", b"context")
    key = hpke_key(mlkem, x25519, box[:1120], encode([SPEC_VERSION, "purpose", b"context"]), 2)
    assert AESGCM(key[:32]).decrypt(key[32:], box[1120:], b"") == b"a seed"
