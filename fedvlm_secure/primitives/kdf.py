"""Key derivation: HKDF-SHA256 (RFC 5869) whose ``info`` is canonical CBOR of version, purpose and context.

The context of a derivation inside a round begins with the plan's hash, which binds run, round, attempt, cohort, model
and layout. Canonical CBOR of a list is injective, so two different contexts never give one ``info``.
"""

import hashlib

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.secret import SECRET_BYTES, Secret
from fedvlm_secure.primitives.wire import encode

Context = bytes | str | int


def derive(secret: Secret, purpose: str, *context: Context, length: int = SECRET_BYTES) -> Secret:
    """``length`` bytes derived from ``secret`` for one purpose and context."""
    info = encode([SPEC_VERSION, purpose, *context])
    return Secret(HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret.reveal()))


def digest(purpose: str, *context: Context | list[bytes] | list[str]) -> bytes:
    """SHA-256 of the canonical encoding of version, purpose and context."""
    return hashlib.sha256(encode([SPEC_VERSION, purpose, *context])).digest()
