"""Both halves of the encrypted protocols survive a restart after every message; keys outlive rounds, not mistakes."""

from dataclasses import replace

import numpy as np
import pytest
from encrypted_kit import THREE_CHUNKS, EncryptedFederation, EncryptedTable, held, opened, pin_of, says
from secagg_kit import identity, refused

from fedvlm_secure.errors import MisuseError, RoundAbortedError
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.client import ClientRecord, fingerprint
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.client import BfvClient, CkksClient, EncryptedClient
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, readings_allowed
from fedvlm_secure.secagg.encrypted.server import Carried, EncryptedRecord, EncryptedServer
from fedvlm_secure.secagg.server import ServerRecord
from fedvlm_secure.secagg.session import SERVER, KeyPin
from fedvlm_secure.secagg.upload import digests_of

BOTH = pytest.mark.parametrize("protocol", [BFV, CKKS])
SILENT = {"c01": m.INPUT, "c02": m.SUM}


def reborn(federation: EncryptedFederation, client: EncryptedClient) -> EncryptedClient:
    name = client._party.name
    again = type(client).from_bytes(client.to_bytes(), federation.party(name), federation.updates[name], client.memory)
    assert again.to_bytes() == client.to_bytes()
    assert again.memory == client.memory
    return again


def reborn_server(server: EncryptedServer) -> EncryptedServer:
    again = EncryptedServer.from_bytes(server.to_bytes(), identity(SERVER))
    assert again.to_bytes() == server.to_bytes()
    assert (again.phase, again.transcript, again.carried) == (server.phase, server.transcript, server.carried)
    return again


def restarting_round(table: EncryptedTable) -> EncryptedTable:
    """Every party is killed and started again before and after everything that it says."""
    federation = table.federation
    table.server = reborn_server(table.server)
    while not table.server.done:
        for name in dict(table.server.requests()):
            if m.PHASES.index(table.server.phase) >= m.PHASES.index(SILENT.get(name, m.SUM)) and name in SILENT:
                continue
            requests = dict(table.server.requests())
            table.server = reborn_server(table.server)
            assert dict(table.server.requests()) == requests
            table.clients[name] = reborn(federation, table.clients[name])
            reply = table.clients[name].reply(requests[name])
            total = table.clients[name].sum
            # Killed after persisting and before sending: asked again, it says the same.
            table.clients[name] = reborn(federation, table.clients[name])
            assert table.clients[name].reply(requests[name]) == reply
            assert table.clients[name].sum is None, "not durable: hence catching up"
            table.server.receive(name, reply)
            table.server = reborn_server(table.server)
            if table.server.phase == m.SUM:
                table.check(total.total, total.survivors)
        table.server.end_phase()
        table.server = reborn_server(table.server)
    return table


@BOTH
def test_a_restart_after_every_message(protocol):
    federation = EncryptedFederation(clients=6, protocol=protocol, dimension=THREE_CHUNKS, rounding="nearest", seed=4)
    first = restarting_round(federation.table())
    sealed = first.server.aggregate()
    assert sealed.survivors == ("c00", "c02", "c03", "c04", "c05")
    assert sealed.dropped == ("c01",)
    second = restarting_round(federation.after(first, round=4, model=sealed.model).table())
    assert second.server.aggregate().survivors == sealed.survivors


@BOTH
def test_identical_requests_get_identical_replies(protocol):
    """Under stochastic rounding and fresh encryption a second run of the same code would not give the same bytes."""
    federation = EncryptedFederation(protocol=protocol, dimension=200, rounding="stochastic")
    table = federation.table()
    while not table.server.done:
        for name, request in table.server.requests():
            reply = table.clients[name].reply(request)
            for client in (table.clients[name], reborn(federation, table.clients[name])):
                assert client.reply(request) == reply
            table.server.receive(name, reply)
        table.server.end_phase()


@BOTH
def test_an_uploaded_update_is_not_sent_again(protocol):
    """Not in a later attempt, nor by a copy of an older state: two ciphertexts under one pad are two equations."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.INPUT)
    states = {name: client.to_bytes() for name, client in table.clients.items()}
    table.play_phase({"c04": m.INPUT})
    again = federation.after(table, attempt=3, seed=federation.seed)
    for name in ("c00", "c01", "c02", "c03"):
        client = table.clients[name]
        assert client.memory.answered == (fingerprint(federation.updates[name]),)
        with pytest.raises(MisuseError, match="train again"):
            again.client(name)
        with pytest.raises(MisuseError, match="overtaken"):
            type(client).from_bytes(states[name], federation.party(name), federation.updates[name], client.memory)
    assert again.client("c04").memory.answered == ()


@BOTH
def test_nothing_is_latched_before_the_upload(protocol):
    """A round that ended before it, for want of a key, costs no training."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.INPUT)
    assert all(not client.memory.answered for client in table.clients.values())
    again = federation.after(table, attempt=3, seed=federation.seed, carried=table.server.carried).table()
    assert again.finish_rightly().survivors == federation.names


