"""Where a run's server stands: the attempt that runs now, its session on disk, and what one attempt leaves to the next.

All of it is durable: an interrupted server goes on with the attempt that it was at.
"""

from collections.abc import Callable
from pathlib import Path

from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.payloads import Payloads
from fedvlm_secure.federation.rundir import Folder
from fedvlm_secure.files import PRIVATE, read_json, write, write_json
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.plan import NO_HISTORY, RUN_BYTES, Plan
from fedvlm_secure.secagg.protocols import ProtocolEntry
from fedvlm_secure.secagg.roster import Roster


class Attempts:
    """The attempts of one run, one after the other.

    Attributes:
        run: the run's random name.
        round, attempt: what runs now, from 1.
        model: hash of the model that follows from the last sum, where only clients read sums; else empty.
        history: head of the transcripts' chain over the attempts so far.
        last: hash of the last attempt's plan; empty before any.
        payloads: where replies are kept whole; None if they are not.
    """

    def __init__(
        self,
        folder: Folder,
        protocol: ProtocolEntry,
        identity: Identity,
        roster: Roster,
        payloads: Payloads | None = None,
    ) -> None:
        self.payloads = payloads
        self._folder, self._protocol, self._identity, self._roster = folder, protocol, identity, roster
        self._progress = folder.state / "progress.json"
        if not self._progress.exists():
            self._save(entropy.random_bytes(RUN_BYTES), 1, 1, b"", NO_HISTORY, b"")
        progress = read_json(self._progress)
        self.run, self.model = bytes.fromhex(progress["run"]), bytes.fromhex(progress["model"])
        self.round, self.attempt = progress["round"], progress["attempt"]
        self.history, self.last = bytes.fromhex(progress["history"]), bytes.fromhex(progress["last"])

    @property
    def place(self) -> tuple[int, int]:
        """(round, attempt) that runs now."""
        return self.round, self.attempt

    def open(self, plan: Callable[[], Plan]) -> ServerJournal:
        """The session of this attempt: as it was left if it had begun, else a new one with the plan."""
        session = self.restored()
        if session is not None and session.plan.place == self.place:
            return session
        if session is not None:
            session.close()
        carried = self._carried.read_bytes() if self._carried.exists() else b""
        opened = self._protocol.server(plan(), self._identity, self._roster, carried)
        return ServerJournal.begin(self._path, opened, self.payloads)

    def restored(self) -> ServerJournal | None:
        """The last session, or None before any."""
        return ServerJournal.restore(self._path, self._protocol.server, self._identity, self.payloads)

    def finish(self, session: ServerJournal, model: bytes = b"", *, rotate: bool = False) -> None:
        """The round is over; the next one begins.

        Args:
            rotate: let the next round begin with fresh keys, where a protocol keeps some from round to round.
        """
        head = self._archive(session)
        self._carry(self._protocol.server.rotated(session.carried) if rotate else session.carried)
        self._go_on(self.round + 1, 1, model, head, session.plan.hash)

    def fail(self, session: ServerJournal) -> None:
        """The attempt has failed; the next one begins."""
        head = self._archive(session)
        self._carry(session.carried)
        self._go_on(self.round, self.attempt + 1, self.model, head, session.plan.hash)

    @property
    def _path(self) -> Path:
        return self._folder.state / "session.sqlite"

    @property
    def _carried(self) -> Path:
        return self._folder.state / "carried.cbor"

    def _archive(self, session: ServerJournal) -> bytes:
        """Keep the transcript for good; the chain's head after it."""
        transcript = session.transcript
        name = f"round-{self.round:04d}-attempt-{self.attempt}.cbor"
        write(self._folder.path / "transcript" / name, transcript.to_bytes())
        return transcript.head

    def _carry(self, carried: bytes) -> None:
        if carried:
            write(self._carried, carried, PRIVATE)

    def _go_on(self, round_index: int, attempt: int, model: bytes, history: bytes, last: bytes) -> None:
        self._save(self.run, round_index, attempt, model, history, last)
        self.round, self.attempt, self.model, self.history, self.last = round_index, attempt, model, history, last

    def _save(self, run: bytes, round_index: int, attempt: int, model: bytes, history: bytes, last: bytes) -> None:
        hashes = {"run": run.hex(), "model": model.hex(), "history": history.hex(), "last": last.hex()}
        write_json(self._progress, {**hashes, "round": round_index, "attempt": attempt}, PRIVATE)
