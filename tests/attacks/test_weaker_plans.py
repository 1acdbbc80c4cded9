"""Attacks by a plan: weaker thresholds, a sparser graph, a smaller ring, another model for one client.

Each runs twice: with its rules off, and no others, a vector comes out or the sum is false; with them on the client
refuses.
"""

from dataclasses import replace

import numpy as np
import pytest
from attacker import COLLUDER, VICTIM, Attacker, assert_exposed, attack, refuses
from secagg_kit import Federation, Table

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import pack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg import policy
from fedvlm_secure.secagg.envelope import split
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound, Mask
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.session import RingSum


def low_threshold(corrupt: int) -> Attacker:
    """Threshold downgrade.

    Move: the plan asks for as many shares of a seed as there are colluders.
    Rule: P-2.4, the client computes t from n and c itself.
    Learnt when off: both seeds of every client, hence each update and weight, as soon as it has uploaded: `unmask`,
    with all its rules, is not even begun.
    """
    federation = Federation(clients=7, max_corrupt=corrupt)
    federation.plan = replace(federation.plan, threshold=corrupt)
    return attack(federation, colluders=federation.names[-corrupt:])


@pytest.mark.parametrize("corrupt", [1, 2])
def test_low_threshold_off(monkeypatch, corrupt):
    monkeypatch.setattr(policy, "_thresholds_are_sound", lambda plan: True)
    attacker = low_threshold(corrupt).until_uploads()
    for name in set(attacker.clients) - set(attacker.colluders):
        assert_exposed(attacker.federation, name, attacker.vector_of(name))


@pytest.mark.parametrize("corrupt", [1, 2])
def test_low_threshold_on(corrupt):
    attacker = low_threshold(corrupt)
    refuses(attacker.federation, lambda: attacker.collect_keys(VICTIM), "P-2.4", m.KEYS)


def ground_graph() -> tuple[Attacker, str]:
    """Degree downgrade: the attacker, and the victim's one honest neighbour.

    Move: the plan gives each client two neighbours, on a ring that follows from its hash. The server draws run names
    until the colluder sits beside the victim, and declares the neighbour on the other side dropped.
    Rule: P-2.4, complete graph where the server may lie.
    Learnt when off: the victim's update and weight. All five others answer, once, for one list that five have signed.
    """
    federation = Federation(clients=6)
    weak = replace(federation.plan, degree=2, threshold=2)
    drawn = (replace(weak, run=number.to_bytes(16)) for number in range(1000))
    federation.plan = next(plan for plan in drawn if COLLUDER in plan.neighbours(VICTIM))
    (neighbour,) = set(federation.plan.neighbours(VICTIM)) - {COLLUDER}
    return attack(federation), neighbour


def test_ground_graph_off(monkeypatch):
    monkeypatch.setattr(policy, "_thresholds_are_sound", lambda plan: True)
    attacker, neighbour = ground_graph()
    attacker.until_uploads(late=(neighbour,))
    survivors = tuple(name for name in attacker.clients if name != neighbour)
    attacker.unmask(survivors, [name for name in survivors if name != COLLUDER])
    assert_exposed(attacker.federation, VICTIM, attacker.vector_of(VICTIM))


def test_ground_graph_on():
    attacker, _ = ground_graph()
    refuses(attacker.federation, lambda: attacker.collect_keys(VICTIM), "P-2.4", m.KEYS)


def small_ring() -> Table:
    """Overflow of the ring.

    Move: the plan asks for 16 bits where n clients of that weight and precision need 24.
    Rule: P-2.5, the client computes the ring itself; nobody can configure it.
    Damage when off: the sum wraps, and nothing tells: checks and counters are small and fit.
    """
    federation = Federation(clients=6, weight_max=500)
    assert federation.plan.ring_bits == 24
    federation.plan = replace(federation.plan, ring_bits=16)
    return federation.table()


def test_small_ring_off(monkeypatch):
    monkeypatch.setattr(policy, "_ring_fits", lambda plan: True)
    table = small_ring()
    federation, total = table.federation, table.finish()
    truth = federation.expected(federation.names)
    np.testing.assert_array_equal(total.total, truth.astype(np.int16))
    means = [federation.plan.codec.decode(integers).mean for integers in (total.total, truth)]
    assert np.linalg.norm(means[0] - means[1]) > np.linalg.norm(means[1]) / 2


def test_small_ring_on():
    table = small_ring()
    client, federation = table.clients[VICTIM], table.federation
    refuses(federation, lambda: client.reply(table.request(VICTIM)), "P-2.5", m.KEYS)


