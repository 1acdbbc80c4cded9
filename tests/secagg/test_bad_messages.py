"""A message that is damaged or from elsewhere is refused by name, changes nothing, and the round still ends right."""

import hashlib
from dataclasses import replace

import pytest
from secagg_kit import PHASES, Federation, Table, refused

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.secagg.envelope import NETWORK, Envelope, join, split
from fedvlm_secure.secagg.pairwise import messages as m

ME, OTHER = "c01", "c03"


@pytest.fixture(params=PHASES)
def table(request) -> Table:
    return Federation().table().play_until(request.param)


def place(table: Table, side: str) -> tuple[int, int] | None:
    """A client that has not seen a plan yet cannot say which round it refuses."""
    return None if side == "client" and table.server.phase == m.KEYS else table.federation.plan.place


def refuse_all(
    table: Table, side: str, bad: list[bytes], clauses: set[str], parties: tuple[str, ...] = (NETWORK,)
) -> None:
    """Each of ``bad`` is refused by one side with the state bytes unchanged, and the round ends with the right sum."""
    session = table.clients[ME] if side == "client" else table.server
    before, found = session.to_bytes(), set()
    for message in bad:
        with pytest.raises(Exception) as refusal:  # noqa: PT011
            table.clients[ME].reply(message) if side == "client" else table.server.receive(ME, message)
        error = refusal.value
        found.add(error.clause)
        assert error.party in parties
        assert (error.phase, error.round) == (table.server.phase, place(table, side))
        assert session.to_bytes() == before
    assert found <= clauses, found
    table.finish_rightly()


def genuine(table: Table, side: str) -> bytes:
    """The message that the side expects next; the client that answers is a copy."""
    request = table.request(ME)
    if side == "client":
        return request
    client = table.clients[ME]
    copy = type(client).from_bytes(client.to_bytes(), client._party, client._update)
    return copy.reply(request)


