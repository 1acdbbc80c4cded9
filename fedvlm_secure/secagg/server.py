"""What every server session does alike: ask, verify and take in replies, count the silent, add vectors, persist."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from fedvlm_secure.encoding.codec import GarbageSumError
from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.errors import MisuseError, ProtocolError, RoundAbortedError
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.stream import CHUNK
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.envelope import NETWORK, Expected, framed_bytes, join, seal_packed
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import SERVER, ClientId, RingSum, SealedSum
from fedvlm_secure.secagg.transcript import Entry, Transcript
from fedvlm_secure.secagg.upload import verified_chunks

DONE = "done"
FAILED = "failed"
THE_COHORT = "the cohort"  # who is at fault where no single client is


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The durable state of a server session; ``own`` is what a subclass adds."""

    plan: Plan
    roster: Roster
    phase: str
    asked: tuple[ClientId, ...]
    replied: tuple[ClientId, ...]
    uploaded: tuple[ClientId, ...]
    total: bytes
    entries: tuple[Entry, ...]
    own: bytes


class ServerSessionBase(ABC):
    """The server in one attempt. Subclasses name the phases and say what each asks and takes.

    Without an identity it signs nothing, hence asks nobody: an auditor lets it take recorded replies in once more.
    """

    phases: tuple[str, ...]
    sums_words = True  # whether the sum is one of ring words, kept here; if not, a subclass keeps it

    def __init__(self, plan: Plan, identity: Identity | None, roster: Roster, carried: bytes = b"") -> None:
        if plan.roster != roster.hash or (identity is not None and identity.public != roster.server):
            raise MisuseError("the plan, the roster and the server's key do not belong together")
        if not set(plan.cohort) <= roster.keys().keys() - {SERVER}:
            raise MisuseError("the plan's cohort holds clients that are not on the roster")
        self._plan = plan
        self._hash = plan.hash
        self._identity = identity
        self._roster = roster
        self._keys = roster.keys()
        self._phase = self.phases[0]
        self._asked: tuple[ClientId, ...] = plan.cohort
        self._replied: set[ClientId] = set()
        self._uploaded: set[ClientId] = set()
        try:
            self._total = plan.ring.zeros(plan.layout.size if self.sums_words else 0)
        except ValueError as error:
            raise MisuseError(f"the plan cannot be summed: {error}") from None
        self._entries: dict[tuple[str, str, ClientId], Entry] = {}

    @property
    def plan(self) -> Plan:
        """The plan of this attempt."""
        return self._plan

    @property
    def phase(self) -> str:
        """The phase that runs now."""
        return self._phase

    @property
    def done(self) -> bool:
        """True when the sum can be had."""
        return self._phase == DONE

    @property
    def carried(self) -> bytes:
        """What the next attempt's session needs of this one, to be given to it; empty under most protocols."""
        return b""

    @staticmethod
    def rotated(carried: bytes) -> bytes:
        """``carried``, but so that the next session makes new keys where it would have used those of this one."""
        return carried

    @property
    def bulletin(self) -> bytes:
        """The finished round's sum for members that have to catch up, where only they can read it; else empty."""
        return b""

    @property
    def transcript(self) -> Transcript:
        """What happened so far."""
        return Transcript(pack(self._roster), pack(self._plan), tuple(self._entries.values()))

    @abstractmethod
    def _request(self, client: ClientId) -> object:
        """The body of this phase's request to one client."""

    def _chunks(self) -> Sequence[bytes]:
        """What follows the envelope of each of this phase's requests."""
        return ()

    def _alike(self) -> bool:
        """Whether this phase's request is the same for everyone, so that it is packed once."""
        return False

    @abstractmethod
    def _take(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        """Verify one reply and take it in; raises with the state unchanged."""

    @abstractmethod
    def _ended(self) -> tuple[ClientId, ...]:
        """The phase's end: check what the next one needs, and say whom to ask then."""

    @abstractmethod
    def _unprotected(self) -> Words:
        """The sum with all protection removed."""

    @abstractmethod
    def _own(self) -> bytes:
        """The subclass's part of the durable state."""

    @abstractmethod
    def _restore_own(self, own: bytes) -> None:
        """The inverse of :meth:`_own`."""

    def _recorded(self, direction: str) -> bool:
        """Whether the transcript keeps this phase's envelopes, rather than their digests only."""
        return True

    def requests(self) -> Iterator[tuple[ClientId, bytes]]:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.requests`."""
        phase, body = self._running(), None
        if self._identity is None:
            raise MisuseError("a session without the server's key can ask nobody")
        for client in self._asked:
            if self._phase != phase:
                raise MisuseError(f"phase {phase} has ended; take the requests of the phase that runs now")
            if client not in self._replied:
                body = body if body is not None and self._alike() else pack(self._request(client))
                envelope = seal_packed(self._identity, phase, self._hash, SERVER, client, body)
                frames = [envelope, *self._chunks()]
                self._note("request", client, envelope, framed_bytes(frames))
                yield client, join(frames)  # not kept here: the next one would be made beside it

    def asks(self, client: ClientId) -> bytes:
        """The body of this phase's request to ``client``, canonical CBOR; its signature needs the server's key.

        Raises:
            MisuseError: nothing is asked of this client now.
        """
        phase = self._running()
        if client not in self._asked:
            raise MisuseError(f"{client!r} is asked nothing in phase {phase}")
        return pack(self._request(client))

    def receive(self, client: ClientId, reply: bytes) -> None:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.receive`."""
        if client not in self._plan.cohort:
            raise MisuseError(f"{client!r} is not in the cohort of this round")
        expected = self._expected(self._phase, client)
        if self._phase in (DONE, FAILED) or client not in self._asked or client in self._replied:
            # No signature is looked at, so nobody is blamed: it may be a repeat on the way, or anybody's junk.
            raise expected.fault("P-1.7", f"a reply of {client} that was not asked for, or a second one", NETWORK)
        frames = expected.frames(reply)
        self._take(expected, client, frames)
        self._note("reply", client, bytes(frames[0]), len(reply))
        self._replied.add(client)

    def end_phase(self) -> None:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.end_phase`."""
        self._running()
        try:
            self._asked = self._ended()
        except RoundAbortedError:
            self._phase = FAILED
            raise
        self._replied = set()
        following = self.phases.index(self._phase) + 1
        self._phase = self.phases[following] if following < len(self.phases) else DONE

    def aggregate(self) -> RingSum | SealedSum:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.aggregate`."""
        self._require_done()
        total = self._plan.ring.to_signed(self._unprotected())
        try:
            _, participants = self._plan.codec.counted(total)
        except GarbageSumError as error:
            raise self._fault("P-8.1", THE_COHORT, str(error)) from None
        if participants != len(self._uploaded):
            detail = f"{participants} participations in the sum of {len(self._uploaded)} uploads"
            raise self._fault("P-8.1", THE_COHORT, detail)
        return RingSum(total, *self._who())

    def to_bytes(self) -> bytes:
        """See :meth:`fedvlm_secure.secagg.session.ServerSession.to_bytes`."""
        return pack(
            ServerRecord(
                plan=self._plan,
                roster=self._roster,
                phase=self._phase,
                asked=self._asked,
                replied=tuple(sorted(self._replied)),
                uploaded=tuple(sorted(self._uploaded)),
                total=self._plan.ring.pack(self._total),
                entries=tuple(self._entries.values()),
                own=self._own(),
            ),
            STATE_LIMITS,
        )

    @classmethod
    def from_bytes(cls, data: bytes, identity: Identity) -> Self:
        """The session that :meth:`to_bytes` described.

        Raises:
            WireError: ``data`` is not such a state.
            MisuseError: it is another server's.
        """
        record = unpack(ServerRecord, data, STATE_LIMITS)
        try:
            ring, size = record.plan.ring, record.plan.layout.size if cls.sums_words else 0
        except ValueError as error:
            raise WireError(f"the saved session's plan has no ring: {error}") from None
        if record.phase not in (*cls.phases, DONE, FAILED) or len(record.total) != size * ring.value_bytes:
            raise WireError("the saved session has an unknown phase, or a sum of another length")
        session = cls(record.plan, identity, record.roster)
        session._phase = record.phase
        session._asked = record.asked
        session._replied = set(record.replied)
        session._uploaded = set(record.uploaded)
        session._total = ring.unpack(record.total).copy()
        session._entries = {(entry.phase, entry.direction, entry.client): entry for entry in record.entries}
        session._restore_own(record.own)
        return session

    def _expected(self, phase: str, sender: ClientId, recipient: ClientId = SERVER) -> Expected:
        return Expected(phase, sender, recipient, self._keys[sender], self._hash, self._plan.place)

    def _require_done(self) -> None:
        if not self.done:
            raise MisuseError(f"the round is in phase {self._phase}; there is no sum to take")

    def _who(self) -> tuple[tuple[ClientId, ...], tuple[ClientId, ...]]:
        """Who is in the sum, and who of the cohort is not; sorted."""
        return tuple(sorted(self._uploaded)), tuple(sorted(set(self._plan.cohort) - self._uploaded))

    def _running(self) -> str:
        if self._phase in (DONE, FAILED):
            raise MisuseError(f"the session is {self._phase}; open one for the next attempt")
        return self._phase

    def _add_upload(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        """Verify a vector's chunks against the signed digests, then add them; nothing is kept of the vector."""
        for number, chunk in enumerate(verified_chunks(expected, frames, self._plan)):
            self._total[number * CHUNK : (number + 1) * CHUNK] += self._plan.ring.unpack(chunk)
        self._uploaded.add(client)

    def _require(self, count: int, needed: int, clause: str, where: str = "") -> None:
        if count < needed:
            detail = f"{count} of {len(self._plan.cohort)} clients remain{where}, {needed} are needed"
            raise RoundAbortedError(clause, party=THE_COHORT, phase=self._phase, detail=detail, round=self._plan.place)

    def _fault(self, clause: str, party: str, detail: str) -> ProtocolError:
        return ProtocolError(clause, party=party, phase=self._phase, detail=detail, round=self._plan.place)

    def _note(self, direction: str, client: ClientId, envelope: bytes, size: int) -> None:
        key = (self._phase, direction, client)
        kept = envelope if self._recorded(direction) else None
        digest = hashlib.sha256(envelope).digest()
        self._entries.setdefault(key, Entry(self._phase, direction, client, size, digest, kept))
