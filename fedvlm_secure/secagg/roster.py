"""Who may take part: names and signing keys, pinned by hash. No key outside the roster counts."""

import re
from dataclasses import dataclass

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack
from fedvlm_secure.secagg.session import COHORT, SERVER, ClientId

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Member:
    """One client: its name and its Ed25519 public key."""

    name: ClientId
    signing_key: Digest


@dataclass(frozen=True, slots=True)
class Roster:
    """The members, sorted by name, and the server's Ed25519 public key. A change is a new version."""

    version: int
    server: Digest
    members: tuple[Member, ...]
    spec: str = SPEC_VERSION

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if names != sorted(set(names)):
            raise MisuseError("a roster lists each member once, sorted by name")
        for name in names:
            if not _NAME.fullmatch(name) or name in (SERVER, COHORT):
                raise MisuseError(
                    f"{name!r} cannot name a member; use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
                    f"starting and ending with a letter or digit, other than {SERVER!r} and {COHORT!r}"
                )

    @property
    def hash(self) -> bytes:
        """The digest that plans carry and clients pin."""
        return digest("roster", pack(self))

    def keys(self) -> dict[str, bytes]:
        """Every party's signing key by name, the server's under ``"server"``."""
        return {SERVER: self.server} | {member.name: member.signing_key for member in self.members}
