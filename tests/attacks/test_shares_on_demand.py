"""Attacks in `consistency` and `unmask`: the server tries to hold both seeds of one honest client.

Each runs twice: with its rules off, and no others, the victim's vector comes out; with them on the client refuses.
"""

import numpy as np
import pytest
from attacker import (
    ALL,
    BUT_VICTIM,
    COLLUDER,
    HONEST_PEERS,
    VICTIM,
    Attacker,
    NotEnoughError,
    assert_exposed,
    attack,
    off,
    refuses,
)
from secagg_kit import Federation, refused

from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.client import Turn
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.pairwise.masks import Bound
from fedvlm_secure.secagg.policy import Policy


@pytest.fixture
def federation() -> Federation:
    return Federation(clients=6)


def dual_request(federation: Federation, late: bool = False) -> Attacker:
    """Dual share request to one client.

    Move: everyone signs the true list; then the victim, a survivor on it, is named among the dropped as well.
    Rule: P-7.4, never both of one peer; P-7.2, the dropped are the rest, stands behind it.
    Learnt when both are off: the victim's update and weight, from three honest clients that answer once each. So it is
    if the victim's upload is held back until all that is over (``late``).
    """
    attacker = attack(federation).until_uploads(late=(VICTIM,) if late else ())
    consents = {name: attacker.consent(name, ALL) for name in (*HONEST_PEERS, COLLUDER)}
    for name in HONEST_PEERS[:3]:
        attacker.reveal(name, attacker.unmask_request(name, ALL, consents, also_dropped=(VICTIM,)))
    return attacker


@pytest.mark.parametrize("late", [False, True])
def test_dual_request_off(federation, monkeypatch, late):
    off(monkeypatch, "never_both", "dropped_are_the_rest")
    attacker = dual_request(federation, late)
    if late:
        attacker.collect_upload(VICTIM)
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


@pytest.mark.parametrize(
    ("switched_off", "clause"), [((), "P-7.4"), (("never_both",), "P-7.2"), (("dropped_are_the_rest",), "P-7.4")]
)
@pytest.mark.parametrize("late", [False, True])
def test_dual_request_on(federation, monkeypatch, switched_off, clause, late):
    """Either rule alone is enough."""
    off(monkeypatch, *switched_off)
    refuses(federation, lambda: dual_request(federation, late), clause, m.UNMASK)


def split_request(attacker: Attacker, on_all: tuple[str, ...], on_rest: tuple[str, ...]) -> None:
    """Dual share request, split across clients.

    Move: some are told that everyone survived, the others that the victim did not. Nobody is asked for both of its
    shares, so nobody can notice alone.
    Rule: P-2.6, a client that does not trust the server refuses a plan whose thresholds count on its honesty; t and
    quorum of `malicious-server` (P-2.4, P-7.3) are above (n + c)/2, so that two lists never find enough signatures.
    Learnt when off: the victim's update and weight, from one honest answer on each list, at t = c + 1.
    """
    attacker.unmask(ALL, on_all)
    attacker.unmask(BUT_VICTIM, on_rest)


def test_split_request_off():
    """All rules stand, but hospitals that chose `honest-but-curious` meet a server that is not."""
    federation = Federation(clients=6, threat_model="honest-but-curious")
    assert federation.plan.threshold == 2
    attacker = attack(federation).until_uploads()
    split_request(attacker, ("c00",), ("c02",))
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_split_request_on_the_plan_is_refused():
    federation = Federation(clients=6, threat_model="honest-but-curious")
    attacker = attack(federation, policy=Policy())
    refuses(federation, lambda: attacker.collect_keys(VICTIM), "P-2.6", m.KEYS)


@pytest.mark.parametrize("told", range(5))
def test_split_request_on_at_most_one_list_has_a_quorum(federation, told):
    """However the honest clients are split between the two lists."""
    attacker = attack(federation).until_uploads()
    halves = {ALL: (VICTIM, *HONEST_PEERS[:told]), BUT_VICTIM: HONEST_PEERS[told:]}
    answered = 0
    for survivors, half in halves.items():
        if len(half) + 1 < rules.quorum(federation.plan):  # and the colluder, which signs both
            if half:
                refuses(federation, lambda s=survivors, h=half: attacker.unmask(s, h), "P-7.3", m.UNMASK)
        else:
            attacker.unmask(survivors, half)
            answered += 1
    assert answered <= 1
    with pytest.raises(NotEnoughError):
        attacker.vector_of(VICTIM)


