"""What every client session does alike: open a request, move to the next state, answer once, repeat on request.

A protocol is a table: the state a client is in says which phase's request it takes next, and which function turns
state and request into the next state and the answer. A used state is gone, so it cannot be used again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.envelope import NETWORK, Expected, claimed_phase, join, seal
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, check_plan
from fedvlm_secure.secagg.session import SERVER, Memory, RingSum


@dataclass(frozen=True, slots=True)
class Turn:
    """What a transition may look at besides its state and the request; ``chunks`` follow the request's envelope."""

    party: Party
    plan: Plan
    update: Update
    fingerprint: bytes
    expected: Expected
    memory: Memory
    chunks: Sequence[memoryview] = ()

    def encoded(self) -> Words:
        """The update as words of the ring; raises as :meth:`own_update` does."""
        return self.plan.ring.from_signed(self.plan.codec.encode(self.own_update()).integers)

    def own_update(self) -> Update:
        """The update that the session began with.

        Training in place between two phases would otherwise send one update and remember another (P-7.5).

        Raises:
            MisuseError: its values have changed.
        """
        if fingerprint(self.update) != self.fingerprint:
            raise MisuseError("the update's values changed after the session was opened; give the session its own copy")
        return self.update

    def fault(self, clause: str, detail: str) -> ProtocolError:
        """The server broke ``clause``."""
        return self.expected.fault(clause, detail)


@dataclass(frozen=True, slots=True)
class Ready:
    """No plan yet, no secrets."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last answer is given; nothing further is."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A rule was broken under the server's signature; nothing further is answered.

    That holds for what another client did as well: the server passed it on, the two may be one, and a second try with
    other words would be an experiment on this client. Whom a next attempt leaves out is the coordinator's decision.
    """

    clause: str
    party: str
    phase: str
    detail: str


Answer = tuple[object, list[bytes]]  # the body of a reply, and the chunks that follow its envelope
Transition = Callable[[Turn, Any, Any], tuple[object, Answer]]


@dataclass(frozen=True, slots=True)
class Step:
    """One row of a protocol's table: the phase, the form of its request, and the transition.

    The request of a first step is the plan or has it as ``plan``. ``chunks`` says whether chunks follow the request.
    """

    phase: str
    request: type
    transition: Transition
    chunks: bool = False


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """The durable state of a client session. Secrets are in it in the clear: keep the file private."""

    protocol: str
    state: str
    fields: Secret
    plan: Plan | None
    memory: Memory
    update: Digest
    last_request: Digest | None
    last_reply: bytes


def fingerprint(update: Update) -> bytes:
    """What tells one update from another across attempts: a digest of its values before any rounding.

    Equal numbers give one fingerprint, whether they are held as float32 or as float64.
    """
    values = np.ascontiguousarray(update.values, "<f8") + 0.0  # and whether a zero has a sign
    return digest("update", hashlib.sha256(values.data).digest())


