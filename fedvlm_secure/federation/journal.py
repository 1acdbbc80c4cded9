"""What a party must not forget during a round, in one SQLite file: killed at any point it goes on from there.

Everything is on disk before anything that follows from it is sent, so that whoever comes back says what it said before
or has not said it yet. What is read and what is written are whole transactions; a process that comes back with an old
state beside a newer one is refused. Restoring an old copy of such a file takes back what a client has promised never
to do again: a lost file ends the client's run, a copy must not replace it.
"""

import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.payloads import Payloads
from fedvlm_secure.federation.vault import Vault
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.log import REPLY, REQUEST, ClientLog, Line, line_of, signed_line
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import ClientId, Memory, RingSum, SealedSum
from fedvlm_secure.secagg.transcript import Transcript

_MOST_LINES = 1 << 16  # of a client's log in one run
BUSY_SECONDS = 5.0  # how long a transaction waits for one of another process


@dataclass(frozen=True, slots=True)
class _Form:
    """One kind of file.

    Attributes:
        application: SQLite's application id: a file with another one is not ours.
        settings: how transactions reach the disk.
    """

    application: int
    settings: str
    tables: str


# Many replies: a write-ahead log costs one sync of the disk each. It is cut at the end of a phase, so that most of what
# it holds is never written a second time. Nothing here is more secret than what was sent, and need not be overwritten.
_SERVER = _Form(
    0x66765331,
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA secure_delete = OFF",
    "CREATE TABLE snapshot (id INTEGER PRIMARY KEY CHECK (id = 0), state BLOB NOT NULL);"
    "CREATE TABLE reply (number INTEGER PRIMARY KEY, client TEXT NOT NULL, message BLOB NOT NULL)",
)
# Seeds that a state no longer holds have to leave the disk too, and would stay in a log. EXTRA: under FULL a power
# failure can bring back the rollback journal, and with it the state before the last reply.
_CLIENT = _Form(
    0x66764331,
    "PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; PRAGMA secure_delete = ON;"
    "CREATE TABLE IF NOT EXISTS log (number INTEGER PRIMARY KEY, run BLOB NOT NULL, direction TEXT NOT NULL,"
    "  digest BLOB NOT NULL, line BLOB NOT NULL, UNIQUE (run, direction, digest))",
    "CREATE TABLE memory (id INTEGER PRIMARY KEY CHECK (id = 0), memory BLOB NOT NULL);"
    "CREATE TABLE session (id INTEGER PRIMARY KEY CHECK (id = 0), state BLOB NOT NULL)",
)


