"""Sealed boxes: single-shot HPKE (RFC 9180) with the hybrid KEM ML-KEM-768 + X25519, HKDF-SHA256 and AES-256-GCM.

Hybrid, because recorded traffic must open neither to whoever breaks X25519 later nor to whoever finds a flaw in
ML-KEM. Authentication is not HPKE's here: every box travels in a signed envelope.
"""

from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import Context, derive
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.wire import encode

_MLKEM_PUBLIC, _X25519_PUBLIC, _MLKEM_SEED = 1184, 32, 64
_MLKEM_CIPHERTEXT, _TAG = 1088, 16
PUBLIC_BYTES = _MLKEM_PUBLIC + _X25519_PUBLIC
OVERHEAD_BYTES = _MLKEM_CIPHERTEXT + _X25519_PUBLIC + _TAG  # what a box is longer than its plaintext

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class SealError(ValueError):
    """A public key is malformed, or a box does not open with this key and context."""


@dataclass(frozen=True)
class SealingKey:
    """A key pair that is a function of a 32-byte seed: whoever recovers the seed recovers the key, and no other."""

    seed: Secret

    @cached_property
    def public(self) -> bytes:
        """ML-KEM-768 encapsulation key (1,184 bytes) then X25519 public key (32 bytes)."""
        mlkem, x25519 = self._halves
        return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()

    def open(self, box: bytes, purpose: str, *context: Context) -> Secret:
        """The plaintext of ``box``; raises :class:`SealError` if it was sealed otherwise than for this context."""
        try:
            return Secret(_SUITE.decrypt(box, MLKEM768X25519PrivateKey(*self._halves), _info(purpose, context)))
        except (InvalidTag, ValueError):
            raise SealError(f"a sealed box for {purpose} does not open") from None

    @cached_property
    def _halves(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        expanded = derive(self.seed, "sealing-key", length=_MLKEM_SEED + 32).reveal()
        return (
            MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED]),
            X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED:]),
        )


def seal(public: bytes, plaintext: Secret, purpose: str, *context: Context) -> bytes:
    """``plaintext`` sealed to ``public`` for one purpose and context; raises :class:`SealError` on a malformed key."""
    if len(public) != PUBLIC_BYTES:
        raise SealError(f"a sealing key has {PUBLIC_BYTES} bytes, not {len(public)}")
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
        )
        return _SUITE.encrypt(plaintext.reveal(), key, _info(purpose, context))
    except ValueError:
        raise SealError("a malformed sealing key") from None


def check_public(public: bytes) -> None:
    """Raise :class:`SealError` if nothing can be sealed to ``public``: wrong length, encoding or a low-order point."""
    seal(public, Secret(b""), "check")


def _info(purpose: str, context: tuple[Context, ...]) -> bytes:
    return encode([SPEC_VERSION, purpose, *context])
