"""What is on disk after every message, who may read it, and what happens when it cannot be written or read."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from secagg_kit import PHASES, SERVER, Federation, identity, refused

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation import journal
from fedvlm_secure.federation.journal import ClientJournal, ServerJournal, remembered
from fedvlm_secure.federation.vault import Vault
from fedvlm_secure.files import write
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.messages import SurvivorList
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import Memory

ME = "c01"


class Attempt:
    """One attempt of which the server and one client, ``ME``, are on disk."""

    def __init__(self, folder: Path, federation: Federation | None = None) -> None:
        self.federation = Federation() if federation is None else federation
        self.paths = {SERVER: folder / "server.sqlite", ME: folder / "client.sqlite"}
        self.server = ServerJournal.begin(self.paths[SERVER], self.federation.server())
        self.clients = {name: self.federation.client(name) for name in self.federation.names} | {ME: self.client()}

    def client(self, **changes: object) -> ClientJournal:
        update = self.federation.updates[ME]
        given = {"party": self.federation.party(ME), "update": update, "place": self.federation.plan.place} | changes
        return ClientJournal(self.paths[ME], PairwiseClient, **given)

    def restored(self) -> ServerJournal:
        session = ServerJournal.restore(self.paths[SERVER], PairwiseServer, identity(SERVER))
        assert session is not None
        return session

    def play_until(self, phase: str) -> "Attempt":
        while self.server.phase != phase:
            for name, request in self.server.requests():
                self.server.receive(name, self.clients[name].reply(request))
            self.server.end_phase()
        return self

    def request(self, name: str = ME) -> bytes:
        return dict(self.server.requests())[name]

    def rows(self, party: str, query: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.paths[party])) as connection, connection:
            return connection.execute(query).fetchall()


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


@contextmanager
def full_disk(session: ClientJournal | ServerJournal) -> Iterator[None]:
    """The file cannot grow."""
    connection = session._database._connection
    connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the least that is possible
    yield
    connection.execute("PRAGMA max_page_count = 1000000")


def test_a_server_that_comes_back_asks_only_those_who_owe(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    for phase in PHASES:
        requests = dict(attempt.server.requests())
        for name in attempt.federation.names[::-2]:
            attempt.server.receive(name, attempt.clients[name].reply(requests[name]))
        attempt.server = attempt.restored()
        assert attempt.server.phase == phase
        assert dict(attempt.server.requests()) == {
            name: request for name, request in requests.items() if name not in attempt.federation.names[::-2]
        }
        for name, request in attempt.server.requests():
            attempt.server.receive(name, attempt.clients[name].reply(request))
        attempt.server.end_phase()
    total = attempt.restored().aggregate()
    np.testing.assert_array_equal(total.total, attempt.federation.expected(total.survivors))
    assert total.survivors == attempt.federation.names


def test_at_most_one_phases_replies_are_on_disk(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, Federation(dimension=40_000)).play_until("masked-input")
    uploads = {name: attempt.clients[name].reply(request) for name, request in attempt.server.requests()}
    for name, upload in uploads.items():
        attempt.server.receive(name, upload)
    assert all(upload[-64:] in contents(tmp_path) for upload in uploads.values())
    assert [name for (name,) in attempt.rows(SERVER, "SELECT client FROM reply ORDER BY number")] == list(uploads)
    attempt.server.end_phase()
    assert attempt.rows(SERVER, "SELECT * FROM reply") == []
    assert not any(upload[-64:] in contents(tmp_path) for name, upload in uploads.items() if name != ME)
    assert attempt.paths[SERVER].stat().st_size < 2 * len(uploads[ME])


def test_seeds_are_sealed_and_leave_the_disk_with_the_state_that_held_them(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path).play_until("shares")
    state = attempt.clients[ME]._session._state
    seeds = [state.self_seed.reveal(), state.mask_seed.reveal(), state.share_seed.reveal()]
    ((sealed,),) = attempt.rows(ME, "SELECT state FROM session")
    assert isinstance(sealed, bytes)
    saved = Vault(identity(ME), "session").open(sealed)
    assert all(seed in saved and seed not in contents(tmp_path) for seed in seeds)
    assert sealed[-64:] in contents(tmp_path)
    attempt.play_until("consistency")
    assert sealed[-64:] not in contents(tmp_path)


def test_a_session_opens_with_its_owners_key_only(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path).play_until("shares")
    with pytest.raises(MisuseError, match="sealed with another key"):
        remembered(attempt.paths[ME], identity("c02"))


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        attempt = Attempt(tmp_path / "state").play_until("shares")
        with attempt.clients[ME]._database.transaction() as rows:
            rows.execute("DELETE FROM session")
            files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    finally:
        os.umask(before)
    names = ["client.sqlite", "client.sqlite-journal", "server.sqlite", "server.sqlite-shm", "server.sqlite-wal"]
    assert files == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_client_that_cannot_write_does_not_answer(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, Federation(dimension=10_000)).play_until("masked-input")
    before, client, request = attempt.clients[ME].to_bytes(), attempt.clients[ME], attempt.request()
    with full_disk(client), pytest.raises(MisuseError, match="free some space"):
        client.reply(request)
    assert attempt.client().to_bytes() == before
    reply = client.reply(request)
    assert attempt.client().reply(request) == reply
    attempt.clients[ME] = attempt.client()
    assert run_round(attempt.server, attempt.clients).survivors == attempt.federation.names


def test_a_server_that_cannot_write_goes_no_further(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, Federation(dimension=10_000)).play_until("masked-input")
    upload = attempt.clients[ME].reply(attempt.request())
    with full_disk(attempt.server), pytest.raises(MisuseError, match="free some space"):
        attempt.server.receive(ME, upload)
    for act in (
        attempt.server.requests,
        attempt.server.end_phase,
        attempt.server.aggregate,
        lambda: attempt.server.receive(ME, upload),
    ):
        with pytest.raises(MisuseError, match="restore"):
            act()
    attempt.server = attempt.restored()
    total = run_round(attempt.server, attempt.clients)
    np.testing.assert_array_equal(total.total, attempt.federation.expected(attempt.federation.names))


def test_a_phase_whose_end_cannot_be_written_has_not_ended(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, Federation(clients=9)).play_until("shares")
    for name, request in attempt.server.requests():
        attempt.server.receive(name, attempt.clients[name].reply(request))
    with full_disk(attempt.server), pytest.raises(MisuseError, match="free some space"):
        attempt.server.end_phase()
    with pytest.raises(MisuseError, match="restore"):
        attempt.server.requests()
    assert attempt.restored().phase == "shares"
    assert dict(attempt.restored().requests()) == {}


def test_a_state_beyond_what_sqlite_holds(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path).play_until("shares")
    attempt.clients[ME]._database._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    with pytest.raises(MisuseError, match="no state of this size"):
        attempt.clients[ME].reply(attempt.request())


@pytest.mark.parametrize("party", [SERVER, ME])
def test_a_file_in_use(tmp_path: Path, party: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BUSY_SECONDS", 0.0)
    attempt = Attempt(tmp_path)
    attempt.server, attempt.clients[ME] = attempt.restored(), attempt.client()
    request = attempt.request()
    reply = attempt.federation.client(ME).reply(request)
    with closing(sqlite3.connect(attempt.paths[party], isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MisuseError, match="another process is using it"):
            attempt.server.receive(ME, reply) if party == SERVER else attempt.clients[ME].reply(request)


def test_two_processes_with_one_state_do_not_both_answer(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path).play_until("shares")
    one, other = attempt.client(), attempt.client()
    reply = one.reply(attempt.request())
    with pytest.raises(MisuseError, match="another process"):
        other.reply(attempt.request())
    assert attempt.client().reply(attempt.request()) == reply


def test_two_processes_that_begin_at_once_share_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation()
    request = dict(federation.server().requests())[ME]
    path, given = tmp_path / "client.sqlite", (federation.party(ME), federation.updates[ME], federation.plan.place)
    replies = []

    def overtaken(*content: object) -> None:
        monkeypatch.undo()
        replies.append(ClientJournal(path, PairwiseClient, *given).reply(request))
        write(*content)

    monkeypatch.setattr(journal, "write", overtaken)
    replies.append(ClientJournal(path, PairwiseClient, *given).reply(request))
    assert replies[0] == replies[1]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_overtaken_server_writes_nothing(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    old, now = attempt.restored(), attempt.restored()
    request = attempt.request()
    reply = attempt.clients[ME].reply(request)
    now.receive(ME, reply)
    with pytest.raises(MisuseError, match="another process"):
        old.receive(ME, reply)
    assert attempt.rows(SERVER, "SELECT client FROM reply") == [(ME,)]


def test_a_new_attempt_takes_the_place_of_the_old(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path).play_until("consistency")
    for name, request in list(attempt.server.requests())[:2]:
        attempt.server.receive(name, attempt.clients[name].reply(request))
    attempt.federation.plan = replace(attempt.federation.plan, attempt=3)
    memories = {name: client.memory for name, client in attempt.clients.items()}
    attempt.federation.memories = memories
    again = Attempt(tmp_path, attempt.federation)
    assert again.rows(SERVER, "SELECT * FROM reply") == []
    assert again.restored().plan.place == (3, 3)
    assert again.clients[ME].memory == memories[ME]
    run_round(again.server, again.clients)
    assert remembered(again.paths[ME], identity(ME))[1] == again.federation.plan


def test_what_is_no_plan_leaves_the_old_attempt_in_place(tmp_path: Path) -> None:
    """The next attempt begins with a plan that the client accepts, not with whatever comes first."""
    attempt = Attempt(tmp_path).play_until("consistency")
    saved = attempt.client().to_bytes()
    nobodys = attempt.client(place=(3, 3))
    refused(lambda: nobodys.reply(b"\0\0\0\1x"), "P-1.1", "network")
    assert attempt.client().to_bytes() == saved


def test_memory_outlives_the_session(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    assert remembered(attempt.paths[ME], identity(ME)) == (Memory(), None)
    assert remembered(tmp_path / "none", identity(ME)) == (Memory(), None)
    request = attempt.request()
    run_round(attempt.server, attempt.clients)
    memory, plan = remembered(attempt.paths[ME], identity(ME))
    assert plan == attempt.federation.plan
    assert memory.begun == {plan.run.hex(): (3, 2)}
    assert len(memory.answered) == 1
    attempt.rows(ME, "DELETE FROM session")
    assert remembered(attempt.paths[ME], identity(ME)) == (memory, None)
    with pytest.raises(MisuseError, match=r"P-7\.5"):
        attempt.client()
    other = attempt.client(update=Update(attempt.federation.updates[ME].values + np.float32(1), {"weight": 1}))
    refused(lambda: other.reply(request), "P-2.7", SERVER)


def test_a_refusal_is_repeated_after_a_restart(tmp_path: Path) -> None:
    """Whoever runs the attempt may have been killed before the refusal was heard."""
    attempt = Attempt(tmp_path).play_until("consistency")
    garbage, lie = b"\0\0\0\1x", attempt.federation.says("consistency", ME, SurvivorList(("c00", "c00")))
    refused(lambda: attempt.clients[ME].reply(garbage), "P-1.1", "network")
    first = refused(lambda: attempt.client().reply(lie), "P-6.1", SERVER)
    for request in (lie, attempt.request()):
        assert str(refused(lambda: attempt.client().reply(request), "P-6.1", SERVER)) == str(first)  # noqa: B023


@pytest.mark.parametrize("damage", ["empty", "zeros", "text", "cut", "another program's", "the other party's", "state"])
@pytest.mark.parametrize("party", [SERVER, ME])
def test_a_damaged_or_foreign_file(tmp_path: Path, party: str, damage: str) -> None:
    attempt = Attempt(tmp_path).play_until("consistency")
    attempt.server = attempt.clients = None
    path, other = attempt.paths[party], attempt.paths[ME if party == SERVER else SERVER]
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "zeros":
            path.write_bytes(bytes(path.stat().st_size))
        case "text":
            path.write_text("not a database, whatever its name says\n" * 100)
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "another program's":
            path.unlink()
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript(f"{journal._CLIENT.tables}; {journal._SERVER.tables}")
        case "the other party's":
            path.write_bytes(other.read_bytes())
        case "state":
            attempt.rows(party, f"UPDATE {'snapshot' if party == SERVER else 'session'} SET state = x'00'")
    with pytest.raises(MisuseError, match=r"damaged") as error:
        attempt.restored() if party == SERVER else attempt.client()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_replies_that_do_not_fit_the_snapshot_are_damage(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    attempt.rows(SERVER, "INSERT INTO reply (client, message) VALUES ('c01', x'00')")
    with pytest.raises(MisuseError, match="damaged"):
        attempt.restored()


def test_the_session_of_another_server(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    with pytest.raises(MisuseError, match="do not belong together"):
        ServerJournal.restore(attempt.paths[SERVER], PairwiseServer, identity("stranger"))
    assert ServerJournal.restore(tmp_path / "none", PairwiseServer, identity(SERVER)) is None
