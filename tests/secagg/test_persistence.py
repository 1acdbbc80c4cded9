"""Both halves survive a restart after every message, with the identical continuation."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_kit import PHASES, Federation, identity, refused

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.stream import CHUNK
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.messages import KeyList
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plain import PlainClient
from fedvlm_secure.secagg.server import ServerRecord
from fedvlm_secure.secagg.session import SERVER

SILENT = {"c00": "masked-input", "c04": "unmask"}


def reborn(federation: Federation, client: PairwiseClient) -> PairwiseClient:
    name = client._party.name
    again = PairwiseClient.from_bytes(
        client.to_bytes(), federation.party(name), federation.updates[name], client.memory
    )
    assert again.to_bytes() == client.to_bytes()
    return again


def reborn_server(server: PairwiseServer) -> PairwiseServer:
    again = PairwiseServer.from_bytes(server.to_bytes(), identity(SERVER))
    assert again.to_bytes() == server.to_bytes()
    assert (again.phase, again.transcript) == (server.phase, server.transcript)
    return again


def test_a_restart_after_every_message():
    federation = Federation(clients=6, rounding="stochastic")
    table = federation.table()
    table.server = reborn_server(table.server)
    while not table.server.done:
        for name in dict(table.server.requests()):
            if PHASES.index(table.server.phase) >= PHASES.index(SILENT.get(name, "unmask")) and name in SILENT:
                continue
            requests = dict(table.server.requests())
            table.server = reborn_server(table.server)
            assert dict(table.server.requests()) == requests
            table.clients[name] = reborn(federation, table.clients[name])
            reply = table.clients[name].reply(requests[name])
            # Killed after persisting and before sending: asked again, it says the same.
            table.clients[name] = reborn(federation, table.clients[name])
            assert table.clients[name].reply(requests[name]) == reply
            table.server.receive(name, reply)
            table.server = reborn_server(table.server)
        table.server.end_phase()
        table.server = reborn_server(table.server)
    total = table.server.aggregate()
    assert total.survivors == ("c01", "c02", "c03", "c04", "c05")
    decoded = federation.plan.codec.decode(total.total)
    assert decoded.counters["weight"] == sum(federation.updates[name].counters["weight"] for name in total.survivors)


@pytest.mark.parametrize("weight_max", [1, 50, 1 << 20])  # rings of 24, 32 and 48 bits
def test_a_restart_between_uploads_of_several_chunks(weight_max):
    """The sum so far is read back at full width: no value may carry into its neighbour, at a chunk's border least."""
    federation = Federation(clients=4, dimension=2 * CHUNK + 7, weight_max=weight_max)
    table = federation.table().play_until("masked-input")
    for name, request in table.server.requests():
        table.server.receive(name, table.clients[name].reply(request))
        reborn_server(table.server)
    while not table.server.done:
        table.server = reborn_server(table.server)
        for name, request in table.server.requests():
            table.server.receive(name, table.clients[name].reply(request))
        table.server.end_phase()
    total = reborn_server(table.server).aggregate()
    np.testing.assert_array_equal(total.total, federation.expected(total.survivors))


def test_a_restart_between_uploads_that_goes_on():
    federation = Federation(clients=4, dimension=2 * CHUNK + 7)
    table = federation.table().play_until("masked-input")
    for name in federation.names:
        request = table.request(name)
        table.server = reborn_server(table.server)
        table.server.receive(name, table.clients[name].reply(request))
    table.finish_rightly()


def test_a_session_is_not_resumed_under_another_roster_or_model():
    federation = Federation()
    state = federation.table().play_until("consistency").clients["c01"].to_bytes()
    others = (
        federation.party("c01", model=bytes(32)),
        federation.party("c01", roster=replace(federation.roster, version=2)),
    )
    for party in others:
        with pytest.raises(MisuseError, match="roster or model"):
            PairwiseClient.from_bytes(state, party, federation.updates["c01"])


@pytest.mark.parametrize("phase", PHASES[1:])
def test_two_copies_of_one_state_go_on_alike(phase):
    """Where nothing random is left to draw: hence `nearest` rounding, and not in `shares`."""
    federation = Federation()
    table = federation.table().play_until(phase)
    for name, request in table.server.requests():
        one, other = reborn(federation, table.clients[name]), reborn(federation, table.clients[name])
        replies = one.reply(request), other.reply(request)
        assert phase == "shares" or replies[0] == replies[1]
    table.finish_rightly()


def test_a_closed_session_stays_closed():
    federation = Federation()
    table = federation.table().play_until("shares")
    client = table.clients["c01"]
    refused(lambda: client.reply(federation.says("shares", "c01", KeyList({}, {}))), "P-3.3", SERVER)
    for session in (client, reborn(federation, client)):
        with pytest.raises(MisuseError):
            session.reply(table.request("c01"))


def test_what_is_no_state_of_this_session():
    federation = Federation()
    table = federation.table().play_until("consistency")
    state, party, update = table.clients["c01"].to_bytes(), federation.party("c01"), federation.updates["c01"]
    for bad in (b"", state[:-1], state + b"\0", table.server.to_bytes()):
        with pytest.raises(WireError):
            PairwiseClient.from_bytes(bad, party, update)
        if bad != table.server.to_bytes():
            with pytest.raises(WireError):
                PairwiseServer.from_bytes(bad, identity(SERVER))
    with pytest.raises(MisuseError):
        PlainClient.from_bytes(state, party, update)
    with pytest.raises(MisuseError):
        PairwiseServer.from_bytes(table.server.to_bytes(), identity("stranger"))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: replace(record, phase="lunch"),
        lambda record: replace(record, total=record.total[:-1]),
        lambda record: replace(record, plan=replace(record.plan, ring_bits=4)),
    ],
)
def test_a_state_that_contradicts_itself(change):
    record = unpack(ServerRecord, Federation().table().server.to_bytes(), STATE_LIMITS)
    with pytest.raises(WireError):
        PairwiseServer.from_bytes(pack(change(record), STATE_LIMITS), identity(SERVER))


def test_secrets_of_a_state_do_not_print():
    federation = Federation()
    client = federation.table().play_until("shares").clients["c01"]
    for seed in (client._state.self_seed, client._state.mask_seed, client._state.share_seed):
        assert seed.reveal() in client.to_bytes()
        assert repr(seed.reveal())[2:-1] not in repr(client._state)
