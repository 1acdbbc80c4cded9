"""The messages of the pairwise protocol: one dataclass for each body, canonical CBOR on the wire.

Requests go from the server to one client, replies back. A *passed-on* message is a client's own signed envelope that
the server hands to other clients as it is.
"""

from dataclasses import dataclass
from typing import Annotated

from fedvlm_secure.primitives.schema import Digest
from fedvlm_secure.primitives.sealing import OVERHEAD_BYTES, PUBLIC_BYTES
from fedvlm_secure.primitives.secret import SECRET_BYTES, Secret
from fedvlm_secure.primitives.shamir import SHARE_BYTES
from fedvlm_secure.primitives.signing import SIGNATURE_BYTES
from fedvlm_secure.primitives.wire import WireError
from fedvlm_secure.secagg.session import ClientId

KEYS = "keys"
SHARES = "shares"
MASKED_INPUT = "masked-input"
CONSISTENCY = "consistency"
UNMASK = "unmask"
PHASES = (KEYS, SHARES, MASKED_INPUT, CONSISTENCY, UNMASK)

# The two seeds that a client shares, as commitments to their shares name them.
SELF_MASK = "self-mask"
MASK_SEED = "mask-seed"

SHARES_BOX_BYTES = 2 * SHARE_BYTES + OVERHEAD_BYTES
PAIR_BOX_BYTES = SECRET_BYTES + OVERHEAD_BYTES

SealingPublic = Annotated[bytes, PUBLIC_BYTES]
Signature = Annotated[bytes, SIGNATURE_BYTES]
Share = Annotated[Secret, SHARE_BYTES]


@dataclass(frozen=True, slots=True)
class Keys:
    """Client → cohort, passed on: this attempt's public keys and a commitment to the self-mask seed (P-3.1)."""

    share_key: SealingPublic
    mask_key: SealingPublic
    self_commitment: Digest


@dataclass(frozen=True, slots=True)
class KeyList:
    """Server → client: the passed-on :class:`Keys` envelopes of itself and its neighbours, and digests of the others'.

    Together they give the key root, which is the same for everyone (P-3.2). ``others`` is empty on the complete graph.
    """

    keys: dict[str, bytes]
    others: dict[str, Digest]


@dataclass(frozen=True, slots=True)
class ParcelList:
    """Client → server, passed on: the root of the Merkle tree over its parcels, by recipient's name (P-4.2).

    The parcels follow as chunks. One signature so covers them all, and each can be passed on alone with its path.
    """

    key_root: Digest
    parcels: Digest


@dataclass(frozen=True, slots=True)
class SharePair:
    """A client's shares of a peer's two seeds."""

    self_mask: Share
    mask_seed: Share


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one client deals to another. On the wire the fields one after the other, each of a fixed length (P-4.2).

    Attributes:
        self_check, seed_check: commitments to the two shares, so that whoever changes a share is found out.
        shares: the recipient's :class:`SharePair`, self mask first, sealed to its share key.
        pair: the sealed pair seed, if the sender's name comes first.
    """

    self_check: Digest
    seed_check: Digest
    shares: bytes
    pair: bytes | None

    def to_bytes(self) -> bytes:
        """All fields, one after the other."""
        return self.self_check + self.seed_check + self.shares + (self.pair or b"")

    @classmethod
    def from_bytes(cls, data: bytes, with_pair: bool) -> "Parcel":
        """The inverse of :meth:`to_bytes`; raises :class:`~fedvlm_secure.primitives.wire.WireError`."""
        if len(data) != parcel_bytes(with_pair):
            raise WireError(f"a parcel of {len(data)} bytes, not {parcel_bytes(with_pair)}")
        pair = data[64 + SHARES_BOX_BYTES :] if with_pair else None
        return cls(data[:32], data[32:64], data[64 : 64 + SHARES_BOX_BYTES], pair)


def parcel_bytes(with_pair: bool) -> int:
    """How long a parcel is: two checks, the sealed shares, and the sealed pair seed if there is one."""
    return 64 + SHARES_BOX_BYTES + (PAIR_BOX_BYTES if with_pair else 0)


def check_of(parcel: bytes, seed: str) -> bytes:
    """The commitment in a parcel to the share of one of the two seeds."""
    return parcel[:32] if seed == SELF_MASK else parcel[32:64]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A parcel on its way to its recipient, with its Merkle path in the sender's signed :class:`ParcelList`."""

    parcel_list: bytes
    parcel: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Server → client: the parcels for it, by sender (P-4.3)."""

    parcels: dict[str, Delivery]


@dataclass(frozen=True, slots=True)
class SurvivorList:
    """Server → client: whose masked inputs it holds, sorted (P-6.1)."""

    survivors: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True)
class Consent:
    """Client → cohort, through the server: a signature over plan, key root and survivor list (P-6.2)."""

    signature: Signature


@dataclass(frozen=True, slots=True)
class UnmaskRequest:
    """Server → survivor. Names its dropped neighbours only: the survivors follow from the signed list (P-7.1)."""

    dropped: tuple[ClientId, ...]
    consents: dict[str, Signature]


@dataclass(frozen=True, slots=True)
class Revealed:
    """Survivor → server: shares of survivors' self-mask seeds and of dropped clients' mask seeds (P-7.4)."""

    self_mask: dict[str, Share]
    mask_seed: dict[str, Share]
