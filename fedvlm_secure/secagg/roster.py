"""Who may take part: names and keys, signed by the consortium and pinned by hash. No key outside the roster counts.

The rules R-1 to R-6 that errors name are in ``docs/roster.md``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, TypeVar

from fedvlm_secure.errors import MisuseError, VerificationError
from fedvlm_secure.primitives import SPEC_VERSION, sealing, signing
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import SIGNATURE_BYTES, Identity, SignatureError
from fedvlm_secure.primitives.wire import Limits, WireError
from fedvlm_secure.secagg.envelope import NETWORK
from fedvlm_secure.secagg.session import COHORT, SERVER, ClientId

T = TypeVar("T")

CONSORTIUM = "consortium"
NEVER = 253_402_300_799  # the end of the year 9999, the latest that calendars of this language know

# A member takes about 1,300 bytes and 7 values: room for 16,000.
LIMITS = Limits(max_bytes=32 << 20, max_depth=4, max_items=1 << 17)

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_RESERVED = (SERVER, COHORT, CONSORTIUM, NETWORK)


@dataclass(frozen=True, slots=True)
class Member:
    """One party: its name, its Ed25519 public key, and the HPKE public key (ML-KEM-768 + X25519) to seal to it."""

    name: ClientId
    signing_key: Digest
    sealing_key: Annotated[bytes, sealing.PUBLIC_BYTES]

    def __post_init__(self) -> None:
        check_name(self.name)

    def check(self) -> None:
        """Raise :class:`MisuseError` if one of the keys cannot be used."""
        try:
            signing.check_public(self.signing_key)
            sealing.check_public(self.sealing_key)
        except (SignatureError, sealing.SealError) as error:
            raise MisuseError(f"a key of {self.name!r} cannot be used: {error}") from None


def check_name(name: str) -> None:
    """Raise :class:`MisuseError` if no party can be called ``name``."""
    if not _NAME.fullmatch(name):
        raise MisuseError(
            f"{name[:80]!r} cannot name a party; use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "starting and ending with a letter or digit"
        )


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
        if reserved := sorted({*names} & {*_RESERVED}):
            raise MisuseError(f"{reserved[0]!r} cannot name a member; give it another name")
        if self.version < 1 or not 0 <= self.expires <= NEVER:
            raise MisuseError(f"a roster's version is at least 1 and its expiry 0 to {NEVER} Unix seconds")
        if list(self.revoked) != sorted(set(self.revoked)):
            raise MisuseError("a roster lists each revoked key once, sorted")
        self._check_keys_differ()

    def check(self) -> None:
        """Raise :class:`MisuseError` if a key cannot be used. Takes about 0.1 ms a member."""
        for listed in self.members:
            listed.check()
        for name, key in ((CONSORTIUM, self.consortium), (SERVER, self.server)):
            try:
                signing.check_public(key)
            except SignatureError as error:
                raise MisuseError(f"the key of the {name} cannot be used: {error}") from None

    def check_current(self, now: float) -> None:
        """Raise :class:`VerificationError` (R-5) if the roster has expired at ``now``, in Unix seconds."""
        if now >= self.expires:
            raise _refusal("R-5", f"version {self.version} of the roster has expired; get the next from the consortium")

    @cached_property
    def hash(self) -> bytes:
        """The digest that plans carry and clients pin."""
        return digest("roster", pack(self, LIMITS))

    def keys(self) -> Mapping[str, bytes]:
        """Every party's signing key by name, the server's under ``"server"``."""
        return self._keys

    @cached_property
    def _keys(self) -> Mapping[str, bytes]:
        keys = {SERVER: self.server} | {member.name: member.signing_key for member in self.members}
        return MappingProxyType(keys)

    def with_member(self, new: Member) -> "Roster":
        """The roster with one more member; raises :class:`MisuseError` if its name or key is taken or revoked."""
        if new.name in self.keys():
            raise MisuseError(f"{new.name!r} is in the roster already; revoke its old key first")
        return replace(self, members=tuple(sorted((*self.members, new), key=lambda member: member.name)))

    def without(self, name: ClientId) -> "Roster":
        """The roster without this member, its key revoked; raises :class:`MisuseError` if there is no such member."""
        gone = [member.signing_key for member in self.members if member.name == name]
        if not gone:
            raise MisuseError(
                f"{name!r} is not in the roster; its members are {', '.join(m.name for m in self.members)}"
            )
        members = tuple(member for member in self.members if member.name != name)
        return replace(self, members=members, revoked=tuple(sorted((*self.revoked, *gone))))

    def _check_keys_differ(self) -> None:
        owners = [(CONSORTIUM, self.consortium), *self.keys().items()]
        for keys in (owners, [(member.name, member.sealing_key) for member in self.members]):
            first: dict[bytes, str] = {}
            for name, key in keys:
                if (other := first.setdefault(key, name)) != name:
                    raise MisuseError(f"{other!r} and {name!r} have the same key; each party makes one of its own")
        revoked = set(self.revoked)
        for name, key in owners:
            if key in revoked:
                raise MisuseError(f"the key of {name!r} is revoked and never comes back; it has to make a new one")


def simulated(server: Identity, members: Mapping[ClientId, Identity]) -> Roster:
    """The roster of a simulation: the consortium's key is thrown away at once, and nothing expires."""
    listed = tuple(member(name, members[name]) for name in sorted(members))
    return Roster(Identity.generate().public, 1, NEVER, server.public, listed)


