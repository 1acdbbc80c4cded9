"""What an attack needs of a protocol: clients, phases to drive, and a server that may lie to them.

An adapter translates; it judges nothing. It reports in four ways what came of a move: a value, a refusal
(:class:`RefusedError`), a round that broke (:class:`BrokenRoundError`), or that the protocol has no such thing
(:class:`NotApplicableError`). The catalogue draws the conclusions, the same for every target.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

VULNERABLE, RESISTED, NOT_APPLICABLE = OUTCOMES = "vulnerable", "resisted", "not-applicable"

# What every protocol of this kind does, under whatever names: the server proposes, passes keys on, passes shares on and
# is sent inputs, says who survived, and asks for what removes the protection.
PROPOSAL, KEYS, INPUT, AGREEMENT, UNMASK = STEPS = ("proposal", "keys", "input", "agreement", "unmask")

Vector = NDArray[np.float64]
Withheld = Mapping[str, Collection[str]]


class NotApplicableError(Exception):
    """The protocol has no such surface; the text says why."""


class RefusedError(Exception):
    """A client did not answer a lie, or a server a false reply.

    Attributes:
        step: at which of :data:`STEPS`.
        clause: of a specification, where the refusal names one.
        deliberate: whether the code has a check that says so, and did not just fall over what it was sent.
    """

    def __init__(self, client: str, step: str, detail: str, clause: str = "", deliberate: bool = True) -> None:
        self.client, self.step, self.detail, self.clause, self.deliberate = client, step, detail, clause, deliberate
        super().__init__(client, step, detail, clause)

    def __str__(self) -> str:
        return f"refused by {self.client} at {self.step}: {self.clause + ', ' if self.clause else ''}{self.detail}"


class BrokenRoundError(Exception):
    """An honest round did not end in a sum; the text says what ended it."""


class TooLittleError(Exception):
    """What the attacker holds does not give the vector; the text says what is missing."""


@dataclass(frozen=True)
class Cohort:
    """Who takes part with what, by the clients' labels, which sort.

    Attributes:
        updates: float32 arrays of one length.
        weights: sample counts.
        weight_max: the largest weight that the parties have agreed on.
        metrics: one whole number a client that its application reports beside the weight.
    """

    updates: Mapping[str, NDArray[np.float32]]
    weights: Mapping[str, int]
    weight_max: int = 1000
    metrics: Mapping[str, int] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The clients, sorted."""
        return tuple(sorted(self.updates))

    @property
    def dimension(self) -> int:
        """Parameters in an update."""
        return len(next(iter(self.updates.values())))

    def mean(self, names: Iterable[str]) -> Vector:
        """The true weighted mean over ``names``."""
        listed = list(names)
        total = sum(self.weights[name] for name in listed)
        return np.sum([self.updates[name].astype(np.float64) * (self.weights[name] / total) for name in listed], axis=0)


@dataclass(frozen=True)
class Proposal:
    """How a lying server begins.

    Attributes:
        threshold: shares that recover a secret, instead of what is due.
        modulus_bits: a modulus of so many bits, instead of what is due.
        impersonated: members that the server plays itself, with keys of its own.
        sybils: clients that nobody but the server knows; it plays them.
        colluders: clients that share everything with the server.
        shown: which model each client is shown; all the same one if empty.
    """

    threshold: int | None = None
    modulus_bits: int | None = None
    impersonated: tuple[str, ...] = ()
    sybils: tuple[str, ...] = ()
    colluders: tuple[str, ...] = ()
    shown: Mapping[str, bytes] = field(default_factory=dict)


HONEST = Proposal()


@dataclass(frozen=True)
class Mean:
    """What a round gave: the weighted mean, the weights' sum, and whose inputs are in it."""

    values: Vector
    weight: float
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Exposed:
    """One client's update as the attacker has worked it out, and its weight where that came with it."""

    values: Vector
    weight: float | None = None


@dataclass(frozen=True)
class Upload:
    """What one client uploads, seen from both sides.

    Attributes:
        size: bytes of the message.
        payload: the part of it that carries the vector.
        words: int64 [d] in [0, modulus), the masked numbers; None where the payload is ciphertexts.
        encoded: int64 [d], what the client has masked, up to ``tolerance`` of random rounding; None likewise.
        modulus: of both; 0 where there are none.
    """

    size: int
    payload: bytes
    words: NDArray[np.int64] | None = None
    encoded: NDArray[np.int64] | None = None
    modulus: int = 0
    tolerance: int = 0


@dataclass(frozen=True)
class Said:
    """A value that the server reads off a client's message without any key."""

    where: str
    value: int | float | str | bytes


@dataclass(frozen=True)
class Malformed:
    """A message that no honest server sends; ``send`` returns what came back, or raises as a client does."""

    what: str
    step: str
    send: Callable[[], object]


