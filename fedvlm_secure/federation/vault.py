"""What a party must hide from whoever reads its disk: sealed under a key that follows from its identity's secret.

With a passphrase on the identity's key file, a stolen disk or a backup opens nothing; without one, the files are no
better hidden than the key beside them.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import WireError

_NONCE_BYTES = 12


class Vault:
    """AES-256-GCM for one purpose of one party. Every sealing draws a fresh nonce of 96 bits."""

    def __init__(self, identity: Identity, purpose: str) -> None:
        self._cipher = AESGCM(derive(identity.seed, "at-rest", purpose).reveal())

    def seal(self, data: bytes) -> bytes:
        """``data``, hidden, 28 bytes longer."""
        nonce = entropy.random_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, None)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed; raises :class:`WireError` if it was by another party, for another purpose, or changed."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise WireError("it is damaged, or was sealed with another key") from None
