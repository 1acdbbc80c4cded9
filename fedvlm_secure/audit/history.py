"""What holds across attempts: the chain, fresh keys, and what clients have kept of it."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.records import Attempt, Records
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import WireError
from fedvlm_secure.secagg.encrypted import messages as encrypted
from fedvlm_secure.secagg.envelope import Envelope, Expected, join
from fedvlm_secure.secagg.log import CLOSING, REPLY, REQUEST, ClientLog, Line, read_closing
from fedvlm_secure.secagg.pairwise import messages as pairwise
from fedvlm_secure.secagg.plan import NO_HISTORY, Plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import SERVER, ClientId
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


@dataclass(frozen=True)
class Ended:
    """What the records lead to.

    Attributes:
        model: hash of the model after the last sum; None if it is not known.
        summed: the attempts, as (round, attempt), that came to a sum.
    """

    head: bytes
    model: bytes | None
    summed: set[tuple[int, int]]


def check_logs(records: Records, ended: Ended, found: Checklist) -> tuple[ClientId, ...]:
    """What the given clients have kept is what the server has recorded (A-12); the clients whose logs tell all."""
    if not records.logs:
        found.unchecked("A-12", "no client's log was given: the server may have recorded another run than it made")
    names = [log.client for log in records.logs]
    members, covered = {member.name for member in records.roster.members}, list[ClientId]()
    unrecorded: dict[tuple[int, int], set[ClientId]] = {}
    entries = _entries(records.attempts)
    for log in records.logs:
        where = f"log of {log.client}"
        found.require("A-12", names.count(log.client) == 1, where, "was given twice")
        if found.require("A-12", log.client in members, where, "is of nobody on the roster"):
            audit = _LogAudit(log, records, ended, found, entries.get(log.client, {}))
            if audit.check():
                covered.append(log.client)
            for place in audit.unrecorded:
                unrecorded.setdefault(place, set()).add(log.client)
    for place, clients in sorted(unrecorded.items()):
        # It may have been lost on the way, or left out so that an opened sum looks like a failed attempt.
        why = f"of attempt {place} the last replies of {', '.join(sorted(clients))} are in their logs and not recorded"
        found.unchecked("A-12", f"{why}: the server may have used them")
    return tuple(covered)


_Key = tuple[bytes, str, str]  # plan, phase, direction


def _entries(attempts: Sequence[Attempt]) -> dict[ClientId, dict[_Key, Entry]]:
    """What is recorded of each client."""
    found: dict[ClientId, dict[_Key, Entry]] = {}
    for attempt in attempts:
        for entry in attempt.transcript.entries:
            found.setdefault(entry.client, {})[attempt.hash, entry.phase, entry.direction] = entry
    return found


class _LogAudit:
    """One client's log."""

    def __init__(
        self, log: ClientLog, records: Records, ended: Ended, found: Checklist, entries: Mapping[_Key, Entry]
    ) -> None:
        self._log, self._records, self._ended, self._found = log, records, ended, found
        self._attempts = {attempt.hash: attempt for attempt in records.attempts}
        self._run = records.attempts[0].plan.run if records.attempts else b""
        self._entries = entries
        self.unrecorded: list[tuple[int, int]] = []

    def check(self) -> bool:
        """Whether the log goes to the end of this run."""
        for line in self._log.lines:
            if line.phase != CLOSING:
                self._check_line(line)
        closings = [self._closes(line) for line in self._log.lines if line.phase == CLOSING]
        if not any(closings):
            why = f"the log of {self._log.client} has no end of this run: requests may be missing in it"
            self._found.unchecked("A-12", why)
        kept = {(line.plan, line.phase, line.direction) for line in self._log.lines}
        for key, entry in self._entries.items():
            if entry.direction == REPLY:
                where = f"{self._attempts[key[0]].where}: {entry.phase} of {entry.client}"
                for direction in (REQUEST, REPLY):
                    there = (key[0], key[1], direction) in kept
                    self._found.require("A-12", there, where, f"the {direction} is recorded, and not in the log")
        return any(closings)

    def _check_line(self, line: Line) -> None:
        where, found = f"log of {self._log.client}: {line.phase} {line.direction}", self._found
        envelope = None if line.envelope is None else self._signed(line, where)
        if line.envelope is not None and envelope is None:
            return
        attempt = self._attempts.get(line.plan)
        if attempt is None:
            self._check_unknown(line, envelope, where)
            return
        entry = self._entries.get((line.plan, line.phase, line.direction))
        if entry is None and line.direction == REPLY:
            if line.phase == lookup(attempt.plan.protocol).phases[-1] and attempt.place not in self._ended.summed:
                self.unrecorded.append(attempt.place)
            return
        same = entry is not None and (entry.digest, entry.size) == (line.digest, line.size)
        said = "is another message than the one recorded" if entry is not None else "is not recorded"
        found.require("A-12", same, where, said if line.envelope is not None else f"{said}, says the client")

    def _check_unknown(self, line: Line, envelope: Envelope | None, where: str) -> None:
        """An attempt that is not recorded: of this run if a plan says so, else perhaps an old message of another."""
        plan = None if envelope is None else _plan_in(envelope)
        if plan is not None and plan.run == self._run:
            self._found.require("A-12", holds=False, where=where, detail="proposes an attempt that is not recorded")
        elif plan is None:
            self._found.unchecked("A-12", f"{where} is of an attempt that is not recorded here, or of another run")

    def _signed(self, line: Line, where: str) -> Envelope | None:
        """What the server has signed and the log holds against it; a log may be forged as well."""
        assert line.envelope is not None
        same = hashlib.sha256(line.envelope).digest() == line.digest
        if not self._found.require("A-12", same, where, "is not what its digest says"):
            return None
        key = self._records.roster.server
        expected = Expected(line.phase, SERVER, self._log.client, key, line.plan, None)
        try:
            return expected.verified(line.envelope)
        except ProtocolError as error:
            self._found.require("A-12", holds=False, where=where, detail=error.detail)
            return None

    def _closes(self, line: Line) -> bool:
        """Whether the line ends this run, as it is recorded."""
        where, found = f"log of {self._log.client}: the end of the run", self._found
        try:
            said = read_closing(join([line.envelope or b""]), self._records.roster.server)
        except ProtocolError as error:
            return found.require("A-12", holds=False, where=where, detail=error.detail)
        if said.run != self._run:
            return False  # an older one's
        sound = found.require("A-12", said.head == self._ended.head, where, "names another head than the transcripts'")
        model = self._ended.model or said.model
        return found.require("A-12", said.model == model, where, "names another model than is kept") and sound


def _plan_in(envelope: Envelope) -> Plan | None:
    """The plan that a request carries, if it does."""
    with suppress(WireError, MisuseError):
        return unpack(Plan, envelope.body)
    with suppress(WireError, MisuseError):
        return unpack(encrypted.KeysRequest, envelope.body).plan
    with suppress(WireError, MisuseError):
        return unpack(encrypted.Assignment, envelope.body).plan
    return None
