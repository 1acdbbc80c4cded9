"""The roster: what a signature, a pin and a succession accept, and every way in which each is refused."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from secagg_kit import identity

from fedvlm_secure.errors import MisuseError, VerificationError
from fedvlm_secure.primitives.schema import pack
from fedvlm_secure.primitives.sealing import seal
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.roster import (
    NEVER,
    Enrolment,
    Member,
    Roster,
    SignedRoster,
    check_succession,
    enrol,
    member,
    open_enrolment,
    open_roster,
    read_roster,
    sign_roster,
)

BOARD, OTHER_BOARD = identity("consortium"), identity("another consortium")
A, B, C, D = (member(name, identity(name)) for name in "abcd")
GONE = identity("gone").public
ROSTER = Roster(BOARD.public, 3, 1_900_000_000, identity("server").public, (A, B, C), (GONE,))
SIGNED = sign_roster(ROSTER, BOARD)


def refused(act: Callable[[], object], clause: str, says: str | None = None) -> VerificationError:
    with pytest.raises(VerificationError, match=says) as refusal:
        act()
    assert refusal.value.clause == clause
    return refusal.value


def signed_anyway(roster: Roster, key: Identity = BOARD) -> bytes:
    """What a careless or lying consortium could publish."""
    return pack(SignedRoster(roster, key.sign("roster", pack(roster))))


def flips(data: bytes) -> list[bytes]:
    return [data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :] for i in range(len(data))]


def test_one_seed_is_one_party() -> None:
    again = Identity(Secret(identity("a").seed.reveal()))
    assert member("a", again) == A
    assert len({A.signing_key, A.sealing_key, B.signing_key, B.sealing_key}) == 4
    box = seal(A.sealing_key, Secret(b"for a"), "test")
    assert identity("a").sealing.open(box, "test").reveal() == b"for a"


def test_a_signed_roster_opens_under_its_consortium_and_its_pin() -> None:
    assert open_roster(SIGNED, consortium=BOARD.public) == ROSTER
    assert open_roster(SIGNED, pinned=ROSTER.hash) == ROSTER
    assert open_roster(SIGNED, consortium=BOARD.public, pinned=ROSTER.hash) == ROSTER
    assert read_roster(SIGNED) == ROSTER


def test_a_roster_does_not_vouch_for_itself() -> None:
    with pytest.raises(MisuseError, match="vouches for itself"):
        open_roster(SIGNED)


def test_any_flipped_bit_is_refused() -> None:
    for damaged in flips(SIGNED):
        with pytest.raises(VerificationError):
            open_roster(damaged, consortium=BOARD.public)


@pytest.mark.parametrize("data", [b"", SIGNED[:-1], SIGNED + b"\0", pack(ROSTER), b"\xff" * 100], ids=len)
def test_what_is_not_a_signed_roster(data: bytes) -> None:
    refused(lambda: read_roster(data), "R-1")


def test_a_roster_too_large_is_not_even_parsed() -> None:
    refused(lambda: read_roster(bytes((32 << 20) + 1)), "R-1", "exceed the limit")


def test_another_version_of_the_format() -> None:
    refused(lambda: read_roster(signed_anyway(replace(ROSTER, spec="fedvlm-secure/0"))), "R-1", "fedvlm-secure/0")


def test_signed_by_somebody_else() -> None:
    forged = signed_anyway(ROSTER, OTHER_BOARD)
    refused(lambda: read_roster(forged), "R-2")
    theirs = sign_roster(replace(ROSTER, consortium=OTHER_BOARD.public), OTHER_BOARD)
    assert read_roster(theirs).consortium == OTHER_BOARD.public
    refused(lambda: open_roster(theirs, consortium=BOARD.public), "R-2")
    elsewhere = pack(SignedRoster(ROSTER, BOARD.sign("manifest", pack(ROSTER))))  # a signature for another purpose
    refused(lambda: read_roster(elsewhere), "R-2")


def test_another_version_than_the_pinned_one() -> None:
    newer = sign_roster(replace(ROSTER, version=4), BOARD)
    refused(lambda: open_roster(newer, consortium=BOARD.public, pinned=ROSTER.hash), "R-3", ROSTER.hash.hex())


def test_every_field_is_under_the_hash() -> None:
    other = Roster(OTHER_BOARD.public, 4, 1, identity("other server").public, (A, B), (), "fedvlm-secure/0")
    changed = {field.name: replace(ROSTER, **{field.name: getattr(other, field.name)}) for field in fields(Roster)}
    assert len({ROSTER.hash, *(roster.hash for roster in changed.values())}) == 1 + len(changed)


def test_expiry() -> None:
    ROSTER.check_current(ROSTER.expires - 0.001)
    refused(lambda: ROSTER.check_current(ROSTER.expires), "R-5", "expired")


LOW_ORDER = bytes(32)


@pytest.mark.parametrize(
    ("roster", "says"),
    [
        (replace(ROSTER, members=(A, replace(B, sealing_key=bytes(1216)), C)), "'b'"),
        (replace(ROSTER, members=(A, replace(B, sealing_key=b"\xff" * 1216), C)), "'b'"),
        (replace(ROSTER, members=(A, B, replace(C, signing_key=LOW_ORDER))), "'c'.*anyone can sign"),
        (replace(ROSTER, server=LOW_ORDER), "server"),
    ],
    ids=["no X25519 point", "no ML-KEM key", "member", "server"],
)
def test_keys_of_no_use_are_refused_by_name(roster: Roster, says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        sign_roster(roster, BOARD)
    refused(lambda: read_roster(signed_anyway(roster)), "R-4", says)


def test_a_roster_is_signed_by_the_consortium_it_names() -> None:
    with pytest.raises(MisuseError, match="not the consortium's key"):
        sign_roster(ROSTER, OTHER_BOARD)


@pytest.mark.parametrize(
    "change",
    [
        {"members": (A, A, B)},
        {"members": (B, A, C)},
        {"members": (A, replace(B, name="a"), C)},
        {"members": (A, replace(B, signing_key=A.signing_key), C)},
        {"members": (A, replace(B, sealing_key=A.sealing_key), C)},
        {"members": (A, replace(A, name="b"), C)},
        {"members": (A, B, replace(C, signing_key=ROSTER.server))},
        {"members": (A, B, replace(C, signing_key=BOARD.public))},
        {"members": (A, B, replace(C, signing_key=GONE))},
        {"members": (A, B, replace(C, name="server"))},
        {"members": (A, B, replace(C, name="cohort"))},
        {"members": (A, B, replace(C, name="consortium"))},
        {"server": BOARD.public},
        {"revoked": (ROSTER.server,)},
        {"revoked": (BOARD.public,)},
        {"revoked": (GONE, GONE)},
        {"revoked": tuple(sorted((GONE, D.signing_key), reverse=True))},
        {"version": 0},
        {"expires": NEVER + 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_unsound_roster_cannot_be_made_or_read(change: dict[str, object]) -> None:
    with pytest.raises(MisuseError):
        replace(ROSTER, **change)
    unchecked = object.__new__(Roster)
    unchecked.__dict__.update({field.name: getattr(ROSTER, field.name) for field in fields(Roster)} | change)
    refused(lambda: read_roster(signed_anyway(unchecked)), "R-4")


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a.", "ä", "a" * 65, "a/b", "a\n"])
def test_names_that_would_be_misread(name: str) -> None:
    with pytest.raises(MisuseError, match="cannot name"):
        Member(name, A.signing_key, A.sealing_key)


def test_whoever_is_revoked_stays_out_under_any_name() -> None:
    without = ROSTER.without("b")
    assert [listed.name for listed in without.members] == ["a", "c"]
    assert set(without.revoked) == {GONE, B.signing_key}
    for name in ("b", "e"):
        with pytest.raises(MisuseError, match="revoked"):
            without.with_member(member(name, identity("b")))
    again = without.with_member(member("b", identity("b's next key")))
    assert [listed.name for listed in again.members] == ["a", "b", "c"]


def test_adding_and_removing_whom_one_cannot() -> None:
    with pytest.raises(MisuseError, match="'a' is in the roster already"):
        ROSTER.with_member(member("a", identity("d")))
    with pytest.raises(MisuseError, match="'d' and 'e' have the same key"):
        ROSTER.with_member(D).with_member(member("e", identity("d")))
    with pytest.raises(MisuseError, match="'d' is not in the roster; its members are a, b, c"):
        ROSTER.without("d")


NEXT = replace(ROSTER, version=4)


@pytest.mark.parametrize(
    "new",
    [
        NEXT,
        replace(NEXT, version=9, expires=1_950_000_000, server=identity("other server").public),
        NEXT.with_member(D),
        NEXT.without("a"),
        NEXT.without("a").with_member(member("a", identity("a's next key"))),
    ],
    ids=["nothing changes", "renewed", "added", "revoked", "new key"],
)
def test_a_sound_succession(new: Roster) -> None:
    check_succession(ROSTER, new)


@pytest.mark.parametrize(
    "new",
    [
        ROSTER,
        replace(NEXT, version=2),
        replace(NEXT, consortium=OTHER_BOARD.public),
        replace(NEXT, revoked=()),
        replace(NEXT, members=(A, B)),
        replace(NEXT, members=(A, B, replace(C, sealing_key=D.sealing_key))),
        replace(NEXT, members=(A, B, replace(C, name="d"))),
    ],
    ids=["same version", "rolled back", "other consortium", "unrevoked", "gone unrevoked", "other key", "renamed"],
)
def test_a_false_succession(new: Roster) -> None:
    refused(lambda: check_succession(ROSTER, new), "R-6")


def test_an_enrolment_says_who_and_no_one_else_can_say_it() -> None:
    data = enrol("d", identity("d"))
    assert open_enrolment(data) == D
    by_d = identity("d").sign("enrolment", pack(D))
    for altered in (replace(D, name="e"), replace(D, sealing_key=A.sealing_key), replace(D, signing_key=A.signing_key)):
        refused(lambda altered=altered: open_enrolment(pack(Enrolment(altered, by_d))), "R-2")
    by_a = identity("a").sign("enrolment", pack(D))
    refused(lambda: open_enrolment(pack(Enrolment(D, by_a))), "R-2")
    for damaged in flips(data):
        with pytest.raises(VerificationError):
            open_enrolment(damaged)


def test_an_enrolment_with_a_sealing_key_of_no_use() -> None:
    useless = replace(D, sealing_key=bytes(1216))
    data = pack(Enrolment(useless, identity("d").sign("enrolment", pack(useless))))
    error = refused(lambda: open_enrolment(data), "R-4", "'d'")
    assert error.party == "d"


def test_a_roster_is_not_an_enrolment_and_the_other_way_round() -> None:
    refused(lambda: open_enrolment(SIGNED), "R-1")
    refused(lambda: read_roster(enrol("d", identity("d"))), "R-1")
