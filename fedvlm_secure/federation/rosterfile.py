"""Rosters as files: the signed one that everybody holds, and beside it the draft that the consortium works on.

A signed roster is never edited. A change goes into ``ROSTER.draft``, a file of another form under another name, until
it is signed and takes the roster's place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedvlm_secure.errors import MisuseError, VerificationError
from fedvlm_secure.files import write
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import WireError
from fedvlm_secure.secagg.roster import (
    LIMITS,
    Member,
    Roster,
    check_succession,
    open_enrolment,
    open_roster,
    read_roster,
    sign_roster,
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A roster that nobody has signed."""

    draft: Roster


def draft_of(path: Path) -> Path:
    """Where the draft of the next version of the roster ``path`` lies."""
    return path.with_name(path.name + ".draft")


def start(path: Path, roster: Roster) -> None:
    """Save the draft of a first version; raises :class:`MisuseError` if there is a roster or a draft already."""
    for taken in (path, draft_of(path)):
        if taken.exists():
            raise MisuseError(f"{taken} exists; change it with roster add or revoke, or name another file")
    save(path, roster)


def edit(path: Path) -> Roster:
    """What a change to the roster ``path`` starts from: its draft, or else the next version of what is signed.

    Raises:
        MisuseError: there is neither, or the draft is damaged.
        VerificationError: the signed roster is.
    """
    if draft_of(path).exists():
        return read_draft(path)
    if not path.exists():
        raise MisuseError(f"there is no roster {path}; begin one with roster new")
    signed = read_signed(path)
    return replace(signed, version=signed.version + 1)


def save(path: Path, roster: Roster) -> None:
    """Save the draft of ``path``."""
    write(draft_of(path), pack(Draft(roster), LIMITS))


def read_draft(path: Path) -> Roster:
    """The draft of ``path``; raises :class:`MisuseError` if there is none, or it is damaged."""
    if not draft_of(path).exists():
        raise MisuseError(f"there is no draft {draft_of(path)}; make one with roster new, add, revoke or renew")
    return _unpack_draft(draft_of(path))


def publish(path: Path, draft: Roster, consortium: Identity) -> None:
    """Sign ``draft``, the draft of ``path``, and put it in the place of the roster there.

    Raises:
        MisuseError: the key is not the one that the draft names.
        VerificationError: the draft may not succeed the roster in ``path``, or that one is damaged.
    """
    signed = sign_roster(draft, consortium)
    if path.exists() and (current := read_signed(path, consortium.public)) != draft:
        with _naming(draft_of(path)):
            check_succession(current, draft)
    write(path, signed)
    draft_of(path).unlink()


def read_signed(path: Path, consortium: bytes | None = None, pinned: bytes | None = None) -> Roster:
    """The signed roster in ``path``, held against the consortium's key and the pinned hash, where they are given.

    Raises:
        VerificationError: see :func:`fedvlm_secure.secagg.roster.open_roster`.
    """
    data = _read(path)
    with _naming(path):
        if _is_draft(data):
            raise VerificationError("R-1", party="consortium", phase="roster", detail="a draft that nobody has signed")
        if consortium is None and pinned is None:
            return read_roster(data)
        return open_roster(data, consortium=consortium, pinned=pinned)


def read_any(path: Path) -> tuple[Roster, bool]:
    """The roster in ``path``, and whether it is signed; not held against anything."""
    return (_unpack_draft(path), False) if _is_draft(_read(path)) else (read_signed(path), True)


def read_member(path: Path) -> Member:
    """The verified name and keys in a party's public key file; raises :class:`VerificationError`."""
    with _naming(path):
        return open_enrolment(_read(path))


def _is_draft(data: bytes) -> bool:
    try:
        unpack(Draft, data, LIMITS)
    except WireError:
        return False
    except MisuseError:
        pass  # an unsound one
    return True


def _unpack_draft(path: Path) -> Roster:
    try:
        return unpack(Draft, _read(path), LIMITS).draft
    except (WireError, MisuseError) as error:
        raise MisuseError(f"{path} is damaged, or no draft of a roster: {error}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LIMITS.max_bytes + 1)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let a refusal say which file it is about."""
    try:
        yield
    except VerificationError as error:
        detail = f"{path}: {error.detail}"
        raise VerificationError(error.clause, party=error.party, phase=error.phase, detail=detail) from None
