"""Attacks with parties that are not who they are said to be: the server plays the victim's peers.

Each runs twice: with its rules off, and no others, the victim's vector comes out; with them on it is refused.
"""

from dataclasses import replace

import pytest
from attacker import ALL, BUT_VICTIM, VICTIM, Attacker, assert_exposed, attack, refuses
from secagg_kit import Federation, identity

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import ProtocolError, VerificationError
from fedvlm_secure.secagg import policy
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.roster import (
    CONSORTIUM,
    Roster,
    check_succession,
    member,
    open_roster,
    read_roster,
    sign_roster,
)
from fedvlm_secure.secagg.session import SERVER


@pytest.fixture
def federation() -> Federation:
    return Federation(clients=6)


def played_by_the_server(
    federation: Federation, names: tuple[str, ...], signer: str | None = SERVER, **changes: object
) -> Attacker:
    """The victim among sessions of the server's own under ``names``.

    Args:
        signer: with whose key they sign; None for keys of their own.
    """
    update = Update(federation.updates[VICTIM].values * 0, {"weight": 1})
    parties = {name: federation.party(name, identity=identity(signer or name), **changes) for name in names}
    played = {name: PairwiseClient(party, update) for name, party in parties.items()}
    return Attacker(federation, {VICTIM: federation.client(VICTIM, **changes), **played}, colluders=names)


class OnTheServersWord(Expected):
    """P-1.2 off: what the server has signed counts as the words of whomever it names."""

    def open(self, data, body):
        try:
            return super().open(data, body)
        except ProtocolError as error:
            if error.clause != "P-1.2":
                raise
            return Expected.open(replace(self, key=identity(SERVER).public), data, body)


def take_the_servers_word(monkeypatch: pytest.MonkeyPatch, *phases: str) -> None:
    """Switch off P-1.2 for what the server passes on from these phases; its other checks stay."""
    genuine = rules._passed_on

    def passed_on(turn, phase, sender):
        known = genuine(turn, phase, sender)
        return (
            OnTheServersWord(**{name: getattr(known, name) for name in Expected.__slots__})
            if phase in phases
            else known
        )

    monkeypatch.setattr(rules, "_passed_on", passed_on)


def substituted_keys(federation: Federation) -> Attacker:
    """Substituted keys.

    Move: the server sits between the victim and its peers, and passes on keys of its own as theirs, later parcels too.
    Rule: P-3.2 with P-1.2, every key and every parcel list in its owner's signed words; P-4.4, parcels for this very
    key list, stands behind it.
    Learnt when both are off: both seeds of the victim, hence its update and weight, as soon as it has uploaded.
    """
    return played_by_the_server(federation, BUT_VICTIM).until_uploads()


def test_substituted_keys_off(federation, monkeypatch):
    take_the_servers_word(monkeypatch, m.KEYS, m.SHARES)
    attacker = substituted_keys(federation)
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


@pytest.mark.parametrize(("unsigned", "phase"), [((), m.SHARES), ((m.SHARES,), m.SHARES), ((m.KEYS,), m.MASKED_INPUT)])
def test_substituted_keys_on(federation, monkeypatch, unsigned, phase):
    """With signatures on either message the victim uploads nothing."""
    take_the_servers_word(monkeypatch, *unsigned)
    refuses(federation, lambda: substituted_keys(federation), "P-1.2", phase)


def test_substituted_keys_do_not_go_with_true_parcels(federation, monkeypatch):
    """Between honest clients the server cannot pass on what they signed for another key list, signed keys or not."""
    take_the_servers_word(monkeypatch, m.KEYS)
    attacker, false = attack(federation), played_by_the_server(federation, ("c04",))
    for name in ALL:
        attacker.collect_keys(name)
    for name in BUT_VICTIM:
        attacker.collect_parcels(name)
    false.collect_keys("c04")
    shown = attacker.key_list(VICTIM)
    attacker.ask(m.SHARES, VICTIM, replace(shown, keys=shown.keys | false.keys))
    refuses(federation, lambda: attacker.collect_upload(VICTIM), "P-4.4", m.MASKED_INPUT)


SYBILS = ("sybil-1", "sybil-2", "sybil-3", "sybil-4", "sybil-5")


class AnyoneTheServerNames(dict):
    """A key for every name: the server's."""

    def __missing__(self, name):
        return identity(SERVER).public


