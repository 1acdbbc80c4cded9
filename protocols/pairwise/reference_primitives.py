"""Section 2 of SPEC.md: encoding and primitives of the reference implementation.

It needs the standard library and `cryptography`; none of it is secret-safe, fast or meant for production.
"""
# ruff: noqa: INP001, D103

import hashlib
import struct

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

V = "fedvlm-secure/1"
FIELD = 2**256 + 297
SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def cbor(x) -> bytes:
    if x is None or isinstance(x, bool):
        return {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[x]
    if isinstance(x, int):
        return _head(0, x)
    if isinstance(x, bytes):
        return _head(2, len(x)) + x
    if isinstance(x, str):
        return _head(3, len(x.encode())) + x.encode()
    if isinstance(x, list):
        return _head(4, len(x)) + b"".join(cbor(item) for item in x)
    return _head(5, len(x)) + b"".join(key + value for key, value in sorted((cbor(k), cbor(v)) for k, v in x.items()))


def _head(major: int, n: int) -> bytes:
    if n < 24:
        return bytes([major << 5 | n])
    size = next(size for size in (1, 2, 4, 8) if n < 1 << 8 * size)
    return bytes([major << 5 | 23 + size.bit_length()]) + n.to_bytes(size)


def uncbor(data: bytes):
    """The value whose deterministic encoding is `data`; ValueError if there is none."""
    value, _ = _item(data, 0, depth=8)
    if cbor(value) != data:  # trailing bytes, long heads, keys unsorted or repeated
        raise ValueError("not the deterministic encoding")
    return value


def _item(data: bytes, at: int, depth: int):
    if at >= len(data) or depth == 0:
        raise ValueError("ends early, or nested deeply")
    major, n, at = data[at] >> 5, data[at] & 31, at + 1
    if major == 7 and n in (20, 21, 22):
        return {20: False, 21: True, 22: None}[n], at
    if n > 27 or major in (1, 6, 7):
        raise ValueError("a type that section 2 does not have")
    if n > 23:
        size = 1 << n - 24
        n, at = int.from_bytes(data[at : at + size]), at + size
    if major == 0:
        return n, at
    if major in (2, 3):
        return (data[at : at + n] if major == 2 else data[at : at + n].decode()), at + n
    items = []
    for _ in range(n if major == 4 else 2 * n):
        item, at = _item(data, at, depth - 1)
        items.append(item)
    if major == 4:
        return items, at
    if not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("a key that is no text")
    return dict(zip(items[::2], items[1::2], strict=True)), at


def digest(label: str, *x) -> bytes:
    return hashlib.sha256(cbor([V, label, *x])).digest()


def derive(seed: bytes, label: str, *x, length: int = 32) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=cbor([V, label, *x])).derive(seed)


def public_of(key: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def sign(key: bytes, label: str, m: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(key).sign(cbor([V, label, m]))


def signed(public: bytes, label: str, m: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, cbor([V, label, m]))
    except (InvalidSignature, ValueError):
        return False
    return True


def keypair(seed: bytes) -> tuple[MLKEM768X25519PrivateKey, bytes]:
    expanded = derive(seed, "sealing-key", length=96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return MLKEM768X25519PrivateKey(mlkem, x25519), public


def seal(public: bytes, m: bytes, label: str, *x) -> bytes:
    """A box; ValueError if nothing can be sealed to this key."""
    mlkem = MLKEM768PublicKey.from_public_bytes(public[:1184])
    key = MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(public[1184:]))
    return SUITE.encrypt(m, key, info=cbor([V, label, *x]))


def unseal(key: MLKEM768X25519PrivateKey, box: bytes, label: str, *x) -> bytes:
    try:
        return SUITE.decrypt(box, key, info=cbor([V, label, *x]))
    except InvalidTag:
        raise ValueError("a box does not open") from None


def shares(seed: bytes, t: int, place: dict[str, int], rand) -> dict[str, bytes]:
    """f(place) for every name; coefficients are drawn from the highest degree down."""
    coefficients: list[int] = []
    while len(coefficients) < t - 1:
        number = int.from_bytes(rand(33)) % 2**257
        coefficients += [number] if number < FIELD else []
    coefficients = [int.from_bytes(seed), *reversed(coefficients)]
    return {v: (sum(a * i**e for e, a in enumerate(coefficients)) % FIELD).to_bytes(33) for v, i in place.items()}


def recover(points: dict[int, bytes]) -> bytes:
    """f(0), by Lagrange's formula; ValueError if it is no seed."""
    total = 0
    for i, share in points.items():
        above = below = 1
        for j in points.keys() - {i}:
            above, below = above * j % FIELD, below * (j - i) % FIELD
        total += int.from_bytes(share) * above * pow(below, -1, FIELD)
    if total % FIELD >= 2**256 or any(int.from_bytes(share) >= FIELD for share in points.values()):
        raise ValueError("the shares do not belong together")
    return (total % FIELD).to_bytes(32)


def stream(key: bytes, size: int, bits: int) -> list[int]:
    word, width = ("I", 4) if bits <= 32 else ("Q", 8)
    cipher = Cipher(algorithms.AES256(key), modes.CTR((2).to_bytes(16))).encryptor()
    return [x % 2**bits for x in struct.unpack(f"<{size}{word}", cipher.update(bytes(size * width)))]


def merkle_root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = _split(len(leaves))
    return hashlib.sha256(b"\1" + merkle_root(leaves[:k]) + merkle_root(leaves[k:])).digest()


def merkle_path(leaves: list[bytes], m: int) -> bytes:
    if len(leaves) == 1:
        return b""
    k = _split(len(leaves))
    here, there = (leaves[:k], leaves[k:]) if m < k else (leaves[k:], leaves[:k])
    return merkle_path(here, m % k) + merkle_root(there)


def path_root(leaf: bytes, m: int, n: int, path: bytes) -> bytes:
    """The root to which `path` leads from leaf m of n; empty if its length is wrong."""
    if n == 1 or len(path) < 32:
        return merkle_root([leaf]) if n == 1 and not path else b""
    k = _split(n)
    here = path_root(leaf, m % k, k if m < k else n - k, path[:-32])
    return here and hashlib.sha256(b"\1" + (here + path[-32:] if m < k else path[-32:] + here)).digest()


def _split(n: int) -> int:
    return 1 << (n - 1).bit_length() - 1  # the largest power of two below n
