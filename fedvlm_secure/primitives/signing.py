"""Ed25519 identities (RFC 8032). A signature covers version, purpose and message, never bare bytes."""

from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.sealing import SealingKey
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.wire import encode

SIGNATURE_BYTES = 64

# Where y of a curve point stands in its encoding, the field's prime, and y of the points whose order divides 8.
_Y_BITS, _PRIME = 255, 2**255 - 19
_Y_OF_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_Y_OF_LOW_ORDER = {0, 1, _PRIME - 1, _Y_OF_ORDER_8, _PRIME - _Y_OF_ORDER_8}


class SignatureError(ValueError):
    """The signature is not the named key's signature of this message for this purpose."""


@dataclass(frozen=True)
class Identity:
    """A party's long-term keys, all of them functions of one 32-byte secret: the Ed25519 seed."""

    seed: Secret

    @classmethod
    def generate(cls) -> "Identity":
        """A fresh identity from the operating system's randomness."""
        return cls(Secret.generate())

    @cached_property
    def public(self) -> bytes:
        """The 32-byte public signing key."""
        return self._key.public_key().public_bytes_raw()

    @cached_property
    def sealing(self) -> SealingKey:
        """The key pair to which others seal what only this party may read, whatever the round."""
        return SealingKey(derive(self.seed, "member-sealing"))

    def sign(self, purpose: str, message: bytes) -> bytes:
        """The 64-byte signature over (version, purpose, message)."""
        return self._key.sign(_signed(purpose, message))

    @cached_property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed.reveal())


def verify(public: bytes, purpose: str, message: bytes, signature: bytes) -> None:
    """Raise :class:`SignatureError` unless ``signature`` is ``public``'s over (version, purpose, message)."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _signed(purpose, message))
    except (InvalidSignature, ValueError):
        raise SignatureError(f"not a valid signature for {purpose}") from None


def check_public(public: bytes) -> None:
    """Raise :class:`SignatureError` if ``public`` is of low order: anyone can sign under such a key, often 32 zeros."""
    if int.from_bytes(public, "little") % 2**_Y_BITS % _PRIME in _Y_OF_LOW_ORDER:
        raise SignatureError("a key of low order, under which anyone can sign")


def _signed(purpose: str, message: bytes) -> bytes:
    return encode([SPEC_VERSION, purpose, message])
