"""What a client keeps of a run for auditors: what the server has signed for it, and digests of its own words.

With it a client can hold a server to its word: the plans carry the head of the server's chain of transcripts, the lists
and requests say what this client was shown.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Annotated

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.envelope import ENVELOPE_LIMITS, Envelope, Expected, join, seal, split
from fedvlm_secure.secagg.plan import RUN_BYTES
from fedvlm_secure.secagg.session import COHORT, SERVER, ClientId

KEPT_BYTES = 1 << 16
CLOSING = "closing"  # the phase of what ends a run
REQUEST, REPLY = "request", "reply"


@dataclass(frozen=True, slots=True)
class Line:
    """One message to or from the client.

    Attributes:
        plan: hash of the plan that it names.
        size: bytes on the wire, all frames together.
        digest: SHA-256 of the envelope.
        envelope: the envelope itself if it is a request of at most :data:`KEPT_BYTES`. Replies are not kept: some hold
            shares, which are nobody's business but the server's.
    """

    plan: Digest
    phase: str
    direction: str
    size: int
    digest: Digest
    envelope: bytes | None


@dataclass(frozen=True, slots=True)
class ClientLog:
    """One client's lines, in order. Nothing in them is secret from the server.

    Attributes:
        attested: what the client signs of its own training, an envelope; empty if it says nothing.
    """

    client: ClientId
    lines: tuple[Line, ...] = field(default=())
    attested: bytes = b""
    spec: str = SPEC_VERSION

    def to_bytes(self) -> bytes:
        """Canonical CBOR."""
        return pack(self, STATE_LIMITS)

    @classmethod
    def from_bytes(cls, data: bytes) -> "ClientLog":
        """The inverse of :meth:`to_bytes`; raises :class:`~fedvlm_secure.primitives.wire.WireError`."""
        return unpack(cls, data, STATE_LIMITS)


@dataclass(frozen=True, slots=True)
class Closing:
    """Server → client, after the last attempt.

    Attributes:
        model: hash of the model that the run ends with.
        head: of the whole chain of transcripts.
    """

    run: Annotated[bytes, RUN_BYTES]
    rounds: int
    model: Digest
    head: Digest


def line_of(direction: str, message: bytes) -> Line:
    """A line for a message whose envelope has been verified, or was made here."""
    envelope = bytes(split(message)[0])
    said = unpack(Envelope, envelope, ENVELOPE_LIMITS)
    kept = envelope if direction == REQUEST and len(envelope) <= KEPT_BYTES else None
    return Line(said.plan, said.phase, direction, len(message), hashlib.sha256(envelope).digest(), kept)


def signed_line(message: bytes, client: ClientId, server: bytes) -> Line | None:
    """A line for a request that is refused, if the server has signed it for this client; None if that is not shown."""
    try:
        line = line_of(REQUEST, message)
        Expected(line.phase, SERVER, client, server, None, None).verified(split(message)[0])
    except (WireError, ProtocolError):
        return None
    return line


def ended_run(ending: bytes) -> bytes:
    """The run that a closing message names, nothing of it verified; raises :class:`WireError`."""
    return unpack(Closing, unpack(Envelope, split(ending)[0], ENVELOPE_LIMITS).body).run


def close(identity: Identity, plan: bytes, closing: Closing) -> bytes:
    """The message that ends the run for everyone; ``plan`` is the hash of the last attempt's."""
    return join([seal(identity, CLOSING, plan, SERVER, COHORT, closing)])


def read_closing(message: bytes, server: bytes) -> Closing:
    """What ends the run; raises :class:`ProtocolError` unless the key ``server`` has signed it."""
    expected = Expected(CLOSING, SERVER, COHORT, server, None, None)
    return expected.open(expected.frames(message)[0], Closing)