class ServerJournal:
    """A server session that is on disk: as it was at the start of the phase, and every reply since.

    The session draws no randomness, so the same replies in the same order lead to the same state and the same requests.
    Each reply costs one row; the end of a phase replaces them all by the state they led to.
    """

    def __init__(self, database: "_Database", session: ServerSessionBase, payloads: Payloads | None) -> None:
        self._database, self._session, self._saved, self._payloads = database, session, True, payloads

    @classmethod
    def begin(cls, path: Path, session: ServerSessionBase, payloads: Payloads | None = None) -> Self:
        """Write a new session to ``path``, in place of any earlier one; raises :class:`MisuseError` if that fails.

        Args:
            payloads: where replies are kept whole, if they are.
        """
        journal = cls(_Database(path, _SERVER), session, payloads)
        journal._save()
        return journal

    @classmethod
    def restore(
        cls, path: Path, kind: type[ServerSessionBase], identity: Identity, payloads: Payloads | None = None
    ) -> Self | None:
        """The session in ``path`` as it was left, or None if none was begun.

        Raises:
            MisuseError: the file is damaged, another program's or in use, or the session is of another server.
        """
        if not path.exists():
            return None
        database = _Database(path, _SERVER)
        with database.transaction() as rows:
            snapshot = rows.execute("SELECT state FROM snapshot").fetchone()
            if snapshot is None:
                return None
            journal = cls(database, kind.from_bytes(snapshot[0], identity), payloads)
            phase, replies = journal.phase, "SELECT client, message FROM reply ORDER BY number"
            _replay(journal._session, rows.execute(replies))
            for client, reply in rows.execute(replies):  # the last one may have come without being kept
                journal._keep(phase, client, reply)
        return journal

    @property
    def plan(self) -> Plan:
        """The plan of this attempt."""
        return self._session.plan

    @property
    def phase(self) -> str:
        """See :class:`fedvlm_secure.secagg.session.ServerSession`."""
        return self._session.phase

    @property
    def done(self) -> bool:
        """See :class:`fedvlm_secure.secagg.session.ServerSession`."""
        return self._session.done

    @property
    def transcript(self) -> Transcript:
        """See :class:`fedvlm_secure.secagg.session.ServerSession`."""
        return self._session.transcript

    @property
    def carried(self) -> bytes:
        """What the next attempt's session needs of this one."""
        return self._session.carried

    @property
    def bulletin(self) -> bytes:
        """The finished round's sum for members that have to catch up, where only they can read it; else empty."""
        return self._session.bulletin

    def requests(self) -> Iterator[tuple[ClientId, bytes]]:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.requests`."""
        return self._durable().requests()

    def receive(self, client: ClientId, reply: bytes) -> None:
        """As :meth:`fedvlm_secure.secagg.session.ServerSession.receive`, and on disk when it returns.

        Raises:
            MisuseError: the reply could not be written; what is on disk is as before, and has to be restored.
        """
        self._durable().receive(client, reply)
        with self._written() as rows:
            rows.execute("INSERT INTO reply (client, message) VALUES (?, ?)", (client, reply))
        self._keep(self.phase, client, reply)

    def end_phase(self) -> None:
        """As :meth:`fedvlm_secure.secagg.session.ServerSession.end_phase`, and on disk when it returns.

        A failed attempt is not: restored, it is before its last deadline.

        Raises:
            MisuseError: the state could not be written; what is on disk is as before, and has to be restored.
        """
        self._durable().end_phase()
        self._save()

    def aggregate(self) -> RingSum | SealedSum:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.aggregate`."""
        return self._durable().aggregate()

    def to_bytes(self) -> bytes:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.to_bytes`."""
        return self._session.to_bytes()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _save(self) -> None:
        with self._written() as rows:
            rows.execute("INSERT OR REPLACE INTO snapshot VALUES (0, ?)", (self._session.to_bytes(),))
            rows.execute("DELETE FROM reply")
        self._database.forget()

    def _keep(self, phase: str, client: ClientId, reply: bytes) -> None:
        if self._payloads is not None:
            self._payloads.keep(self.plan.place, phase, client, reply)

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        self._saved = False
        with self._database.transaction() as rows:
            yield rows
        self._saved = True

    def _durable(self) -> ServerSessionBase:
        """The session, unless it is ahead of the disk: nothing may follow from what could be forgotten."""
        if not self._saved:
            raise MisuseError("the last step could not be written; restore the session from its file")
        return self._session


