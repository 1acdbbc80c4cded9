"""The messages of the encrypted protocols: one dataclass for each body, canonical CBOR on the wire."""

from dataclasses import dataclass
from typing import Annotated

from fedvlm_secure.primitives.schema import Digest
from fedvlm_secure.primitives.sealing import OVERHEAD_BYTES
from fedvlm_secure.primitives.secret import SECRET_BYTES
from fedvlm_secure.secagg.plan import RUN_BYTES, Plan
from fedvlm_secure.secagg.session import ClientId

KEYS = "keys"
INPUT = "input"
SUM = "sum"
PHASES = (KEYS, INPUT, SUM)

PARCEL_BYTES = SECRET_BYTES + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class KeysRequest:
    """Server → dealer: make the key of this epoch of the run (E-3.1)."""

    plan: Plan
    epoch: int


@dataclass(frozen=True, slots=True)
class Dealing:
    """Dealer → roster, passed on. The sealed key for each member follows as a chunk, by member's name (E-3.2).

    Attributes:
        epoch: counted from 1; a run's keys are rotated by dealing for the next.
        parcels: root of the Merkle tree over the parcels.
        check: commitment to the key itself, as it comes out where it is used (E-3.3).
    """

    run: Annotated[bytes, RUN_BYTES]
    epoch: int
    protocol: str
    roster: Digest
    parcels: Digest
    check: Digest


@dataclass(frozen=True, slots=True)
class Delivery:
    """A member's parcel with its Merkle path in the dealer's signed :class:`Dealing`."""

    dealer: ClientId
    dealing: bytes
    parcel: Annotated[bytes, PARCEL_BYTES]
    path: bytes


@dataclass(frozen=True, slots=True)
class Assignment:
    """Server → client: the plan, and the key to encrypt under."""

    plan: Plan
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class EncryptedUpload:
    """Client → server, in front of its ciphertexts: under which dealing, and their SHA-256 digests in order (E-4.1)."""

    dealing: Digest
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class EncryptedSum:
    """Server → client, in front of the ciphertexts of the sum: whose inputs it says are in it (E-5.1)."""

    plan: Plan
    delivery: Delivery
    survivors: tuple[ClientId, ...]
    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Adopted:
    """Client → server: the model that follows from the sum, and what this client's policy lets the server see (E-6)."""

    model: Digest
    published: dict[str, int]