class ClientSessionBase:
    """One client in one attempt; a protocol adds its table of steps."""

    protocol: ClassVar[str]
    latched: ClassVar[tuple[type, ...]] = (Finished,)  # states in which the update must never be sent again
    steps: ClassVar[Mapping[type, tuple[Step, ...]]]  # several where the server chooses with which phase to begin

    def __init__(self, party: Party, update: Update, memory: Memory | None = None) -> None:
        self._party = party
        self._update = update
        self._memory = Memory() if memory is None else memory
        self._state: object = Ready()
        self._plan: Plan | None = None
        self._last_request: bytes | None = None
        self._last_reply = b""
        if not isinstance(update.values, np.ndarray) or update.values.dtype not in (np.float32, np.float64):
            raise MisuseError("an update's values must be a numpy array of float32 or float64")
        self._fingerprint = fingerprint(update)
        # An empty update (a strategy that shares nothing) is counters only; those repeat in any case (ADR 4).
        if update.values.size and self._fingerprint in self._memory.answered:
            raise MisuseError(
                "this update is part of a sum that was already unmasked (P-7.5), or its ciphertexts have left (E-4.4); "
                "train again to send one"
            )

    @property
    def memory(self) -> Memory:
        """See :class:`fedvlm_secure.secagg.session.ClientSession`."""
        return self._memory

    @property
    def plan(self) -> Plan | None:
        """The plan this session has begun, if any."""
        return self._plan

    @property
    def refusal(self) -> ProtocolError | None:
        """The error that closed this session, if one did."""
        if not isinstance(self._state, Closed):
            return None
        return ProtocolError(**asdict(self._state), round=None if self._plan is None else self._plan.place)

    @property
    def sum(self) -> RingSum | None:
        """See :class:`fedvlm_secure.secagg.session.ClientSession`."""
        return None

    def reply(self, request: bytes) -> bytes:
        """See :meth:`fedvlm_secure.secagg.session.ClientSession.reply`."""
        request_digest = hashlib.sha256(request).digest()
        if request_digest == self._last_request:
            return self._last_reply
        step, expected, frames, body = self._opened(request)
        plan = self._accept(expected, frames[0], step, body) if self._plan is None else self._plan
        expected = replace(expected, plan=plan.hash, place=plan.place)
        turn = Turn(self._party, plan, self._update, self._fingerprint, expected, self._memory, frames[1:])
        state, (answer, chunks) = self._transition(step, turn, body)
        envelope = seal(self._party.identity, step.phase, plan.hash, self._party.name, SERVER, answer)
        self._state, self._plan = state, plan
        self._remember(plan)
        self._last_request, self._last_reply = request_digest, join([envelope, *chunks])
        return self._last_reply

    @classmethod
    def proposed(cls, request: bytes, party: Party, memory: Memory) -> Plan:
        """The plan in a first request, checked for all but the model that it names and the update that will be sent.

        For a client that trains for no plan which it would refuse.

        Raises:
            ProtocolError: as :meth:`reply`.
        """
        session = cls(party, Update(np.zeros(0, np.float32), {}), memory)
        step, expected, frames, body = session._opened(request)
        plan: Plan = body if isinstance(body, Plan) else body.plan
        session._party = replace(party, model=plan.model)
        session._verify(expected, frames[0], step, plan)
        return plan

    def to_bytes(self) -> bytes:
        """The durable state, secrets included; the party's keys and the update are not part of it."""
        return pack(
            ClientRecord(
                protocol=self.protocol,
                state=type(self._state).__name__,
                fields=Secret(pack(self._state, STATE_LIMITS)),
                plan=self._plan,
                memory=self._memory,
                update=self._fingerprint,
                last_request=self._last_request,
                last_reply=self._last_reply,
            ),
            STATE_LIMITS,
        )

    @classmethod
    def from_bytes(cls, data: bytes, party: Party, update: Update, memory: Memory | None = None) -> Self:
        """The session that :meth:`to_bytes` described, with the same party and update.

        Args:
            memory: what the client remembers now. Give it wherever attempts can overlap: a session that a later
                attempt has overtaken must not come back and answer for the same update a second time (P-7.5).

        Raises:
            WireError: ``data`` is not such a state.
            MisuseError: it is another protocol's or another update's, or ``memory`` says that it is overtaken.
        """
        record = unpack(ClientRecord, data, STATE_LIMITS)
        states = {state.__name__: state for state in (*cls.steps, Finished, Closed)}
        if record.protocol != cls.protocol or record.state not in states:
            raise MisuseError(f"the saved session is of protocol {record.protocol!r}, not {cls.protocol!r}")
        if memory is not None and memory != record.memory:
            raise MisuseError("the saved session was overtaken by a later attempt (P-7.5); open one for that attempt")
        session, plan = cls(party, update), record.plan
        if plan is not None and (plan.roster, plan.model) != (party.roster.hash, party.model):
            raise MisuseError("the saved session was opened with another roster or model")
        if session._fingerprint != record.update:
            raise MisuseError("the saved session was opened with another update")
        session._state = unpack(states[record.state], record.fields.reveal(), STATE_LIMITS)
        session._plan, session._memory = record.plan, record.memory
        session._last_request, session._last_reply = record.last_request, record.last_reply
        return session

    @staticmethod
    def plan_of(data: bytes) -> Plan | None:
        """The plan a saved session has begun, if any; raises :class:`~fedvlm_secure.primitives.wire.WireError`."""
        return unpack(ClientRecord, data, STATE_LIMITS).plan

    def _expected(self, step: Step) -> Expected:
        plan = self._plan
        return Expected(
            phase=step.phase,
            sender=SERVER,
            recipient=self._party.name,
            key=self._party.roster.server,
            plan=None if plan is None else plan.hash,
            place=None if plan is None else plan.place,
        )

    def _opened(self, request: bytes) -> tuple[Step, Expected, list[memoryview], Any]:
        """The step that a request asks for, its frames, and the body of the first."""
        steps = self.steps.get(type(self._state))
        if steps is None:
            raise MisuseError("this session is over and answers nothing new; open one for the next attempt")
        claimed = claimed_phase(request) if len(steps) > 1 else None
        step = next((step for step in steps if step.phase == claimed), steps[0])
        expected = self._expected(step)
        frames = expected.frames(request)
        if len(frames) != 1 and not step.chunks:
            raise expected.fault("P-1.1", f"{len(frames)} frames where one is expected", NETWORK)
        return step, expected, frames, expected.open(frames[0], step.request)

    def _accept(self, expected: Expected, envelope: memoryview, step: Step, body: Any) -> Plan:
        """Check a plan, which the first request of every protocol carries, before anything is made for it."""
        plan: Plan = body if isinstance(body, Plan) else body.plan
        self._verify(expected, envelope, step, plan)
        names = {counter.name for counter in plan.layout.counters}
        if plan.layout.update != self._update.values.size or names != set(self._update.counters):
            raise replace(expected, place=plan.place).fault("P-2.5", "its layout is not that of this client's update")
        plan.codec.check(self._update)
        return plan

    def _verify(self, expected: Expected, envelope: memoryview, step: Step, plan: Plan) -> None:
        """Signature, protocol, rules and floors of a plan."""
        replace(expected, plan=plan.hash, place=plan.place).open(envelope, step.request)
        if plan.protocol != self.protocol:
            raise expected.fault("P-2.6", f"proposes protocol {plan.protocol[:40]!r} to a session of {self.protocol!r}")
        check_plan(plan, self._party, self._memory, expected.phase)

    def _transition(self, step: Step, turn: Turn, body: object) -> tuple[object, Answer]:
        try:
            return step.transition(turn, self._state, body)
        except ProtocolError as error:
            if error.party != NETWORK:  # what nobody signed may come again, as it was
                self._state, self._plan = Closed(error.clause, error.party, error.phase, error.detail), turn.plan
            raise

    def _remember(self, plan: Plan) -> None:
        self._memory = replace(self._memory, begun={**self._memory.begun, plan.run.hex(): plan.place})
        answered = self._memory.answered
        if isinstance(self._state, self.latched) and self._update.values.size and self._fingerprint not in answered:
            self._memory = replace(self._memory, answered=(*answered, self._fingerprint))