@dataclass(frozen=True, slots=True)
class SignedRoster:
    """A roster as the consortium gives it out: the signature covers the roster's canonical bytes."""

    roster: Roster
    signature: Annotated[bytes, SIGNATURE_BYTES]


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A party's own statement of its name and keys, signed with the former: nobody enrols a key it does not hold."""

    member: Member
    signature: Annotated[bytes, SIGNATURE_BYTES]


def sign_roster(roster: Roster, consortium: Identity) -> bytes:
    """The signed roster; raises :class:`MisuseError` if the key is not the roster's consortium, or cannot be used."""
    if consortium.public != roster.consortium:
        raise MisuseError("this is not the consortium's key that the roster names; sign with the key it was made for")
    roster.check()
    return pack(SignedRoster(roster, consortium.sign("roster", pack(roster, LIMITS))), LIMITS)


def open_roster(data: bytes, *, consortium: bytes | None = None, pinned: bytes | None = None) -> Roster:
    """The verified roster in ``data``, held against at least one thing that the caller already trusts.

    Args:
        consortium: the Ed25519 public key of the consortium.
        pinned: the hash of the one version that is accepted.

    Raises:
        VerificationError: not a signed roster of this version (R-1), not signed by the consortium (R-2), not the pinned
            one (R-3), or not sound (R-4).
    """
    if consortium is None and pinned is None:
        raise MisuseError("a roster vouches for itself only; name the consortium's key or the hash that is trusted")
    roster = read_roster(data)
    if consortium is not None and roster.consortium != consortium:
        raise _refusal("R-2", "the roster is signed by another consortium than the one that is trusted", NETWORK)
    if pinned is not None and roster.hash != pinned:
        raise _refusal("R-3", f"the roster has hash {roster.hash.hex()}, not the pinned {pinned.hex()}", NETWORK)
    return roster


def read_roster(data: bytes) -> Roster:
    """The roster in ``data``, sound and signed by the key it names: it does not say whose key that is.

    To trust what it says, use :func:`open_roster`; raises the same, except R-3.
    """
    signed = _unpack(SignedRoster, data, "a signed roster")
    roster = signed.roster
    if roster.spec != SPEC_VERSION:
        raise _refusal("R-1", f"the roster speaks {roster.spec[:40]!r}, this program {SPEC_VERSION!r}", NETWORK)
    try:
        signing.verify(roster.consortium, "roster", pack(roster, LIMITS), signed.signature)
    except SignatureError:
        raise _refusal("R-2", "the roster's signature is not its consortium's", NETWORK) from None
    try:
        roster.check()
    except MisuseError as error:
        raise _refusal("R-4", str(error)) from None
    return roster


def check_succession(old: Roster, new: Roster) -> None:
    """Raise :class:`VerificationError` (R-6) unless ``new`` may take the place of ``old``, a later version of it.

    Whoever leaves is revoked, so that no later version can bring an old key back, or one key under two names.
    """
    kept, revoked = set(new.members), set(new.revoked)
    for sound, detail in (
        (new.consortium == old.consortium, "the new roster is of another consortium"),
        (new.version > old.version, f"version {new.version} of the roster does not come after version {old.version}"),
        (revoked.issuperset(old.revoked), "the new roster has forgotten a revoked key"),
        *(
            (
                member in kept or member.signing_key in revoked,
                f"member {member.name!r} has gone or changed, and its old key is not revoked",
            )
            for member in old.members
        ),
    ):
        if not sound:
            raise _refusal("R-6", detail)


def enrol(name: ClientId, identity: Identity) -> bytes:
    """What a party hands to the consortium to be enrolled; raises :class:`MisuseError` for a name that cannot be."""
    own = member(name, identity)
    own.check()
    return pack(Enrolment(own, identity.sign("enrolment", pack(own))))


def open_enrolment(data: bytes) -> Member:
    """The verified name and keys of a party.

    Raises:
        VerificationError: not an enrolment (R-1), not signed by the key in it (R-2), or with keys of no use (R-4).
    """
    enrolment = _unpack(Enrolment, data, "a public key file")
    try:
        signing.verify(enrolment.member.signing_key, "enrolment", pack(enrolment.member), enrolment.signature)
    except SignatureError:
        raise _refusal("R-2", "the signature is not of the key that is to be enrolled", NETWORK) from None
    try:
        enrolment.member.check()
    except MisuseError as error:
        raise _refusal("R-4", str(error), enrolment.member.name) from None
    return enrolment.member


def _unpack(cls: type[T], data: bytes, what: str) -> T:
    try:
        return unpack(cls, data, LIMITS)
    except WireError as error:
        raise _refusal("R-1", f"this is not {what}: {error}", NETWORK) from None
    except MisuseError as error:
        raise _refusal("R-4", str(error), NETWORK) from None


def _refusal(clause: str, detail: str, party: str = CONSORTIUM) -> VerificationError:
    return VerificationError(clause, party=party, phase="roster", detail=detail)
