"""What the parties keep of a round for auditors: signed envelopes and sizes, never a share or a masked vector.

The server's transcripts are chained: every plan names the head of the chain before it, and every client keeps the plans
that it was sent. A server that tells another story later contradicts what its clients hold under its own signature.
"""

from dataclasses import dataclass, field

from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS


@dataclass(frozen=True, slots=True)
class Entry:
    """One message.

    Attributes:
        direction: ``"request"`` (server to client) or ``"reply"``.
        size: bytes on the wire, all frames together.
        digest: SHA-256 of the message's envelope.
        envelope: the signed envelope itself, or None where it would reveal shares or repeat recorded replies.
    """

    phase: str
    direction: str
    client: str
    size: int
    digest: Digest
    envelope: bytes | None


@dataclass(frozen=True, slots=True)
class Transcript:
    """One attempt at a round, in the order in which the server sent and accepted."""

    roster: bytes
    plan: bytes
    entries: tuple[Entry, ...] = field(default=())
    spec: str = SPEC_VERSION

    def to_bytes(self) -> bytes:
        """Canonical CBOR."""
        return pack(self, STATE_LIMITS)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Transcript":
        """The inverse of :meth:`to_bytes`; raises :class:`~fedvlm_secure.primitives.wire.WireError`."""
        return unpack(cls, data, STATE_LIMITS)

    @property
    def head(self) -> bytes:
        """The head of the chain after this attempt.

        It begins with the plan's hash, which covers the head before this attempt, and takes in entry by entry.
        """
        head = digest("plan", self.plan)
        for entry in self.entries:
            said = (entry.phase, entry.direction, entry.client, entry.size, entry.digest)
            head = digest("transcript-entry", head, *said)
        return head

    def bytes_per_phase(self) -> dict[str, dict[str, int]]:
        """Bytes sent by the server (``"request"``) and by all clients (``"reply"``) in each phase."""
        totals: dict[str, dict[str, int]] = {}
        for entry in self.entries:
            phase = totals.setdefault(entry.phase, {"request": 0, "reply": 0})
            phase[entry.direction] += entry.size
        return totals