@BOTH
def test_a_second_round_takes_two_messages_a_client(protocol):
    federation = EncryptedFederation(protocol=protocol)
    first = federation.table()
    sealed = first.finish_rightly()
    assert [len(first.replies[phase]) for phase in m.PHASES] == [1, 5, 5]
    for number, silent in ((4, {"c03": m.INPUT}), (5, {})):
        first.server = reborn_server(first.server)
        following = first.federation.after(first, round=number, model=sealed.model)
        second = following.table()
        assert second.server.phase == m.INPUT
        sealed = second.finish_rightly(silent)
        taking_part = 5 - len(silent)
        assert [len(second.replies[phase]) for phase in m.PHASES] == [0, taking_part, taking_part]
        assert second.server._key() == first.server._key()
        first = second
    pins = {name: pin_of(client) for name, client in first.clients.items()}
    assert {pin.readings for name, pin in pins.items() if name != "c03"} == {3}
    assert pins["c03"].readings == 2


@BOTH
def test_rotated_asks_for_a_new_key(protocol):
    federation = EncryptedFederation(protocol=protocol)
    first = federation.table()
    sealed = first.finish_rightly()
    rotated = EncryptedServer.rotated(first.server.carried)
    assert unpack(Carried, rotated) == Carried(2)
    assert EncryptedServer.rotated(b"") == b""
    second = federation.after(first, round=4, model=sealed.model, carried=rotated).table()
    assert (second.server.phase, list(dict(second.server.requests()))) == (m.KEYS, ["c01"])
    second.finish_rightly()
    assert {(pin_of(client).epoch, pin_of(client).readings) for client in second.clients.values()} == {(2, 1)}
    assert second.server._key() != first.server._key()


def test_a_key_dealt_for_another_roster_is_not_carried_on():
    """A member fewer: clients would refuse the old dealing (E-3.2), so the server asks for a new one."""
    first = EncryptedFederation().table()
    model = first.finish_rightly().model
    following = first.federation.after(first, round=4, model=model)
    following.roster = following.roster.without("stranger")
    second = following.table()
    assert second.finish_rightly().survivors == following.names
    assert {pin_of(client).epoch for client in second.clients.values()} == {2}


def test_a_silent_dealer_costs_an_attempt_and_no_more():
    """Every epoch asks the next client of the cohort, around to the first again."""
    federation = EncryptedFederation(clients=3)
    table = federation.table()
    for attempt, dealer in ((3, "c00"), (4, "c01"), (5, "c02"), (6, "c00")):
        assert list(dict(table.server.requests())) == [dealer]
        with pytest.raises(RoundAbortedError) as refusal:
            table.server.end_phase()
        assert (refusal.value.clause, refusal.value.party) == ("E-3.1", dealer)
        table.server = reborn_server(table.server)
        with pytest.raises(MisuseError):
            next(table.server.requests())
        table = federation.after(table, attempt=attempt, seed=federation.seed).table()
    assert table.finish_rightly().survivors == federation.names
    assert {pin_of(client).epoch for client in table.clients.values()} == {5}


@BOTH
@pytest.mark.parametrize("silent", [0, 1, 2, 3, 4, 5])
def test_too_few_uploads(protocol, silent):
    """Three of five are enough (a majority); of fewer nobody is sent a sum, and the next attempt has a new key."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.INPUT)
    table.play_phase(dict.fromkeys(federation.names[:silent], m.INPUT))
    if silent <= 2:
        table.server.end_phase()
        return
    with pytest.raises(RoundAbortedError) as refusal:
        table.server.end_phase()
    assert refusal.value.clause == "E-4.5"
    assert unpack(Carried, reborn_server(table.server).carried) == Carried(2)


@BOTH
def test_after_a_failed_check_nothing_more_is_encrypted_under_that_key(protocol):
    """The server may go on offering the key to the one client that has not answered yet: E-5.6, in every attempt."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.SUM)
    body, _ = table.truth("c00", m.EncryptedSum)
    uploads = opened(table.replies[m.INPUT]["c01"], m.EncryptedUpload)[1]
    client = table.clients["c00"]
    lie = says(federation, m.SUM, "c00", replace(body, digests=digests_of(uploads)), uploads)
    refused(lambda: client.reply(lie), "E-5.4", SERVER)
    assert pin_of(client) == KeyPin(1, table.server._key().digest, 1, spoiled=True)
    client = table.clients["c00"] = reborn(federation, client)
    assert (client.refusal.clause, client.refusal.party) == ("E-5.4", SERVER)
    for request in (lie, table.request("c00")):
        with pytest.raises(MisuseError):
            client.reply(request)

    table.play_phase({"c00": m.SUM})
    table.server.end_phase()  # a majority has read it
    old = table.server.carried
    following = federation.after(table, round=4, model=table.server.aggregate().model)
    after = following.table()
    assert after.server.phase == m.INPUT
    refused(lambda: after.clients["c00"].reply(after.request("c00")), "E-5.6", SERVER)
    assert fingerprint(following.updates["c00"]) not in after.clients["c00"].memory.answered
    assert after.finish_rightly({"c00": m.INPUT}).survivors == ("c01", "c02", "c03", "c04")

    rotated = EncryptedServer.rotated(old)
    after = federation.after(table, round=4, model=table.server.aggregate().model, carried=rotated).table()
    assert after.finish_rightly().survivors == federation.names
    assert not pin_of(after.clients["c00"]).spoiled


