"""Who took no part in a round, or has lost its sum, reads it afterwards off the server's bulletin."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from encrypted_kit import MODEL, EncryptedFederation, EncryptedTable, following, opened
from secagg_kit import identity, refused

from fedvlm_secure.errors import MisuseError, PolicyRefusalError, ProtocolError
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, readings_allowed
from fedvlm_secure.secagg.encrypted.reading import CatchUp
from fedvlm_secure.secagg.encrypted.server import relay
from fedvlm_secure.secagg.envelope import join, seal, split
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import SERVER, KeyPin, Memory, RingSum
from fedvlm_secure.secagg.upload import digests_of

BOTH = pytest.mark.parametrize("protocol", [BFV, CKKS])
ABSENT, LOST, READER = "c01", "c02", "c00"


def round_without(protocol: str, **silent: str) -> EncryptedTable:
    """A finished round of five; by default c01 took no part, and c02 never saw the sum."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table()
    table.finish_rightly(silent or {ABSENT: m.KEYS, LOST: m.SUM})
    return table


def message_to(table: EncryptedTable, name: str) -> bytes:
    return relay(table.server.bulletin, identity(SERVER), name)


def read(table: EncryptedTable, name: str, memory: Memory | None = None, **changes: Any) -> tuple[CatchUp, RingSum]:
    party = table.federation.party(name, **changes)
    if memory is None:
        memory = table.clients[name].memory if name in table.clients else Memory()
    reading = CatchUp(party, memory, message_to(table, name))
    return reading, reading.read()


def pin(memory: Memory) -> KeyPin:
    return memory.keys[bytes(16).hex()]


@BOTH
def test_everyone_reads_the_same_sum(protocol):
    """Absent, forgetful or outside the cohort: bit for bit what the survivors read, so that the next models agree."""
    table = round_without(protocol)
    sum_read = table.clients[READER].sum
    for name in (ABSENT, LOST, READER, "stranger"):
        reading, total = read(table, name)
        assert reading.plan == table.federation.plan
        np.testing.assert_array_equal(total.total, sum_read.total)
        assert (total.survivors, total.dropped) == (sum_read.survivors, sum_read.dropped)
        decoded = reading.plan.codec.decode(total.total)
        assert following(decoded) == table.server.aggregate().model


@BOTH
def test_and_takes_part_in_the_next_round(protocol):
    """The key is pinned by catching up: the next assignment has to come under the same one."""
    table = round_without(protocol)
    for name in (ABSENT, LOST):
        reading, _ = read(table, name)
        before = table.clients[name].memory
        assert reading.memory == replace(before, keys=reading.memory.keys)
        assert pin(reading.memory) == KeyPin(1, table.server._key().digest, 1)
        table.clients[name]._memory = reading.memory
    federation = table.federation.after(table, round=4, model=table.server.aggregate().model)
    assert federation.table().finish_rightly().survivors == federation.names


@BOTH
def test_what_must_be_remembered_is_known_before_the_reading(protocol):
    """So that it can be put down durably first: a crash in between does not make the reading uncounted."""
    table = round_without(protocol)
    reading = CatchUp(table.federation.party(ABSENT), Memory(), message_to(table, ABSENT))
    before = reading.memory
    assert pin(before).readings == 1
    reading.read()
    assert reading.memory == before
    again = CatchUp(table.federation.party(ABSENT), before, message_to(table, ABSENT))
    assert pin(again.memory).readings == 2
    client = table.clients[READER]
    assert pin(CatchUp(client._party, client.memory, message_to(table, READER)).memory).readings == 2


@BOTH
def test_readings_by_catching_up_end_as_well(protocol):
    table = round_without(protocol)
    allowed = readings_allowed(len(table.federation.roster.members))
    digest = table.server._key().digest
    most = Memory(keys={bytes(16).hex(): KeyPin(1, digest, allowed)})
    refused(lambda: read(table, ABSENT, most), "E-5.6", SERVER)
    read(table, ABSENT, Memory(keys={bytes(16).hex(): KeyPin(1, digest, allowed - 1)}))


@BOTH
def test_a_spoilt_key_still_reads(protocol):
    """Nothing is encrypted under it any more; the sum that the others agreed on is what the next round starts from."""
    table = round_without(protocol)
    spoilt = Memory(keys={bytes(16).hex(): KeyPin(1, table.server._key().digest, 3, spoiled=True)})
    reading, total = read(table, ABSENT, spoilt)
    table.check(total.total, total.survivors)
    assert pin(reading.memory) == KeyPin(1, table.server._key().digest, 4, spoiled=True)