class ClientJournal:
    """A client session whose state and memory are on disk before its reply leaves, and when it has been closed.

    The state holds secrets and is sealed with the party's own key.

    Args:
        place: (round, attempt). If the session on disk has begun that attempt, it goes on; else a new one starts, with
            what the client remembers. ``party.run`` says of which run, where one file serves several.

    Raises:
        MisuseError: the file is damaged, another program's or in use, or this update must not be sent.
    """

    def __init__(
        self, path: Path, kind: type[ClientSessionBase], party: Party, update: Update, place: tuple[int, int]
    ) -> None:
        self._database, self._vault, self._party = _Database(path, _CLIENT), _vault(party.identity), party
        with self._database.transaction() as rows:
            memory, saved = _client_rows(rows, self._vault)
            plan = None if saved is None else kind.plan_of(saved)
            if saved is not None and plan is not None and (plan.place, plan.run) == (place, party.run or plan.run):
                self._session = kind.from_bytes(saved, party, update, memory)
            else:
                self._session = kind(party, update, memory)

    @property
    def memory(self) -> Memory:
        """See :class:`fedvlm_secure.secagg.session.ClientSession`."""
        return self._session.memory

    @property
    def sum(self) -> RingSum | None:
        """See :class:`fedvlm_secure.secagg.session.ClientSession`."""
        return self._session.sum

    def reply(self, request: bytes) -> bytes:
        """As :meth:`fedvlm_secure.secagg.session.ClientSession.reply`, and on disk when it returns.

        Raises:
            ProtocolError: also that which closed the session, whenever it is asked again: it may not have been heard.
            MisuseError: also if the state could not be written; asked again, the client tries that again.
        """
        try:
            if self._session.refusal is not None:
                raise self._session.refusal
            reply = self._session.reply(request)
        except (ProtocolError, MisuseError) as error:
            if isinstance(error, ProtocolError) and self._session.refusal is not None:
                self._save()
            self._keep_refused(request)
            raise
        # Nothing else is written: an interruption in the midst of a transition goes back to the state before it.
        self._save(line_of(REQUEST, request), line_of(REPLY, reply))
        return reply

    def to_bytes(self) -> bytes:
        """See :meth:`fedvlm_secure.secagg.session.ClientSession.to_bytes`."""
        return self._session.to_bytes()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _keep_refused(self, request: bytes) -> None:
        """What the server has signed, and this client refuses, is evidence."""
        line, plan = signed_line(request, self._party.name, self._party.roster.server), self._session.plan
        run = self._party.run or (plan.run if plan is not None else b"")
        if line is not None:
            with self._database.transaction() as rows:
                _add_lines(rows, run, (line,))

    def _save(self, *lines: Line) -> None:
        plan = self._session.plan
        with self._database.transaction() as rows:
            if plan is not None:
                _add_lines(rows, plan.run, lines)
            sealed = self._vault.seal(self._session.to_bytes())
            rows.execute("INSERT OR REPLACE INTO session VALUES (0, ?)", (sealed,))
            memory = pack(self._session.memory, STATE_LIMITS)
            rows.execute("INSERT OR REPLACE INTO memory VALUES (0, ?)", (memory,))


def remembered(path: Path, identity: Identity) -> tuple[Memory, Plan | None]:
    """What a client's file says: what outlives its sessions, and the plan of the last one.

    Raises:
        MisuseError: the file is damaged, another program's or party's, or in use.
    """
    if not path.exists():
        return Memory(), None
    with closing(_Database(path, _CLIENT)) as database, database.transaction() as rows:
        memory, saved = _client_rows(rows, _vault(identity))
        return memory, None if saved is None else ClientSessionBase.plan_of(saved)


def keep_memory(path: Path, memory: Memory) -> None:
    """Put down what a client remembers, where something other than its session has changed it.

    A session saved before has been overtaken by it.

    Raises:
        MisuseError: the file is damaged, another program's or in use, or cannot be written.
    """
    with closing(_Database(path, _CLIENT)) as database, database.transaction() as rows:
        rows.execute("INSERT OR REPLACE INTO memory VALUES (0, ?)", (pack(memory, STATE_LIMITS),))


def logged(path: Path, client: ClientId, run: bytes) -> ClientLog:
    """What a client's file keeps of a run for auditors; raises :class:`MisuseError` as :func:`remembered` does."""
    if not path.exists():
        return ClientLog(client)
    with closing(_Database(path, _CLIENT)) as database, database.transaction() as rows:
        found = rows.execute("SELECT line FROM log WHERE run IN (?, x'') ORDER BY number", (run,))
        return ClientLog(client, tuple(unpack(Line, line, STATE_LIMITS) for (line,) in found))


def keep_line(path: Path, run: bytes, line: Line) -> None:
    """Add a line to a client's log; raises :class:`MisuseError` as :func:`keep_memory` does."""
    with closing(_Database(path, _CLIENT)) as database, database.transaction() as rows:
        _add_lines(rows, run, (line,))


