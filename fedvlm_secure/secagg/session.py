"""What every aggregation protocol offers: two state machines without I/O, clock or network.

The caller persists ``to_bytes()`` *before* it sends what the session produced, so that a party that crashes and comes
back gives the identical answer or none; and after a refusal too, so that a closed session does not come back open. An
identical request gets the identical reply bytes; any other repeat is refused. A session that has failed or finished
refuses further use.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from fedvlm_secure.encoding.codec import Total
from fedvlm_secure.primitives.schema import Digest
from fedvlm_secure.secagg.transcript import Transcript

ClientId = str
SERVER = "server"
COHORT = "cohort"  # the recipient of what the server passes on to everyone


@dataclass(frozen=True, slots=True)
class RingSum:
    """The sum of the survivors' vectors.

    Attributes:
        total: int64 [layout.size], the signed representatives; float64 under a protocol that sums floats.
        survivors: the clients whose masked input is in the sum, sorted.
        dropped: the rest of the cohort, sorted.
    """

    total: Total
    survivors: tuple[ClientId, ...]
    dropped: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class SealedSum:
    """What the server knows of a sum that only clients can read.

    Attributes:
        model: hash of the model that follows from the sum, as the clients who read it say with one voice.
        published: the counters' sums that those clients chose to publish.
        survivors, dropped: as in :class:`RingSum`.
    """

    model: Digest
    published: dict[str, int]
    survivors: tuple[ClientId, ...]
    dropped: tuple[ClientId, ...]


class ServerSession(Protocol):
    """The server's half of one attempt at a round. Messages are frames around signed, canonical CBOR envelopes."""

    @property
    def phase(self) -> str:
        """The phase that runs now; ``"done"`` at the end."""

    @property
    def done(self) -> bool:
        """True when :meth:`aggregate` may be called."""

    @property
    def transcript(self) -> Transcript:
        """What happened so far, for anyone to verify later."""

    def requests(self) -> Iterator[tuple[ClientId, bytes]]:
        """Lazily, this phase's request to each client that still owes a reply: one message in memory."""

    def receive(self, client: ClientId, reply: bytes) -> None:
        """Verify and take in one reply.

        Raises:
            ProtocolError: the reply breaks a rule; the session is as it was before the call.
        """

    def end_phase(self) -> None:
        """The deadline: whoever has not replied is silent from here on.

        Raises:
            RoundAbortedError: too few remain; the session refuses further use.
        """

    def aggregate(self) -> RingSum | SealedSum:
        """The sum over the survivors, or what is known of it where only clients can read it.

        Raises:
            ProtocolError: shares or check coordinates do not fit.
        """

    def to_bytes(self) -> bytes:
        """The durable state."""


class ClientSession(Protocol):
    """One client's half of one attempt at a round."""

    @property
    def memory(self) -> "Memory":
        """What the client must remember after this session, to be given to the next one."""

    @property
    def sum(self) -> RingSum | None:
        """The sum, once this client has read it; under most protocols the server does, and this stays None."""

    def reply(self, request: bytes) -> bytes:
        """The answer to one request.

        Raises:
            ProtocolError: the request is not authentic or out of turn, or proposes a plan that this client refuses (the
                session is unchanged); or it breaks a rule under the server's own signature, later than the plan (the
                session is closed: the server, or whoever it passes on, cannot be trusted with an answer).
            MisuseError: this client's own update cannot be sent, or the session is over.
        """

    def to_bytes(self) -> bytes:
        """The durable state. It holds secrets: keep the file private."""


@dataclass(frozen=True, slots=True)
class KeyPin:
    """The shared key of a run that a client uses: none of an earlier epoch, and in this epoch no other (E-3.4, E-5.6).

    Attributes:
        dealing: what tells one dealing from another; None before any.
        readings: how many sums were decrypted and checked under it.
        spoiled: one of them did not fit its list; nothing more is encrypted under this key.
    """

    epoch: int
    dealing: Digest | None
    readings: int = 0
    spoiled: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives an attempt at the client: the last plan it began in every run, and which updates it answered for.

    Attributes:
        begun: (round, attempt) of the last plan begun, by the run in hex. Plans must come in increasing order (P-2.7).
        answered: fingerprints of updates that are never sent again: ``unmask`` was answered for them (P-7.5), or their
            ciphertexts have left (E-4.4).
        keys: the shared key in use, by the run in hex, under protocols that have one (E-3.4).
    """

    begun: dict[str, tuple[int, ...]] = field(default_factory=dict)
    answered: tuple[bytes, ...] = ()
    keys: dict[str, KeyPin] = field(default_factory=dict)
