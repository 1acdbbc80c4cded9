"""What holds across attempts: the chain, fresh keys, and what clients have kept of it."""

from collections.abc import Sequence

from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.records import Attempt, Records
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.envelope import Expected, join
from fedvlm_secure.secagg.log import CLOSING, REPLY, REQUEST, ClientLog, Line, read_closing
from fedvlm_secure.secagg.pairwise import messages as pairwise
from fedvlm_secure.secagg.plan import NO_HISTORY
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.transcript import Entry


def check_chain(attempts: Sequence[Attempt], found: Checklist) -> bytes:
    """No attempt is missing, and each names the head of all before it (A-3); the head after the last."""
    head, place, run = NO_HISTORY, (0, 0), b""
    for attempt in attempts:
        plan, where = attempt.plan, attempt.where
        found.require("A-3", plan.place == attempt.place, where, f"holds the attempt {plan.place}")
        following = ((place[0], place[1] + 1), (place[0] + 1, 1)) if place[0] else ((1, 1),)
        found.require("A-3", attempt.place in following, where, f"does not follow on the attempt {place}")
        found.require("A-3", plan.run == (run or plan.run), where, "is of another run")
        found.require("A-3", plan.history == head, where, "does not name the head of the transcripts before it")
        head, place, run = attempt.transcript.head, attempt.place, run or plan.run
    return head


def check_freshness(said: Sequence[Messages], found: Checklist) -> None:
    """No key, commitment or list of parcels is there twice (A-7)."""
    seen: dict[bytes, str] = {}
    for messages in said:
        for phase in (pairwise.KEYS, pairwise.SHARES):
            for client, body in messages.of(phase, REPLY).items():
                where = f"{messages.attempt.where}: {client}"
                for value in _fresh(body):
                    before = seen.setdefault(value, where)
                    found.require("A-7", before == where, where, f"uses again what {before} has used")


def _fresh(body: object) -> tuple[bytes, ...]:
    if isinstance(body, pairwise.Keys):
        return body.share_key, body.mask_key, body.self_commitment
    return (body.parcels,) if isinstance(body, pairwise.ParcelList) else ()


def check_logs(records: Records, head: bytes, found: Checklist) -> None:
    """What the given clients have kept is what the server has recorded (A-12)."""
    if not records.logs:
        found.unchecked("A-12", "no client's log was given: the server may have recorded another run than it made")
    names = [log.client for log in records.logs]
    members = {member.name for member in records.roster.members}
    for log in records.logs:
        where = f"log of {log.client}"
        found.require("A-12", names.count(log.client) == 1, where, "was given twice")
        if found.require("A-12", log.client in members, where, "is of nobody on the roster"):
            _LogAudit(log, records, head, found).check()


class _LogAudit:
    def __init__(self, log: ClientLog, records: Records, head: bytes, found: Checklist) -> None:
        self._log, self._records, self._head, self._found = log, records, head, found
        self._attempts = {attempt.hash: attempt for attempt in records.attempts}
        self._entries: dict[tuple[bytes, str, str], Entry] = {}
        for attempt in records.attempts:
            for entry in attempt.transcript.entries:
                if entry.client == log.client:
                    self._entries[attempt.hash, entry.phase, entry.direction] = entry

    def check(self) -> None:
        closings = [line for line in self._log.lines if line.phase == CLOSING]
        for line in self._log.lines:
            if line.phase != CLOSING:
                self._check_line(line)
        for line in closings:
            self._check_closing(line)
        if not closings:
            why = f"the log of {self._log.client} has no end of the run: later attempts may be missing"
            self._found.unchecked("A-12", why)
        kept = {(line.plan, line.phase, line.direction) for line in self._log.lines}
        for key, entry in self._entries.items():
            if entry.direction == REPLY:
                where = f"{self._attempts[key[0]].where}: {entry.phase} of {entry.client}"
                for direction in (REQUEST, REPLY):
                    there = (key[0], key[1], direction) in kept
                    self._found.require("A-12", there, where, f"the {direction} is recorded, and not in the log")

    def _check_line(self, line: Line) -> None:
        where = f"log of {self._log.client}: {line.phase} {line.direction}"
        if line.envelope is not None and not self._is_the_servers(line, where):
            return
        attempt = self._attempts.get(line.plan)
        if not self._found.require("A-12", attempt is not None, where, "is of an attempt that is not recorded"):
            return
        entry = self._entries.get((line.plan, line.phase, line.direction))
        if entry is None and line.direction == REPLY:
            return  # it may have been lost on the way
        same = entry is not None and entry.digest == line.digest
        self._found.require("A-12", same, where, "is another message than the one recorded")

    def _is_the_servers(self, line: Line, where: str) -> bool:
        """Whether the server has signed what the log holds against it; a log may be forged as well."""
        assert line.envelope is not None
        key = self._records.roster.server
        expected = Expected(line.phase, SERVER, self._log.client, key, line.plan, None)
        try:
            expected.verified(line.envelope)
        except ProtocolError as error:
            return self._found.require("A-12", holds=False, where=where, detail=error.detail)
        return True

    def _check_closing(self, line: Line) -> None:
        where = f"log of {self._log.client}: the end of the run"
        try:
            said = read_closing(join([line.envelope or b""]), self._records.roster.server)
        except ProtocolError as error:
            self._found.require("A-12", holds=False, where=where, detail=error.detail)
            return
        run = self._records.attempts[0].plan.run if self._records.attempts else b""
        self._found.require("A-12", said.run == run, where, "is of another run")
        self._found.require("A-12", said.head == self._head, where, "names another head than the transcripts lead to")