def test_no_ring_is_large_enough():
    """An honest server cannot even propose such a sum."""
    layout = Federation().plan.layout
    wide = replace(layout, counters=(*layout.counters, Counter("pixels", 1 << 62)))
    with pytest.raises(MisuseError, match="need a ring of 72 bits"):
        propose(
            run=bytes(16),
            round=1,
            attempt=1,
            cohort=("a", "b", "c", "d"),
            layout=wide,
            clip_norm=1.0,
            roster=bytes(32),
            model=bytes(32),
        )


TRUE, DEAD = digest("the model"), digest("a model that learns nothing")


def another_model() -> Federation:
    """Another model for one client.

    Move: the victim is given the model, the others one whose activations are dead, so that they train to a zero update.
    Rule: P-2.3, the plan's model must be the one the client has hashed itself, where the plan is the same for all;
    where it is not, P-1.3 and the plan's hash in every derivation.
    Learnt when off: the victim's update, as the true sum of the round. Its weight stays hidden among the others'.
    """
    federation = Federation(clients=6)
    for name in set(federation.names) - {VICTIM}:
        still = np.zeros(federation.dimension, np.float32)
        federation.updates[name] = Update(still, federation.updates[name].counters)
    federation.plan = replace(federation.plan, model=DEAD)
    return federation


def table_with_two_models(federation: Federation, believed: bytes = TRUE) -> Table:
    """Everyone as it has loaded its model; ``believed`` is what the victim takes for the hash of its own."""
    table = federation.table()
    for name in federation.names:
        table.clients[name] = federation.client(name, model=believed if name == VICTIM else DEAD)
    return table


def assert_update_exposed(federation: Federation, total: RingSum, plan: Plan) -> None:
    """The sum's update is the victim's, as it has encoded it under ``plan``."""
    integers, size = plan.codec.encode(federation.updates[VICTIM]).integers, plan.layout.update
    assert np.count_nonzero(integers[:size]) > size // 2
    np.testing.assert_array_equal(total.total[:size], integers[:size])


def test_another_model_off():
    """The victim believes the plan instead of hashing what it has loaded."""
    federation = another_model()
    total = table_with_two_models(federation, believed=DEAD).finish()
    assert_update_exposed(federation, total, federation.plan)


def test_another_model_on():
    federation = another_model()
    table = table_with_two_models(federation)
    refuses(federation, lambda: table.clients[VICTIM].reply(table.request(VICTIM)), "P-2.3", m.KEYS)


def with_a_plan_of_its_own(federation: Federation) -> tuple[Table, Plan, bytes]:
    """The victim's plan names the victim's model, so that P-2.3 has nothing against it; and its first reply."""
    table, plan = table_with_two_models(federation), replace(federation.plan, model=TRUE)
    return table, plan, table.clients[VICTIM].reply(federation.says(m.KEYS, VICTIM, plan, plan))


def leave_the_model_out_of_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "hash", property(lambda plan: digest("plan", pack(replace(plan, model=bytes(32))))))


def test_a_plan_of_its_own_off(monkeypatch):
    leave_the_model_out_of_the_hash(monkeypatch)
    federation = another_model()
    table, plan, reply = with_a_plan_of_its_own(federation)
    table.server.receive(VICTIM, reply)
    assert_update_exposed(federation, table.finish(), plan)


def test_a_plan_of_its_own_on():
    """What its peers have signed is for their plan."""
    federation = another_model()
    table, plan, reply = with_a_plan_of_its_own(federation)
    table.play_until(m.SHARES, {VICTIM: m.KEYS})
    keys = table.server._kept.keys | {VICTIM: bytes(split(reply)[0])}
    request = federation.says(m.SHARES, VICTIM, m.KeyList(keys, {}), plan)
    refuses(federation, lambda: table.clients[VICTIM].reply(request), "P-1.3", m.SHARES)


def test_a_plan_of_its_own_and_pair_masks_bound_to_it(monkeypatch):
    """Were the model bound in nothing but the pair masks, the victim's would not cancel: the sum is garbage, and known
    to be."""
    leave_the_model_out_of_the_hash(monkeypatch)
    genuine = Bound.pair_mask

    def bound_to_the_model(bound: Bound, seed: Secret, me: str, peer: str) -> Mask:
        return genuine(Bound(digest("bound", bound.plan, TRUE if me == VICTIM else DEAD)), seed, me, peer)

    monkeypatch.setattr(Bound, "pair_mask", bound_to_the_model)
    table, _, reply = with_a_plan_of_its_own(another_model())
    table.server.receive(VICTIM, reply)
    with pytest.raises(ProtocolError) as refusal:
        table.finish()
    assert refusal.value.clause == "P-8.1"
