"""Plans that are weaker than they look, or come a second time: the client recomputes every number itself."""

import struct
from dataclasses import replace

import pytest
from secagg_kit import Federation, identity, refused

from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import PolicyRefusalError, ProtocolError
from fedvlm_secure.secagg.envelope import join, seal
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Policy
from fedvlm_secure.secagg.session import SERVER, Memory

VICTIM = "c01"
FEDERATION = Federation(clients=6)
PLAN = FEDERATION.plan
NARROW = VectorLayout(PLAN.layout.update, (Counter("weight", 1 << 30),), 12, 1 << 30)


def wider_roster() -> bytes:
    return replace(FEDERATION.roster, version=2).hash


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"spec": "fedvlm-secure/0"}, "P-2.1"),
        ({"roster": wider_roster()}, "P-2.2"),
        ({"cohort": (*PLAN.cohort[:5], "sybil")}, "P-2.2"),
        ({"cohort": (*PLAN.cohort[:5], SERVER)}, "P-2.2"),
        ({"cohort": (*PLAN.cohort, PLAN.cohort[-1])}, "P-2.2"),
        ({"cohort": PLAN.cohort[::-1]}, "P-2.2"),
        ({"cohort": tuple(name for name in PLAN.cohort if name != VICTIM)}, "P-2.2"),
        ({"cohort": ()}, "P-2.2"),
        ({"model": bytes(32)}, "P-2.3"),
        ({"threshold": 1}, "P-2.4"),
        ({"threshold": 3}, "P-2.4"),
        ({"threshold": 0}, "P-2.4"),
        ({"threshold": 7, "min_survivors": 7}, "P-2.4"),
        ({"min_survivors": 3}, "P-2.4"),
        ({"min_survivors": 7}, "P-2.4"),
        ({"max_corrupt": 5}, "P-2.4"),
        ({"threat_model": "trust-me"}, "P-2.4"),
        ({"ring_bits": 8}, "P-2.5"),
        ({"ring_bits": PLAN.ring_bits + 8}, "P-2.5"),
        ({"ring_bits": 0}, "P-2.5"),
        ({"layout": NARROW}, "P-2.5"),
        ({"clip": struct.pack(">d", float("nan"))}, "P-2.5"),
        ({"clip": struct.pack(">d", 0.0)}, "P-2.5"),
        ({"clip": struct.pack(">d", 5e-324)}, "P-2.5"),  # a step of zero
        ({"clip": struct.pack(">d", 1.7e308)}, "P-2.5"),  # a step of infinity, under which every update is zero
        ({"rounding": "down"}, "P-2.5"),
        ({"protocol": "plain"}, "P-2.6"),
        ({"protocol": "nonsense"}, "P-2.6"),
        ({"round": 0}, "P-2.7"),
        ({"attempt": 0}, "P-2.7"),
    ],
    ids=str,
)
def test_a_lying_plan_is_refused_and_nothing_is_made_for_it(change, clause):
    lie = replace(PLAN, **change)
    client = FEDERATION.client(VICTIM)
    before = client.to_bytes()
    error = refused(lambda: client.reply(FEDERATION.says(m.KEYS, VICTIM, lie, lie)), clause, SERVER)
    assert error.phase == m.KEYS
    assert client.to_bytes() == before
    assert client.reply(FEDERATION.says(m.KEYS, VICTIM, PLAN))


@pytest.mark.parametrize(
    ("policy", "plan"),
    [
        ({"max_corrupt": 2}, {}),
        ({"min_cohort": 7}, {}),
        ({"min_survivors": 5}, {}),
        ({"protocols": ("plain",)}, {}),
        ({}, {"threat_model": "honest-but-curious", "threshold": 3, "min_survivors": 3}),
        ({}, {"max_corrupt": 0}),
    ],
    ids=str,
)
def test_a_sound_plan_below_the_clients_floors_is_refused(policy, plan):
    weak = replace(PLAN, **plan)
    client = FEDERATION.client(VICTIM, policy=replace(Policy(), **policy))
    with pytest.raises(PolicyRefusalError) as refusal:
        client.reply(FEDERATION.says(m.KEYS, VICTIM, weak, weak))
    assert (refusal.value.clause, refusal.value.party) == ("P-2.6", SERVER)


def test_a_plan_sealed_under_another_hash():
    client = FEDERATION.client(VICTIM)
    refused(lambda: client.reply(FEDERATION.says(m.KEYS, VICTIM, PLAN, replace(PLAN, attempt=9))), "P-1.3", "network")


def test_a_plan_of_another_server():
    client = FEDERATION.client(VICTIM)
    refused(lambda: client.reply(FEDERATION.says(m.KEYS, VICTIM, PLAN, sender="c02")), "P-1.5", "network")
    forged = join([seal(identity("c02"), m.KEYS, PLAN.hash, SERVER, VICTIM, PLAN)])
    refused(lambda: client.reply(forged), "P-1.2", "network")


@pytest.mark.parametrize(
    ("place", "sound"), [((3, 2), False), ((3, 1), False), ((2, 9), False), ((3, 3), True), ((4, 1), True)]
)
def test_a_replayed_plan(place, sound):
    federation = Federation(clients=6)
    table = federation.table().play_until(m.SHARES)
    memory: Memory = table.clients[VICTIM].memory
    assert memory.begun == {federation.plan.run.hex(): (3, 2)}
    federation.memories[VICTIM] = memory
    plan: Plan = replace(federation.plan, round=place[0], attempt=place[1])
    client, request = federation.client(VICTIM), federation.says(m.KEYS, VICTIM, plan, plan)
    if sound:
        assert client.reply(request)
        assert client.memory.begun == {plan.run.hex(): place}
    else:
        refused(lambda: client.reply(request), "P-2.7", SERVER)
        assert client.memory == memory


def test_a_plan_of_an_older_run():
    """Another run in between changes nothing: what was begun in each is remembered."""
    federation = Federation(clients=6)
    for run in (b"a", b"b"):
        plan: Plan = replace(federation.plan, run=run * 16)
        client = federation.client(VICTIM)
        client.reply(federation.says(m.KEYS, VICTIM, plan, plan))
        federation.memories[VICTIM] = client.memory
    for run, attempt, sound in ((b"a", 2, False), (b"b", 2, False), (b"a", 3, True), (b"c", 1, True)):
        plan = replace(federation.plan, run=run * 16, attempt=attempt)
        client, request = federation.client(VICTIM), federation.says(m.KEYS, VICTIM, plan, plan)
        if sound:
            assert client.reply(request)
        else:
            refused(lambda: client.reply(request), "P-2.7", SERVER)  # noqa: B023  # called at once


def test_a_client_shown_another_model_is_alone_with_it():
    """Were it to accept, the plan's hash in every derivation would keep its masks from cancelling."""
    federation = Federation(clients=6)
    other = replace(federation.plan, model=bytes(32))
    client = federation.client(VICTIM)
    refused(lambda: client.reply(federation.says(m.KEYS, VICTIM, other, other)), "P-2.3", SERVER)
    table = federation.table()
    table.clients[VICTIM] = federation.client(VICTIM, model=bytes(32))  # it holds that model and believes the plan
    reply = table.clients[VICTIM].reply(federation.says(m.KEYS, VICTIM, other, other))
    with pytest.raises(ProtocolError) as refusal:
        table.server.receive(VICTIM, reply)
    assert refusal.value.clause == "P-1.3"
