"""A short run of the fuzzer, and proof that it finds what it looks for. ``make fuzz`` runs a million messages."""

from unittest import mock

import pytest
from fuzzer import REACHED, fuzz

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.server import ServerSessionBase


def test_four_thousand_messages(tmp_path):
    tally = fuzz(4000, seed=3, folder=tmp_path)
    assert not tally.failures, tally.failures
    assert not list(tmp_path.iterdir())
    assert {handler for handler, _ in tally.outcomes} >= REACHED.keys()
    clauses = sum(map(len, REACHED.values()))
    assert len(tally.never_reached()) < clauses / 5, "most clauses are reached even in a short run"


def closes_never(session, step, turn, body):
    return step.transition(turn, session._state, body)


def changes_first(session, client, reply):
    try:
        return RECEIVE(session, client, reply)
    except ProtocolError:
        session._replied.add(client)
        raise


def forgets_a_case(turn, survivors, *rest):
    if "stranger" in survivors:
        raise KeyError("stranger")
    return SURVIVOR_LIST(turn, survivors, *rest)


def blames_the_sender(expected, clause, detail, party=None):
    error = FAULT(expected, clause, detail, party)
    return ProtocolError(clause, party=expected.sender, phase=error.phase, detail=detail, round=error.round)


RECEIVE, SURVIVOR_LIST, FAULT = ServerSessionBase.receive, rules.survivor_list, Expected.fault
PLANTED = {
    "a client that goes on after a lie": (ClientSessionBase, "_transition", closes_never, "the session goes on"),
    "a server that changes before it verifies": (ServerSessionBase, "receive", changes_first, "server.to_bytes() =="),
    "an error that nobody declared": (rules, "survivor_list", forgets_a_case, "KeyError"),
    "an innocent client blamed": (Expected, "fault", blames_the_sender, "is blamed"),
}


@pytest.mark.parametrize("fault", PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(fault, tmp_path):
    owner, name, planted, trace = fault
    with mock.patch.object(owner, name, planted):
        tally = fuzz(400, seed=4, folder=tmp_path, finish=False)
    assert any(trace in failure for failure in tally.failures.values()), tally
    assert len(list(tmp_path.iterdir())) == len(tally.failures)
