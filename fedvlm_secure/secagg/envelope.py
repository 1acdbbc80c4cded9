"""Messages on the wire: frames, of which the first is a signed envelope and the rest are chunks of a large vector.

A frame is its length (4 bytes, big-endian) and its bytes. Chunks are covered by the envelope's signature through
their digests, so a receiver verifies everything before it uses any of it.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import SIGNATURE_BYTES, Identity, SignatureError, verify
from fedvlm_secure.primitives.wire import Limits, WireError, encode
from fedvlm_secure.secagg.session import ClientId

T = TypeVar("T")
NETWORK = "network"  # who is to blame where no signature tells

MAX_FRAMES = 1 << 17

# An envelope is parsed before its signature is checked: nothing but its seven fields may cost anything.
ENVELOPE_LIMITS = Limits(max_depth=1, max_items=16)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One signed message. The plan's hash binds run, round, attempt, cohort and model."""

    phase: str
    plan: Digest
    sender: ClientId
    recipient: ClientId
    body: bytes
    signature: Annotated[bytes, SIGNATURE_BYTES]
    spec: str = SPEC_VERSION


def join(frames: Iterable[bytes | memoryview]) -> bytes:
    """Frames as one message."""
    return b"".join(part for frame in frames for part in (struct.pack(">I", len(frame)), frame))


def framed_bytes(frames: Iterable[bytes | memoryview]) -> int:
    """How long :func:`join` makes them."""
    return sum(4 + len(frame) for frame in frames)


def split(message: bytes) -> list[memoryview]:
    """The frames of a message, without copying; raises :class:`WireError` on truncated or trailing bytes."""
    view, start = memoryview(message), 0
    frames: list[memoryview] = []
    while start < len(view):
        if len(view) < start + 4 or len(frames) >= MAX_FRAMES:
            raise WireError("truncated or too many frames")
        end = start + 4 + int.from_bytes(view[start : start + 4])
        if end > len(view):
            raise WireError("truncated frame")
        frames.append(view[start + 4 : end])
        start = end
    if not frames:
        raise WireError("empty message")
    return frames


def claimed_phase(message: bytes) -> str | None:
    """The phase that a message's envelope names, before anything of it is verified; None if it is no envelope."""
    try:
        return unpack(Envelope, split(message)[0], ENVELOPE_LIMITS).phase
    except WireError:
        return None


def claimed_plan(message: bytes) -> bytes | None:
    """The hash of the plan that a message's envelope names, as :func:`claimed_phase`."""
    try:
        return unpack(Envelope, split(message)[0], ENVELOPE_LIMITS).plan
    except WireError:
        return None


def seal(identity: Identity, phase: str, plan: bytes, sender: ClientId, recipient: ClientId, body: object) -> bytes:
    """A signed envelope around a message dataclass, as canonical bytes."""
    return seal_packed(identity, phase, plan, sender, recipient, pack(body))


def seal_packed(
    identity: Identity, phase: str, plan: bytes, sender: ClientId, recipient: ClientId, packed: bytes
) -> bytes:
    """As :func:`seal`, around a message that is packed already."""
    signature = identity.sign("envelope", _signed(phase, plan, sender, recipient, packed))
    return pack(Envelope(phase, plan, sender, recipient, packed, signature))


@dataclass(frozen=True, slots=True)
class Expected:
    """What a receiver knows about the next message before it arrives; errors name it.

    Attributes:
        phase: the phase that the envelope must name.
        key: the sender's signing key.
        plan, place: the plan's hash and (round, attempt), or None before a plan is known.
        carrier: who is to blame for what the sender's signature does not cover: the network, or whoever passed the
            message on under a signature of its own.
        during: the phase in which a passed-on message is read, where that is another.
    """

    phase: str
    sender: ClientId
    recipient: ClientId
    key: bytes
    plan: bytes | None
    place: tuple[int, int] | None
    carrier: str = NETWORK
    during: str | None = None

    def fault(self, clause: str, detail: str, party: str | None = None) -> ProtocolError:
        """The error that names round, phase and party."""
        return ProtocolError(
            clause,
            party=self.sender if party is None else party,
            phase=self.during or self.phase,
            detail=detail,
            round=self.place,
        )

    def open(self, data: bytes | memoryview, body: type[T]) -> T:
        """The verified body of an envelope.

        Raises:
            ProtocolError: not canonical (P-1.1), not signed by the expected sender (P-1.2), of another plan (P-1.3),
                phase (P-1.4), sender or recipient (P-1.5), or with a body of another form (P-1.6). Only the last is
                certainly the sender's fault: anyone on the way can cut a message short or repeat an old one.
        """
        try:
            return unpack(body, self.verified(data).body)
        except (WireError, MisuseError) as error:
            raise self.fault("P-1.6", str(error)) from None

    def verified(self, data: bytes | memoryview) -> Envelope:
        """The envelope, its body still unread; raises :class:`ProtocolError` as :meth:`open` does, but for P-1.6."""
        envelope = self._parse(data)
        try:
            signed = _signed(envelope.phase, envelope.plan, envelope.sender, envelope.recipient, envelope.body)
            verify(self.key, "envelope", signed, envelope.signature)
        except SignatureError:
            raise self.fault("P-1.2", f"not signed by {self.sender}", self.carrier) from None
        if self.plan is not None and envelope.plan != self.plan:
            raise self.fault("P-1.3", "belongs to another plan: another run, round or attempt", self.carrier)
        if envelope.phase != self.phase:
            raise self.fault("P-1.4", f"belongs to phase {envelope.phase[:40]!r}", self.carrier)
        return envelope

    def _parse(self, data: bytes | memoryview) -> Envelope:
        try:
            envelope = unpack(Envelope, data, ENVELOPE_LIMITS)
        except WireError as error:
            raise self.fault("P-1.1", str(error), self.carrier) from None
        if envelope.spec != SPEC_VERSION:
            raise self.fault("P-1.1", f"speaks {envelope.spec[:40]!r}, this party {SPEC_VERSION!r}", self.carrier)
        if (envelope.sender, envelope.recipient) != (self.sender, self.recipient):
            raise self.fault("P-1.5", "comes from or is meant for somebody else", self.carrier)
        return envelope

    def frames(self, message: bytes) -> list[memoryview]:
        """The frames of a message; raises :class:`ProtocolError` (P-1.1)."""
        try:
            return split(message)
        except WireError as error:
            raise self.fault("P-1.1", str(error), self.carrier) from None


def _signed(phase: str, plan: bytes, sender: ClientId, recipient: ClientId, body: bytes) -> bytes:
    # The body's digest: Ed25519 reads what it signs twice, and a request may be megabytes that are alike for everyone.
    return encode([phase, plan, sender, recipient, hashlib.sha256(body).digest()])
