"""The attacker of :mod:`fedvlm_secure.audit.pairwise_attacker` on a small federation, and what it can show."""

from collections.abc import Callable, Collection

import numpy as np
import pytest
from secagg_kit import Federation

from fedvlm_secure.audit.pairwise_attacker import Attacker, NotEnoughError, body_of
from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.session import SERVER

__all__ = ["Attacker", "NotEnoughError", "attack", "body_of"]

# A cohort of six: t and the quorum are 4, and five are honest.
VICTIM, COLLUDER = "c01", "c05"
HONEST_PEERS = ("c00", "c02", "c03", "c04")
BUT_VICTIM = (*HONEST_PEERS, COLLUDER)
ALL = tuple(sorted((VICTIM, *BUT_VICTIM)))


def attack(federation: Federation, colluders: Collection[str] = (COLLUDER,), **changes: object) -> Attacker:
    """An attacker on the whole cohort; ``changes`` are to every client's :class:`Party`."""
    return Attacker(federation, {name: federation.client(name, **changes) for name in federation.names}, colluders)


def assert_exposed(federation: Federation, name: str, integers: np.ndarray) -> None:
    """``integers`` are what ``name`` alone has encoded: its update within half a step, and its weight."""
    codec, update = federation.plan.codec, federation.updates[name]
    np.testing.assert_array_equal(integers, codec.encode(update).integers)
    decoded = codec.decode(integers)
    clipped = update.values * min(1.0, codec.clip_norm / float(np.linalg.norm(update.values)))
    assert decoded.participants == 1
    assert decoded.counters == update.counters
    assert np.linalg.norm(decoded.mean - clipped) <= np.sqrt(len(clipped)) * codec.step / 2 / update.counters["weight"]


def assert_difference(federation: Federation, integers: np.ndarray, one: Update, other: Update) -> None:
    """``integers`` are the difference of two updates, encoded."""
    encode = federation.plan.codec.encode
    np.testing.assert_array_equal(integers, encode(one).integers - encode(other).integers)
    assert integers.any()


def refuses(federation: Federation, act: Callable[[], object], clause: str, phase: str, party: str = SERVER) -> None:
    """``act`` raises a :class:`ProtocolError` that names clause, phase, party, and the plan's round and attempt."""
    with pytest.raises(ProtocolError) as refusal:
        act()
    error = refusal.value
    assert (error.clause, error.phase, error.party, error.round) == (clause, phase, party, federation.plan.place)


def off(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Switch off those of :mod:`rules` that are named; all others stay in force."""
    for name in names:
        assert callable(getattr(rules, name))
        monkeypatch.setattr(rules, name, lambda *args: None)