@BOTH
@pytest.mark.parametrize(
    ("changes", "clause"),
    [({"model": bytes(32)}, "P-2.3"), ({"roster": "a later version"}, "P-2.2")],
)
def test_another_model_or_roster(protocol, changes, clause):
    """A member that stands elsewhere must not move from there by this sum."""
    table = round_without(protocol)
    if "roster" in changes:
        changes = {"roster": replace(table.federation.roster, version=2)}
    assert table.federation.plan.model == MODEL
    refused(lambda: read(table, ABSENT, **changes), clause, SERVER)


@BOTH
def test_a_policy_holds_for_sums_read_later_too(protocol):
    table = round_without(protocol)
    policy = replace(table.federation.policy, min_cohort=6)
    with pytest.raises(PolicyRefusalError):
        read(table, ABSENT, policy=policy)


@BOTH
def test_an_older_key_is_refused(protocol):
    """Whoever has gone on to a later epoch reads no sums of an earlier one, and no second key in one epoch."""
    table = round_without(protocol)
    for known in (KeyPin(2, None), KeyPin(2, bytes(32)), KeyPin(1, bytes(32))):
        refused(lambda known=known: read(table, ABSENT, Memory(keys={bytes(16).hex(): known})), "E-3.4", SERVER)


def lying(table: EncryptedTable, change: Callable[[m.EncryptedSum, list[bytes]], tuple]) -> bytes:
    body, chunks = opened(message_to(table, ABSENT), m.EncryptedSum)
    body, chunks = change(body, chunks)
    return join([seal(identity(SERVER), m.SUM, body.plan.hash, SERVER, ABSENT, body), *chunks])


@BOTH
@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda b, c: (replace(b, survivors=b.survivors[:2]), c), "E-5.1"),
        (lambda b, c: (replace(b, survivors=(*b.survivors, "stranger")), c), "E-5.1"),
        (lambda b, c: (replace(b, digests=()), []), "E-5.2"),
        (lambda b, c: (replace(b, digests=digests_of([b"x"])), [b"x"]), "E-5.3"),
        (lambda b, c: (replace(b, survivors=(*b.survivors[:3], "c04")), c), None),
        (lambda b, c: (replace(b, survivors=("c00", "c01", "c02")), c), "E-5.4"),
        (lambda b, c: (replace(b, plan=replace(b.plan, attempt=9)), c), "E-5.4"),
        (lambda b, c: (replace(b, plan=replace(b.plan, protocol="pairwise")), c), "P-2.6"),
        (lambda b, c: (replace(b, plan=replace(b.plan, run=bytes(15) + b"x")), c), "E-3.2"),
    ],
    ids=["short", "foreign", "no chunks", "garbage", "truth", "other list", "attempt", "protocol", "run"],
)
def test_lies_to_a_member_that_catches_up(protocol, change, clause):
    """The same rules as in the round itself; what does not fit its list spoils the key here too."""
    table = round_without(protocol)
    party = table.federation.party(ABSENT)
    party = replace(party, policy=replace(party.policy, protocols=(protocol, "pairwise")))
    message = lying(table, change)
    if clause is None:
        CatchUp(party, Memory(), message).read()
        return
    if clause not in ("E-5.3", "E-5.4"):
        refused(lambda: CatchUp(party, Memory(), message), clause, SERVER)
        return
    reading = CatchUp(party, Memory(), message)
    error = refused(reading.read, clause, SERVER)
    assert error.phase == m.SUM
    assert reading.memory.keys == {bytes(16).hex(): KeyPin(1, table.server._key().digest, 1, spoiled=True)}
    assert reading.memory.answered == ()


@BOTH
def test_damage_on_the_way(protocol):
    table = round_without(protocol)
    party, message = table.federation.party(ABSENT), message_to(table, ABSENT)
    envelope, *chunks = (bytes(frame) for frame in split(message))
    for bad in (
        b"",
        message[:-1],
        message + b"\0",
        join([envelope]),
        join([envelope, *chunks[:-1], chunks[-1][:-1] + bytes([chunks[-1][-1] ^ 1])]),
        join([envelope[:-1] + bytes([envelope[-1] ^ 1]), *chunks]),
        message_to(table, LOST),
        message_to(table, "stranger"),
    ):
        with pytest.raises(ProtocolError) as refusal:
            CatchUp(party, Memory(), bad)
        assert refusal.value.party == "network"


def test_only_a_finished_round_has_a_bulletin():
    table = EncryptedFederation().table()
    while not table.server.done:
        with pytest.raises(MisuseError):
            _ = table.server.bulletin
        table.play_phase()
        table.server.end_phase()
    assert table.server.bulletin


def test_a_bulletin_is_for_members_only():
    with pytest.raises((KeyError, MisuseError)):
        message_to(round_without(BFV), "nobody")


def test_who_has_something_to_catch_up_with():
    for protocol in (BFV, CKKS):
        assert lookup(protocol).catch_up is CatchUp
        assert lookup(protocol).relay is relay
    for protocol in ("pairwise", "plain"):
        assert lookup(protocol).catch_up is None
        assert lookup(protocol).relay is None
