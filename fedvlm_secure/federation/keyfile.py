"""Identity keys on disk: one 32-byte secret in a file that only its owner can read, under a passphrase if there is one.

A passphrase turns into a key by Argon2id (RFC 9106), and that seals the secret with AES-256-GCM.
"""

import os
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import SPEC_VERSION, entropy
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.secret import SECRET_BYTES, Secret
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import Limits, WireError

SHORTEST_PASSPHRASE = 8

_OWNER_ONLY = 0o600
_LIMITS = Limits(max_bytes=1024, max_depth=4, max_items=32)
_SALT_BYTES, _NONCE_BYTES = 16, 12


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess at a passphrase costs; the default is RFC 9106's second recommendation, about half a second."""

    iterations: int = 3
    lanes: int = 4
    memory_kib: int = 64 << 10

    def __post_init__(self) -> None:
        # A file from elsewhere must not take the whole machine.
        if not (1 <= self.iterations <= 16 and 1 <= self.lanes <= 16 and 8 * self.lanes <= self.memory_kib <= 1 << 19):
            raise WireError("the passphrase's cost is out of bounds: 1 to 16 iterations and lanes, up to 512 MiB")


@dataclass(frozen=True, slots=True)
class Lock:
    """How the secret is sealed: salt and cost of the passphrase's key, and the nonce."""

    salt: Annotated[bytes, _SALT_BYTES]
    nonce: Annotated[bytes, _NONCE_BYTES]
    cost: Cost

    def key(self, passphrase: str) -> AESGCM:
        """The cipher under the passphrase's key."""
        derivation = Argon2id(
            salt=self.salt,
            length=32,
            iterations=self.cost.iterations,
            lanes=self.cost.lanes,
            memory_cost=self.cost.memory_kib,
        )
        # One passphrase, however a keyboard composes its accents.
        return AESGCM(derivation.derive(unicodedata.normalize("NFC", passphrase).encode()))


@dataclass(frozen=True, slots=True)
class Header:
    """What is readable without a passphrase: the public signing key, and the lock if there is one."""

    public: Digest
    lock: Lock | None
    spec: str = SPEC_VERSION


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file: the secret itself, or sealed with the header as associated data."""

    header: Header
    secret: Secret


COST = Cost()


def create(path: Path, passphrase: str | None = None) -> Identity:
    """A new identity in a new file ``path``, which only its owner can read at any time.

    Raises:
        MisuseError: ``path`` exists, or the passphrase is too short.
    """
    identity = Identity.generate()
    if passphrase is None:
        content = KeyFile(Header(identity.public, None), identity.seed)
    else:
        if len(passphrase) < SHORTEST_PASSPHRASE:
            raise MisuseError(f"a passphrase has at least {SHORTEST_PASSPHRASE} characters; choose a longer one")
        lock = Lock(entropy.random_bytes(_SALT_BYTES), entropy.random_bytes(_NONCE_BYTES), COST)
        header = Header(identity.public, lock)
        sealed = lock.key(passphrase).encrypt(lock.nonce, identity.seed.reveal(), pack(header))
        content = KeyFile(header, Secret(sealed))
    _write_new(path, pack(content, _LIMITS))
    return identity


def load(path: Path, passphrase: Callable[[], str] | None = None) -> Identity:
    """The identity in ``path``.

    Args:
        passphrase: asked for it if the file has one; None where there is nobody to ask.

    Raises:
        MisuseError: others than the owner can read the file, it is damaged, or the passphrase is missing or wrong.
    """
    try:
        file = unpack(KeyFile, _read(path), _LIMITS)
        if file.header.spec != SPEC_VERSION:
            raise WireError(f"it speaks {file.header.spec[:40]!r}, this program {SPEC_VERSION!r}")
        identity = Identity(file.secret if file.header.lock is None else _unlock(file, path, passphrase))
        if len(identity.seed) != SECRET_BYTES or identity.public != file.header.public:
            raise WireError("secret and public key do not belong together")
    except WireError as error:
        raise MisuseError(f"{path} is damaged, or no key file: {error}") from None
    return identity


def _unlock(file: KeyFile, path: Path, passphrase: Callable[[], str] | None) -> Secret:
    assert file.header.lock is not None
    if passphrase is None:
        raise MisuseError(f"{path} has a passphrase, and there is nobody to ask; make a key without one for this use")
    lock = file.header.lock
    try:
        return Secret(lock.key(passphrase()).decrypt(lock.nonce, file.secret.reveal(), pack(file.header)))
    except InvalidTag:
        raise MisuseError(f"{path} does not open: a wrong passphrase, or a damaged file") from None


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file:
        # Of the file that is open, not of the name: the two could be swapped in between.
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            raise MisuseError(f"{path} can be read by others than its owner; make it private: chmod 600 {path}")
        return file.read(_LIMITS.max_bytes + 1)


def _write_new(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all, durably, and never over a file that is there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(path.name + ".part")
    scratch.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(scratch, path)  # unlike a rename, it fails where there is a file
    except FileExistsError:
        raise MisuseError(f"{path} exists; a key is never overwritten, name another file") from None
    finally:
        scratch.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
