"""Whether the sums follow from what clients sent, where the server has kept that whole (A-11).

The replies go once more through the server's own half of the protocol, which checks every share and every chunk, and
must come to the requests that are recorded and to the model that was kept. A sum that only clients can read is compared
as ciphertexts, with what the server sent them to decrypt.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.models import kept_of, named_by
from fedvlm_secure.audit.records import Records
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.encoding.codec import Decoded
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation.payloads import Payloads
from fedvlm_secure.primitives.schema import pack
from fedvlm_secure.primitives.wire import WireError
from fedvlm_secure.secagg.envelope import split
from fedvlm_secure.secagg.log import REPLY, REQUEST
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import RingSum
from fedvlm_secure.secagg.transcript import Entry

CLAUSE = "A-11"
_BROKEN = (ProtocolError, MisuseError, WireError)


def check_sums(records: Records, said: Sequence[Messages], summed: set[tuple[int, int]], found: Checklist) -> None:
    """Take the recorded replies of every attempt that came to a sum in again, and compare what follows from them."""
    payloads = Payloads(records.folder.coordinator)
    if not payloads.path.is_dir():
        found.unchecked(
            CLAUSE, "transcripts hold digests of uploads and of revealed shares; the run kept no payloads beside them"
        )
        return
    carried = b""
    for messages in said:
        if not messages.sound:
            found.unchecked(CLAUSE, f"{messages.attempt.where} and what follows it: its plan breaks the rules")
            return
        replay = _Replay(messages, records, payloads, found)
        with found.expecting(CLAUSE, messages.attempt.where):
            session = replay.opened(carried)
            if messages.attempt.place in summed:
                replay.run(session)
            carried = session.carried


class _Replay:
    """One attempt, taken in again."""

    def __init__(self, messages: Messages, records: Records, payloads: Payloads, found: Checklist) -> None:
        self._said, self._attempt, self._records = messages, messages.attempt, records
        self._payloads, self._found = payloads, found

    def opened(self, carried: bytes) -> ServerSessionBase:
        """A session for the attempt; raises what a server would if the plan is impossible."""
        kind, plan = lookup(self._attempt.plan.protocol).server, self._attempt.plan
        places = map(self._place, self._replies())
        kept = sum(path.stat().st_size for path in places if path.is_file())
        if kind.sums_words and plan.layout.size > kept:  # a number is a byte at least
            raise MisuseError(f"sums {plan.layout.size} numbers, and what was kept of its replies has {kept} bytes")
        session = kind(plan, None, self._records.roster, carried)
        first = next(iter(self._attempt.transcript.entries), None)
        if first is not None and first.phase != session.phase:  # a key was dealt anew
            session = kind(plan, None, self._records.roster, kind.rotated(carried))
        return session

    def run(self, session: ServerSessionBase) -> None:
        """Phase by phase; what does not follow is a finding."""
        while not session.done:
            phase = session.phase
            self._compare_requests(session)
            for entry in self._replies():
                if entry.phase == phase:
                    if (reply := self._kept(entry)) is None:
                        return
                    session.receive(entry.client, reply)
            session.end_phase()
        total = session.aggregate()
        if isinstance(total, RingSum):
            self._compare_model(self._attempt.plan.codec.decode(total.total))
        else:
            self._found.unchecked(CLAUSE, "only members can read the sum: what is compared is its ciphertexts")

    def _compare_requests(self, session: ServerSessionBase) -> None:
        """What the server asked, as far as that is recorded, is what follows from the replies before."""
        for client, body in self._said.of(session.phase, REQUEST).items():
            where = f"{self._attempt.where}: {session.phase} request of {client}"
            same = pack(body) == session.asks(client)
            self._found.require(CLAUSE, same, where, "does not follow from the replies before it")

    def _kept(self, entry: Entry) -> bytes | None:
        """The reply that an entry records; None, and a finding, if it is not there as it was."""
        path = self._place(entry)
        where = path.relative_to(self._records.folder.path).as_posix()
        try:
            if path.is_symlink() or not path.is_file():
                raise OSError("is no file")
            reply = path.read_bytes()
            envelope = bytes(split(reply)[0])
        except (OSError, WireError) as error:
            self._found.require(CLAUSE, holds=False, where=where, detail=f"cannot be read: {one_line(error)}")
            return None
        same = len(reply) == entry.size and hashlib.sha256(envelope).digest() == entry.digest
        self._found.require(CLAUSE, same, where, "is another message than the one recorded")
        return reply if same else None

    def _replies(self) -> Iterator[Entry]:
        """The recorded replies of this protocol and cohort; others are A-6's, and their names no part of a path."""
        plan = self._attempt.plan
        names = set(plan.cohort) & self._records.roster.keys().keys()
        for entry in self._attempt.transcript.entries:
            if entry.direction == REPLY and entry.client in names and entry.phase in lookup(plan.protocol).phases:
                yield entry

    def _place(self, entry: Entry) -> Path:
        return self._payloads.place(self._attempt.place, entry.phase, entry.client)

    def _compare_model(self, decoded: Decoded) -> None:
        attempt, found = self._attempt, self._found
        line = self._records.line_of(attempt) or {}
        for key, counter in (("total-weight", "weight"), ("correct", "correct"), ("asked", "asked")):
            if line.get(key) is not None and counter in decoded.counters:
                same = line[key] == decoded.counters[counter]
                found.require(CLAUSE, same, attempt.where, f"is recorded with another sum of {counter}")
        named = named_by(self._records)
        before, after = (kept_of(self._records, attempt.place[0] + step, found) for step in (-1, 0))
        if named is None or before is None or after is None:
            found.unchecked(CLAUSE, f"the models before and after {attempt.where} are not both there")
        elif after.places is None:
            found.unchecked(CLAUSE, f"nothing tells which part of the model {attempt.where} has moved")
        else:
            begun = replace(named, shared=before.shared.astype("<f4").tobytes(), places=after.places.tobytes())
            fits = decoded.mean.size == after.places.size and before.shared.size == after.shared.size
            follows = fits and np.array_equal(begun.moved(decoded), after.shared)
            detail = "the model that was kept of its round is not the one before it, moved by the sum"
            found.require(CLAUSE, follows, attempt.where, detail)