def _add_lines(rows: sqlite3.Connection, run: bytes, lines: Iterable[Line]) -> None:
    """A message that is repeated, as after a restart, is there once. Nobody may fill the disk with what is refused."""
    for line in lines:
        (kept,) = rows.execute("SELECT count(*) FROM log WHERE run = ?", (run,)).fetchone()
        if kept < _MOST_LINES:
            values = (run, line.direction, line.digest, pack(line, STATE_LIMITS))
            rows.execute("INSERT OR IGNORE INTO log (run, direction, digest, line) VALUES (?, ?, ?, ?)", values)


def _client_rows(rows: sqlite3.Connection, vault: Vault) -> tuple[Memory, bytes | None]:
    memory = rows.execute("SELECT memory FROM memory").fetchone()
    session = rows.execute("SELECT state FROM session").fetchone()
    kept = Memory() if memory is None else unpack(Memory, memory[0], STATE_LIMITS)
    return kept, None if session is None else vault.open(session[0])


def _vault(identity: Identity) -> Vault:
    return Vault(identity, "session")


def _replay(session: ServerSessionBase, replies: Iterable[tuple[ClientId, bytes]]) -> None:
    """Take in the replies again, each after the requests that had been made by then: the transcript holds both."""
    asked: set[ClientId] = set()
    requests = session.requests()
    for client, reply in replies:
        if client not in asked:
            for name, _ in requests:
                asked.add(name)
                if name == client:
                    break
        session.receive(client, reply)


class _Database:
    """One party's file. A transaction is on disk when it ends, or has changed nothing."""

    def __init__(self, path: Path, form: _Form) -> None:
        if not path.exists():
            _create(path, form)
        self._path, self._version = path, None
        with self._explained():
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            # For whoever forgets to close: what interrupts a finalizer, such as Ctrl-C, is lost.
            self.close = weakref.finalize(self, self._connection.close)
            if self._connection.execute("PRAGMA application_id").fetchone() != (form.application,):
                raise sqlite3.DatabaseError("holds something else")
            self._connection.executescript(form.settings)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Read and write; all of it is on disk when the block ends, and none if it raises.

        Raises:
            MisuseError: the file cannot be read or written, or another process wrote since the first transaction here.
        """
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_version()
                yield self._connection
                self._connection.commit()
            finally:
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):  # the first error is the one to tell
                        self._connection.rollback()

    def forget(self) -> None:
        """Cut the write-ahead log, so that what is deleted has left the disk and not only the tables."""
        with self._explained():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _check_version(self) -> None:
        """Two processes with one state would answer one request in two ways."""
        version = self._connection.execute("PRAGMA data_version").fetchone()
        if self._version not in (None, version):
            raise MisuseError(f"{self._path} was written by another process meanwhile; end all but one of them")
        self._version = version

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError, WireError, ProtocolError) as error:
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            advice = next((say for code, say in _ADVICE.items() if name.startswith(code)), _DAMAGED)
            raise MisuseError(f"{self._path}: {error}: {advice}") from error


_TOO_BIG = "SQLite holds no state of this size; begin another run, with fewer clients or fewer shared parameters"
_ADVICE = {
    "SQLITE_FULL": "free some space on its disk, then resume",
    "SQLITE_BUSY": "another process is using it; wait for that or end it, then resume",
    "SQLITE_IOERR": "see to its disk, then resume",
    "SQLITE_READONLY": "make the file and its folder writable, then resume",
    "SQLITE_CANTOPEN": "make the file and its folder readable and writable, then resume",
    "SQLITE_TOOBIG": _TOO_BIG,
    "OverflowError": _TOO_BIG,
}
_DAMAGED = "the saved session is damaged; begin another run"


def _create(path: Path, form: _Form) -> None:
    """Make the file, whole from the start, for its owner only, and once: a file without its tables is a damaged one."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    write(scratch, _empty(form), PRIVATE)
    with suppress(FileExistsError):  # another process was faster; unlike a rename, this leaves its file alone
        os.link(scratch, path)
    scratch.unlink()


def _empty(form: _Form) -> bytes:
    """What a new file holds. Space that is freed leaves it at once: it grows to the largest phase and shrinks again."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(
            f"PRAGMA auto_vacuum = FULL; PRAGMA application_id = {form.application}; {form.tables}"
        )
        return connection.serialize()
