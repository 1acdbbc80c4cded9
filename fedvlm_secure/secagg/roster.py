"""Who may take part: names and keys, pinned by hash. No key outside the roster counts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack
from fedvlm_secure.primitives.sealing import PUBLIC_BYTES
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.session import COHORT, SERVER, ClientId

CONSORTIUM = "consortium"
LATEST = (1 << 53) - 1  # the last second that every JSON reader counts exactly: "does not expire"

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_RESERVED = (SERVER, COHORT, CONSORTIUM)


@dataclass(frozen=True, slots=True)
class Member:
    """One party: its name, its Ed25519 public key, and the HPKE public key (ML-KEM-768 + X25519) to seal to it."""

    name: ClientId
    signing_key: Digest
    sealing_key: Annotated[bytes, PUBLIC_BYTES]


def member(name: ClientId, identity: Identity) -> Member:
    """The public half of ``identity`` under ``name``."""
    return Member(name, identity.public, identity.sealing.public)


@dataclass(frozen=True)
class Roster:
    """One version of the list of members. A change is a new version, signed by the consortium.

    Attributes:
        consortium: the Ed25519 public key that signs every version. Somebody else than the server: whoever writes the
            roster can fill a cohort with clients of its own.
        version: counted from 1.
        expires: Unix seconds; from then on no round begins under this version.
        server: the Ed25519 public key of the one server.
        members: sorted by name.
        revoked: Ed25519 public keys that may never come back, sorted.
    """

    consortium: Digest
    version: int
    expires: int
    server: Digest
    members: tuple[Member, ...]
    revoked: tuple[Digest, ...] = ()
    spec: str = SPEC_VERSION

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if names != sorted(set(names)):
            raise MisuseError("a roster lists each member once, sorted by name")
        for name in names:
            if not _NAME.fullmatch(name) or name in _RESERVED:
                raise MisuseError(
                    f"{name!r} cannot name a member; use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
                    f"starting and ending with a letter or digit, other than {', '.join(map(repr, _RESERVED))}"
                )
        if self.version < 1 or not 0 <= self.expires <= LATEST:
            raise MisuseError(f"a roster's version is at least 1 and its expiry 0 to {LATEST} Unix seconds")
        if list(self.revoked) != sorted(set(self.revoked)):
            raise MisuseError("a roster lists each revoked key once, sorted")
        self._check_keys_differ()

    def _check_keys_differ(self) -> None:
        owners = [(CONSORTIUM, self.consortium), (SERVER, self.server)]
        owners += [(member.name, member.signing_key) for member in self.members]
        for keys in (owners, [(member.name, member.sealing_key) for member in self.members]):
            first: dict[bytes, str] = {}
            for name, key in keys:
                if (other := first.setdefault(key, name)) != name:
                    raise MisuseError(f"{other!r} and {name!r} have the same key; each party makes one of its own")
        revoked = set(self.revoked)
        for name, key in owners:
            if key in revoked:
                raise MisuseError(f"the key of {name!r} is revoked and never comes back; it has to make a new one")

    @cached_property
    def hash(self) -> bytes:
        """The digest that plans carry and clients pin."""
        return digest("roster", pack(self))

    def keys(self) -> dict[str, bytes]:
        """Every party's signing key by name, the server's under ``"server"``."""
        return {SERVER: self.server} | {member.name: member.signing_key for member in self.members}


def simulated(server: Identity, members: Mapping[ClientId, Identity]) -> Roster:
    """The roster of a simulation: the consortium's key is thrown away at once, and nothing expires."""
    listed = tuple(member(name, members[name]) for name in sorted(members))
    return Roster(Identity.generate().public, 1, LATEST, server.public, listed)