def sybils(federation: Federation) -> Attacker:
    """Sybils outside the roster.

    Move: the plan's cohort is the victim and the server's inventions; otherwise all rules are followed.
    Rule: P-2.2, the cohort are members of the pinned roster; and signing keys are taken from nowhere else (P-1.2).
    Learnt when both are off: n - 1 shares of each of the victim's seeds, hence its update and weight.
    """
    federation.plan = replace(federation.plan, cohort=(VICTIM, *SYBILS))
    return played_by_the_server(federation, SYBILS).until_uploads()


def test_sybils_off(federation, monkeypatch):
    monkeypatch.setattr(policy, "_cohort_is_sound", lambda *_: True)
    genuine = Roster.keys
    monkeypatch.setattr(Roster, "keys", lambda roster: AnyoneTheServerNames(genuine(roster)))
    attacker = sybils(federation)
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_sybils_on(federation):
    refuses(federation, lambda: sybils(federation), "P-2.2", m.KEYS)


def test_sybils_have_no_key_to_be_verified_with(federation, monkeypatch):
    monkeypatch.setattr(policy, "_cohort_is_sound", lambda *_: True)
    with pytest.raises(KeyError, match=SYBILS[0]):
        sybils(federation)


def server_roster(federation: Federation) -> bytes:
    """A roster of the server's making, sound and signed: the victim with its own keys, and inventions."""
    members = tuple(member(name, identity(name)) for name in (VICTIM, *SYBILS))
    false = identity("false consortium")
    return sign_roster(replace(federation.roster, consortium=false.public, members=members), false)


def test_a_roster_of_the_servers_making_off(federation):
    """The same with a whole roster, for a client that takes the one it is handed: every check of the round holds."""
    false = read_roster(server_roster(federation))
    federation.plan = replace(federation.plan, cohort=(VICTIM, *SYBILS), roster=false.hash)
    attacker = played_by_the_server(federation, SYBILS, signer=None, roster=false).until_uploads()
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


@pytest.mark.parametrize("trusted", ["consortium", "pinned"])
def test_a_roster_of_the_servers_making_on(federation, trusted):
    trust = {"consortium": identity(CONSORTIUM).public, "pinned": federation.roster.hash}
    clause = {"consortium": "R-2", "pinned": "R-3"}[trusted]
    with pytest.raises(VerificationError) as refusal:
        open_roster(server_roster(federation), **{trusted: trust[trusted]})
    assert (refusal.value.clause, refusal.value.phase) == (clause, "roster")


REVOKED = "c05"


def revoked_member(federation: Federation, roster: Roster) -> Attacker:
    """A revoked member comes back.

    Move: c05's key was stolen, and version 2 of the roster is without it. The plan names version 1, true and signed by
    the consortium. With the stolen key and its one colluder, c04, the server has c + 1 clients, so that two survivor
    lists find a quorum: four signatures each, of four honest clients and twice two others.
    Rule: P-2.2, the plan names the one roster that is pinned; R-3 and R-6 keep the pin from going back.
    Learnt when off: the victim's update and weight, with all other rules in force.
    """
    attacker = attack(federation, colluders=("c04", REVOKED), roster=roster).until_uploads()
    attacker.unmask(ALL, (VICTIM, "c00"))
    attacker.unmask(BUT_VICTIM, ("c02", "c03"))
    return attacker


def next_version(federation: Federation) -> Roster:
    return replace(federation.roster.without(REVOKED), version=2)


def test_revoked_member_off(federation):
    """Nothing pinned: whatever the consortium has signed will do."""
    roster = open_roster(sign_roster(federation.roster, identity(CONSORTIUM)), consortium=identity(CONSORTIUM).public)
    attacker = revoked_member(federation, roster)
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_revoked_member_on(federation):
    old, new = federation.roster, next_version(federation)
    refuses(federation, lambda: revoked_member(federation, new), "P-2.2", m.KEYS)
    with_new_key = new.with_member(member(REVOKED, identity("its next key")))
    refuses(federation, lambda: revoked_member(federation, with_new_key), "P-2.2", m.KEYS)
    federation.plan = replace(federation.plan, roster=new.hash)  # the right roster, and still the revoked member
    refuses(federation, lambda: revoked_member(federation, new), "P-2.2", m.KEYS)
    signed = sign_roster(old, identity(CONSORTIUM))
    for act, clause in (
        (lambda: open_roster(signed, consortium=identity(CONSORTIUM).public, pinned=new.hash), "R-3"),
        (lambda: check_succession(new, old), "R-6"),
    ):
        with pytest.raises(VerificationError) as refusal:
            act()
        assert (refusal.value.clause, refusal.value.phase) == (clause, "roster")