@BOTH
def test_readings_under_one_key_are_counted_and_end(protocol):
    """Each is worth a bit to a server that lies: all members together give at most as many as leave the key hard."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.SUM)
    allowed = readings_allowed(len(federation.roster.members))
    assert allowed * len(federation.roster.members) <= 2048
    client, digest = table.clients["c00"], table.server._key().digest
    for readings, fits in ((allowed - 1, True), (allowed, False), (allowed + 1, False)):
        pins = {bytes(16).hex(): KeyPin(1, digest, readings)}
        record = unpack(ClientRecord, client.to_bytes(), STATE_LIMITS)
        state = pack(replace(record, memory=replace(record.memory, keys=pins)), STATE_LIMITS)
        again = type(client).from_bytes(state, federation.party("c00"), federation.updates["c00"])
        if fits:
            again.reply(table.request("c00"))
            assert pin_of(again).readings == allowed
        else:
            refused(lambda again=again: again.reply(table.request("c00")), "E-5.6", SERVER)
            assert again.sum is None
            assert pin_of(again).readings == readings


def test_the_server_rotates_before_clients_run_out_of_readings():
    federation = EncryptedFederation()
    table = federation.table()
    table.finish_rightly()
    allowed = readings_allowed(len(federation.roster.members))
    carried = table.server._carried
    for sums in (0, 1, allowed // 2 - 3, allowed // 2 - 2, allowed // 2 - 1, allowed // 2, allowed):
        table.server._carried = replace(carried, sums=sums)
        kept = unpack(Carried, table.server.carried, STATE_LIMITS)
        if kept.key is None:
            assert kept == Carried(2)
            assert 2 * (sums + 1) >= allowed - 2
        else:
            assert kept == replace(carried, sums=sums + 1)
            assert 2 * (kept.sums + 1) <= allowed


@BOTH
def test_a_session_is_not_resumed_under_another_roster_model_update_or_protocol(protocol):
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.SUM)
    client, update = table.clients["c01"], federation.updates["c01"]
    kind, state = type(client), client.to_bytes()
    for party in (
        federation.party("c01", model=bytes(32)),
        federation.party("c01", roster=replace(federation.roster, version=2)),
    ):
        with pytest.raises(MisuseError, match="roster or model"):
            kind.from_bytes(state, party, update)
    with pytest.raises(MisuseError, match="another update"):
        kind.from_bytes(state, federation.party("c01"), federation.updates["c02"])
    with pytest.raises(MisuseError, match="protocol"):
        (CkksClient if protocol == BFV else BfvClient).from_bytes(state, federation.party("c01"), update)
    for bad in (b"", state[:-1], state + b"\0", table.server.to_bytes()):
        with pytest.raises(WireError):
            kind.from_bytes(bad, federation.party("c01"), update)


@BOTH
@pytest.mark.parametrize("phase", [m.INPUT, m.SUM])
def test_a_damaged_state_of_the_server(protocol, phase):
    """Every damage to what it keeps of the sum is said to be one, and not another kind of error."""
    table = EncryptedFederation(protocol=protocol, dimension=THREE_CHUNKS).table().play_until(m.INPUT)
    table.play_phase()
    if phase == m.SUM:
        table.server.end_phase()
    state = table.server.to_bytes()
    record = unpack(ServerRecord, state, STATE_LIMITS)
    own = unpack(EncryptedRecord, record.own, STATE_LIMITS)
    damaged = [state[:-1], b"", pack(replace(record, own=b""), STATE_LIMITS), pack(replace(record, phase="lunch"))]
    if phase == m.INPUT:
        owns = [replace(own, total=(total, *own.total[1:])) for total in (own.total[0][:-1], b"")]
        damaged += [pack(replace(record, own=pack(bad, STATE_LIMITS)), STATE_LIMITS) for bad in owns]
    for bad in damaged:
        with pytest.raises(WireError):
            EncryptedServer.from_bytes(bad, identity(SERVER))
    with pytest.raises(MisuseError):
        EncryptedServer.from_bytes(state, identity("stranger"))


@BOTH
def test_states_hold_no_key(protocol):
    """A client's own file neither: the key comes again with every assignment and every sum, in its box."""
    table = EncryptedFederation(protocol=protocol).table().play_until(m.SUM)
    secret = held(table, "c01").secret.reveal()
    for client in table.clients.values():
        assert secret not in client.to_bytes()
    assert secret not in table.server.to_bytes()


@BOTH
def test_training_in_place_after_the_session_was_opened(protocol):
    """Nothing is encrypted of an update that is not the one the session remembers."""
    federation = EncryptedFederation(protocol=protocol)
    table = federation.table().play_until(m.INPUT)
    client = table.clients["c01"]
    before = client.memory
    federation.updates["c01"].values[3] += np.float32(1)
    with pytest.raises(MisuseError, match="changed after"):
        client.reply(table.request("c01"))
    assert client.memory == before