@pytest.mark.parametrize("side", ["client", "server"])
def test_truncated(table, side):
    message = genuine(table, side)
    lengths = {0, 1, 3, 4, 5, 50, len(message) // 2, len(message) - 64, len(message) - 1}
    cut_frames = [join(split(message)[:-1])] if len(split(message)) > 1 else []
    bad = [message[:length] for length in lengths] + [message + b"\0", message + bytes(4), *cut_frames]
    refuse_all(table, side, bad, {"P-1.1", "P-4.3", "P-5.3"})


@pytest.mark.parametrize("side", ["client", "server"])
def test_bit_flipped(table, side):
    message = genuine(table, side)
    places = {*range(0, len(message), max(1, len(message) // 120)), 0, 3, 4, 5, len(message) - 1}
    bad = [message[:i] + bytes([message[i] ^ (1 << i % 8)]) + message[i + 1 :] for i in sorted(places)]
    refuse_all(table, side, bad, {"P-1.1", "P-1.2", "P-1.5", "P-4.2", "P-5.3"})


@pytest.mark.parametrize("side", ["client", "server"])
def test_from_another_phase(table, side):
    """Genuine messages of every other phase of the same attempt, as a replay."""
    twin, bad = table.federation.table(), []
    # The twin has the same plan and keys, so its messages are genuine ones of this very plan.
    for phase in PHASES:
        twin.play_until(phase)
        message = genuine(twin, side)
        repeated = hashlib.sha256(message).digest() == table.clients[ME]._last_request  # gets the last reply again
        if phase != table.server.phase and not repeated:
            bad.append(message)
    assert len(bad) >= 3
    refuse_all(table, side, bad, {"P-1.1", "P-1.4"})  # P-1.1 for an upload where one frame is expected


@pytest.mark.parametrize("side", ["client", "server"])
def test_from_another_sender(table, side):
    """Another client's genuine message, the server's to another client, a stranger's, and a relabelled one."""
    if side == "client":
        others = dict(table.server.requests())
        bad = [others[OTHER]]
    else:
        request = table.request(OTHER)
        client = table.clients[OTHER]
        bad = [type(client).from_bytes(client.to_bytes(), client._party, client._update).reply(request)]
    refuse_all(table, side, bad, {"P-1.5"})


@pytest.mark.parametrize("side", ["client", "server"])
def test_relabelled_messages_do_not_verify(table, side):
    """The labels are under the signature."""
    message = split(genuine(table, side))
    envelope = unpack(Envelope, message[0])
    changes = [
        {"phase": PHASES[PHASES.index(table.server.phase) - 1]},
        {"plan": bytes(32)},
        {"body": envelope.body + b"\0"},
        {"signature": bytes(64)},
    ]
    bad = [join([pack(replace(envelope, **change)), *message[1:]]) for change in changes]
    refuse_all(table, side, bad, {"P-1.2"})


@pytest.mark.parametrize("change", [{"round": 2}, {"round": 4}, {"attempt": 1}, {"attempt": 3}, {"run": b"r" * 16}])
@pytest.mark.parametrize("side", ["client", "server"])
def test_from_another_round_or_attempt(table, side, change):
    """The same parties' genuine messages of the same phase, in another round, attempt or run."""
    twin = Federation()
    twin.plan = replace(table.federation.plan, **change)
    other = twin.table().play_until(table.server.phase)
    if side == "client" and table.server.phase == m.KEYS:
        # The first request says which plan it is: a client remembers the last one it began instead.
        table.clients[ME].reply(table.request(ME))
    refuse_all_late(table, side, genuine(other, side))


def refuse_all_late(table: Table, side: str, message: bytes) -> None:
    session = table.clients[ME] if side == "client" else table.server
    before = session.to_bytes()
    act = (lambda: session.reply(message)) if side == "client" else (lambda: session.receive(ME, message))
    refused(act, "P-1.3", NETWORK)
    assert session.to_bytes() == before
    table.finish_rightly()


def test_an_identical_request_gets_the_identical_bytes(table):
    client, request = table.clients[ME], table.request(ME)
    first = client.reply(request)
    state = client.to_bytes()
    assert client.reply(request) == first
    assert client.to_bytes() == state
    assert table.request(ME) == request  # and the server asks in the same words
    table.finish_rightly()


def test_an_older_request_is_refused():
    table, asked = Federation().table(), []
    for phase in PHASES:
        table.play_until(phase)
        for older in asked[:-1]:
            refused(lambda older=older: table.clients[ME].reply(older), "P-1.4", NETWORK)
        asked.append(table.request(ME))
    table.finish_rightly()
    for older in asked[:-1]:
        with pytest.raises(MisuseError):
            table.clients[ME].reply(older)


def test_a_second_reply_or_an_unasked_one_is_refused(table):
    reply = genuine(table, "server")
    table.server.receive(ME, reply)
    before = table.server.to_bytes()
    refused(lambda: table.server.receive(ME, reply), "P-1.7", NETWORK)
    refused(lambda: table.server.receive(ME, b"junk in its name"), "P-1.7", NETWORK)
    with pytest.raises(MisuseError):
        table.server.receive("stranger", reply)
    assert table.server.to_bytes() == before


def test_requests_of_a_phase_that_has_ended():
    table = Federation().table().play_until(m.SHARES)
    requests = table.server.requests()
    next(requests)
    for name, request in table.server.requests():
        table.server.receive(name, table.clients[name].reply(request))
    table.server.end_phase()
    with pytest.raises(MisuseError):
        next(requests)


def test_a_finished_or_failed_server_refuses_further_use():
    table = Federation().table().play_until("done")
    for act in (lambda: next(table.server.requests()), table.server.end_phase):
        with pytest.raises(MisuseError):
            act()
    refused(lambda: table.server.receive(ME, b""), "P-1.7", NETWORK)
    unfinished = Federation().table()
    with pytest.raises(MisuseError):
        unfinished.server.aggregate()