@dataclass(frozen=True)
class Masks:
    """The generator of masks by itself.

    Attributes:
        seeds: examples of each kind of seed as the protocol makes them, by kind.
        expand: (kind, seed, modulus, count) to int64 [count]; the modulus is a power of two.
    """

    seeds: Mapping[str, list[bytes]]
    expand: Callable[[str, bytes, int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Decryption:
    """An approximate decryption: what a key holder reads, and every byte that it then tells others."""

    values: Vector
    told: bytes
    to: str


class Attempt(Protocol):
    """One attempt at a round. A method the protocol has no place for raises :class:`NotApplicableError`."""

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """Go through the steps before ``step`` with every client, honestly but for the proposal.

        Args:
            withheld: for some clients, the peers whose shares they are not given at :data:`INPUT`.
        """

    def agree(self, client: str, survivors: Collection[str]) -> None:
        """Tell one client who survived, and keep what it signs; nothing where no protocol step does that."""

    def unmask(self, client: str, survivors: Collection[str], dropped: Collection[str]) -> None:
        """Ask one client for self-mask shares of ``survivors`` and seed shares of ``dropped``; keep its answer."""

    def recover(self, client: str) -> Exposed:
        """One client's input from all the attacker holds; raises :class:`TooLittleError`."""

    def finish(self, silent: Mapping[str, str] | None = None) -> Mean:
        """The round by the protocol's own server; ``silent`` clients leave at the named phase.

        Raises:
            BrokenRoundError: there is no sum.
        """

    def again(self, new: bool, trained: bool) -> "Attempt":
        """After the round, the server begins once more with the same clients.

        Args:
            new: with a new proposal; if False, with the very one of this attempt.
            trained: clients have trained anew; if False, they send the same updates.
        """

    def upload(self, client: str) -> Upload:
        """A client's upload, once it has been sent."""

    def said(self, client: str) -> list[Said]:
        """All that the server could read in a client's messages so far."""

    def malformed(self) -> Iterable[Malformed]:
        """For every step, messages that break its form."""

    def secrets(self, client: str) -> Mapping[str, bytes]:
        """The private keys and seeds that a client has held in the attempt, by their names."""

    def at_rest(self, client: str) -> bytes:
        """What a client keeps of the attempt, as it would be stored."""

    def server_view(self) -> bytes:
        """All messages that the server has seen, and what it stores."""

    def read_by_member(self, client: str, member: str) -> Exposed:
        """``client``'s ciphertexts opened with what ``member`` holds."""

    def decryption(self) -> Decryption:
        """After the round: what a reader of an approximate sum has decrypted, and told."""


class AuditTarget(Protocol):
    """A protocol under audit.

    Attributes:
        name: what the command line calls it.
        phases: its phases, in order, as :meth:`Attempt.finish` takes them.
        input_phase: the one in which clients send their inputs.
    """

    name: str
    phases: tuple[str, ...]
    input_phase: str

    def open(self, cohort: Cohort, proposal: Proposal = HONEST) -> Attempt:
        """Clients with these inputs, before the first message."""

    def masks(self) -> Masks:
        """The generator of masks."""

    def threshold(self, clients: int) -> int:
        """How many shares recover a secret where nobody lies."""


class Lacking:
    """A base for attempts: what an adapter does not define is answered with the reason why there is no such thing.

    Attributes:
        lacks: the reason by the method's name; ``""`` stands for all others.
    """

    lacks: Mapping[str, str] = {}

    def _no(self, method: str) -> NoReturn:
        raise NotApplicableError(self.lacks.get(method) or self.lacks.get("", "the target offers no way to try it"))

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """See :class:`Attempt`."""
        self._no("until")

    def agree(self, client: str, survivors: Collection[str]) -> None:
        """See :class:`Attempt`."""
        self._no("agree")

    def unmask(self, client: str, survivors: Collection[str], dropped: Collection[str]) -> None:
        """See :class:`Attempt`."""
        self._no("unmask")

    def recover(self, client: str) -> Exposed:
        """See :class:`Attempt`."""
        self._no("recover")

    def finish(self, silent: Mapping[str, str] | None = None) -> Mean:
        """See :class:`Attempt`."""
        self._no("finish")

    def again(self, new: bool, trained: bool) -> Any:
        """See :class:`Attempt`."""
        self._no("again")

    def upload(self, client: str) -> Upload:
        """See :class:`Attempt`."""
        self._no("upload")

    def said(self, client: str) -> list[Said]:
        """See :class:`Attempt`."""
        self._no("said")

    def malformed(self) -> Iterable[Malformed]:
        """See :class:`Attempt`."""
        self._no("malformed")

    def secrets(self, client: str) -> Mapping[str, bytes]:
        """See :class:`Attempt`."""
        self._no("secrets")

    def at_rest(self, client: str) -> bytes:
        """See :class:`Attempt`."""
        self._no("at_rest")

    def server_view(self) -> bytes:
        """See :class:`Attempt`."""
        self._no("server_view")

    def read_by_member(self, client: str, member: str) -> Exposed:
        """See :class:`Attempt`."""
        self._no("read_by_member")

    def decryption(self) -> Decryption:
        """See :class:`Attempt`."""
        self._no("decryption")