def equivocation(attacker: Attacker) -> None:
    """Equivocation on survivors.

    Move: the victim is given the parcels of three peers only (as few as P-5.1 allows), and so masks with c00, c02 and
    the colluder. Then everyone is told another list, each of them sound: none leaves the victim out, all that can do
    leave c00 and c02 out.
    Rule: P-7.3, a quorum must have signed this very list. P-6.2, one list a client, is what makes it count.
    Learnt when off: the self mask of the victim and the mask seeds of all whom it has masked with, hence its update and
    weight: although t = 4, and nobody reveals two shares of one client.
    """
    for name, survivors in {
        VICTIM: ("c00", "c01", "c02", "c05"),
        "c00": ("c00", "c01", "c03", "c04", "c05"),
        "c02": ("c01", "c02", "c03", "c04", "c05"),
        "c03": ("c01", "c03", "c04", "c05"),
        "c04": ("c01", "c03", "c04", "c05"),
    }.items():
        attacker.unmask(survivors, (name,))


def about_to_equivocate(federation: Federation) -> Attacker:
    attacker = attack(federation).until_uploads(late=(VICTIM,))
    attacker.collect_upload(VICTIM, without=("c03", "c04"))
    return attacker


def test_equivocation_off(federation, monkeypatch):
    off(monkeypatch, "consents")
    attacker = about_to_equivocate(federation)
    equivocation(attacker)
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_equivocation_on(federation):
    attacker = about_to_equivocate(federation)
    refuses(federation, lambda: equivocation(attacker), "P-7.3", m.UNMASK)
    # The client that refused has closed; another one signs no second list.
    attacker.consent("c00", ALL)
    refused(lambda: attacker.consent("c00", ("c00", "c01", "c03", "c04", "c05")), "P-1.4", "network")


def padded_lists(attacker: Attacker) -> None:
    """Survivor lists that are long enough because they repeat names.

    Move: every client is told that only it and the victim survived, the victim four times.
    Rule: P-6.1, each name once; P-7.3 stands behind it.
    Learnt when both are off: the self mask of the victim and the mask seed of everyone else, hence its update.
    """
    for name in (VICTIM, *HONEST_PEERS):
        survivors = tuple(sorted((name, VICTIM, VICTIM, VICTIM)))
        attacker.unmask(survivors, (name,))


def entries_count(turn: Turn, survivors: tuple[str, ...], published: object, holding: object) -> None:
    """P-6.1 without «each name once»: sorted, known, with us, and long enough."""
    assert list(survivors) == sorted(survivors)
    assert turn.party.name in survivors
    assert set(survivors) <= set(published) & set(holding)
    assert len(survivors) >= turn.plan.min_survivors


def test_padded_lists_off(federation, monkeypatch):
    off(monkeypatch, "consents")
    monkeypatch.setattr(rules, "survivor_list", entries_count)
    attacker = attack(federation).until_uploads()
    padded_lists(attacker)
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


@pytest.mark.parametrize(
    ("switched_off", "clause", "phase"),
    [
        ((), "P-6.1", m.CONSISTENCY),
        (("consents",), "P-6.1", m.CONSISTENCY),
        (("survivor_list",), "P-7.3", m.UNMASK),
    ],
)
def test_padded_lists_on(federation, monkeypatch, switched_off, clause, phase):
    if "survivor_list" in switched_off:
        monkeypatch.setattr(rules, "survivor_list", entries_count)
    else:
        off(monkeypatch, *switched_off)
    attacker = attack(federation).until_uploads()
    refuses(federation, lambda: padded_lists(attacker), clause, phase)


def delayed_upload(federation: Federation) -> Attacker:
    """Delayed upload after the survivor list.

    Move: the victim's upload is held back, and the victim declared dropped. All follow the rules, and its mask seed
    comes out. Then the upload arrives.
    Rule: P-5.2, the self mask: the mask seed removes all masks but that one. Nobody gives its shares any more (P-7.4).
    Learnt when uploads carry no self mask: the victim's update and weight, with nobody having lied.
    """
    attacker = attack(federation).until_uploads(late=(VICTIM,))
    attacker.unmask(BUT_VICTIM, HONEST_PEERS)
    attacker.collect_upload(VICTIM)
    return attacker


def test_delayed_upload_off(federation, monkeypatch):
    """Single masking: everyone's self mask comes of a seed that everyone knows."""
    genuine, known = Bound.self_mask, Secret(bytes(32))
    monkeypatch.setattr(Bound, "self_mask", lambda self, seed, client: genuine(self, known, client))
    attacker = delayed_upload(federation)
    attacker.seeds[m.SELF_MASK, VICTIM] = known
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_delayed_upload_on(federation):
    attacker = delayed_upload(federation)
    still_masked = federation.plan.ring.to_signed(attacker.without_pair_masks(VICTIM))
    assert not np.array_equal(still_masked, federation.plan.codec.encode(federation.updates[VICTIM]).integers)
    with pytest.raises(NotEnoughError, match=f"1 shares of {VICTIM}'s self-mask seed"):
        attacker.vector_of(VICTIM)
    # Its own share would be the second; it does not answer for a list that only the colluder has signed besides.
    refuses(federation, lambda: attacker.unmask(ALL, (VICTIM,)), "P-7.3", m.UNMASK)
