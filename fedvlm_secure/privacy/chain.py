"""A file of entries that only grows, and tells where it can if it did not: SQLite, a hash chain, and an anchor.

Each entry holds the SHA-256 of the one before and its own content. Beside the file lies ``NAME.anchor``, with the
number of entries and the last hash, written after each entry. What is refused:

L-1  an entry that was changed, removed from the middle or put in: the chain does not hold;
L-2  a file that does not contain the entry its anchor names: restored from a copy, cut short, deleted or exchanged. A
     file ahead of its anchor is accepted, for that is what a crash between the two leaves behind;
L-3  the same, seen by whoever remembers the head.

Whoever restores file and anchor from one copy is noticed by nobody but L-3, and whoever recomputes the chain neither:
it guards its owner against accidents and against forgetting, and proves nothing to others.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm_secure.errors import MisuseError, VerificationError
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives import entropy

WAIT_SECONDS = 60.0  # for another process, which may be composing a long history

_APPLICATION = 0x66764C31
# EXTRA: under FULL a power failure can bring back the rollback journal, and with it the state before the last entry.
_SETTINGS = "PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA"
_TABLE = "CREATE TABLE entry (number INTEGER PRIMARY KEY, content TEXT NOT NULL, hash BLOB NOT NULL)"
GENESIS = hashlib.sha256(b"fedvlm-secure/v1/privacy-ledger").digest()


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain has come: the number of its entries, and the SHA-256 of the last."""

    entries: int
    hash: bytes


class Chain:
    """The verified content of an open file, for this process alone until it is closed."""

    def __init__(self, path: Path, anchor: Path, rows: sqlite3.Connection) -> None:
        self._path, self._anchor, self._rows = path, anchor, rows
        self.entries: list[tuple[str, bytes]] = []  # canonical JSON, hash
        before = GENESIS
        for place, (number, content, digest) in enumerate(rows.execute("SELECT * FROM entry ORDER BY number"), 1):
            if number != place or not isinstance(content, str) or _link(before, content) != digest:
                raise refusal("L-1", f"{path}: entry {place} was changed, removed or put in; restore the newest copy")
            before = digest
            self.entries.append((content, digest))

    @property
    def head(self) -> Head:
        """How far it has come."""
        return Head(len(self.entries), self.entries[-1][1] if self.entries else GENESIS)

    def contains(self, head: Head) -> bool:
        """Whether this was the head once, or is."""
        return 0 < head.entries <= len(self.entries) and self.entries[head.entries - 1][1] == head.hash

    def contents(self) -> Iterator[dict[str, Any]]:
        """What the entries say, in order."""
        for content, _ in self.entries:
            yield json.loads(content)

    def append(self, content: dict[str, Any]) -> None:
        """One more entry, on disk when this returns."""
        text = _text(content)
        digest = _link(self.head.hash, text)
        self._rows.execute("BEGIN IMMEDIATE")
        self._rows.execute("INSERT INTO entry VALUES (?, ?, ?)", (len(self.entries) + 1, text, digest))
        self._rows.execute("COMMIT")
        self.entries.append((text, digest))
        # Afterwards: an anchor ahead of the file could not be told from a file that was rolled back.
        _write_anchor(self._anchor, self.head)


@contextmanager
def opened(path: Path) -> Iterator[Chain]:
    """The chain in ``path``, begun if there is none; other processes and threads wait meanwhile.

    Raises:
        MisuseError: the file cannot be used, is another program's, or stays in use.
        VerificationError: it was changed or rolled back (L-1, L-2).
    """
    anchor = anchor_of(path)
    with _locked(path), _explained(path):
        known = _read_anchor(anchor)
        if not path.exists():
            known = _begin(path, anchor, known)
        with closing(_connect(path)) as rows:
            chain = Chain(path, anchor, rows)
            if known is None or not chain.contains(known):
                raise refusal(
                    "L-2",
                    f"{path} does not hold what {anchor.name} names: it was rolled back, or one of the two is missing; "
                    "restore the newest copy of both",
                )
            yield chain


def anchor_of(path: Path) -> Path:
    """Where the anchor of the file ``path`` lies."""
    return path.with_name(path.name + ".anchor")


def refusal(clause: str, detail: str) -> VerificationError:
    """A file that is not what it was."""
    return VerificationError(clause, party="ledger", phase="opening", detail=detail)


def _begin(path: Path, anchor: Path, known: Head | None) -> Head:
    """Make the file, anchor first: an anchor of one entry without a file is a beginning that was interrupted."""
    if known is not None and known.entries > 1:
        raise refusal("L-2", f"{path} is gone, and with it what was spent; restore the newest copy")
    content = _text({"kind": "ledger", "id": entropy.random_bytes(16).hex(), "time": int(time.time())})
    head = Head(1, _link(GENESIS, content))
    _write_anchor(anchor, head)
    with closing(sqlite3.connect(":memory:")) as rows:
        rows.executescript(f"PRAGMA application_id = {_APPLICATION}; {_TABLE}")
        rows.execute("INSERT INTO entry VALUES (1, ?, ?)", (content, head.hash))
        rows.commit()
        write(path, rows.serialize(), PRIVATE)
    return head


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _link(before: bytes, content: str) -> bytes:
    return hashlib.sha256(before + content.encode()).digest()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        if connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION,):
            raise MisuseError(f"{path} is no privacy ledger; name another file")
        connection.executescript(_SETTINGS)
    except BaseException:
        connection.close()
        raise
    return connection


def _read_anchor(path: Path) -> Head | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Head(int(values["entries"]), bytes.fromhex(values["sha256"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise refusal("L-2", f"{path} is damaged; restore the newest copy of it and of the ledger") from None


def _write_anchor(path: Path, head: Head) -> None:
    write(path, (_text({"entries": head.entries, "sha256": head.hash.hex()}) + "\n").encode(), PRIVATE)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads away: file and anchor are read and written together."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > end:
                raise MisuseError(f"another process has been using {path}; wait for it, or end it")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise MisuseError(
            f"{path}: {error}; see to its disk, or restore the newest copy of it and its anchor"
        ) from error
