"""The messages of the pairwise protocol: one dataclass for each body, canonical CBOR on the wire.

Requests go from the server to one client, replies back. A *passed-on* message is a client's own signed envelope that
the server hands to other clients as it is.
"""

from dataclasses import dataclass
from typing import Annotated

from fedvlm_secure.primitives.schema import Digest
from fedvlm_secure.primitives.sealing import PUBLIC_BYTES
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import SIGNATURE_BYTES
from fedvlm_secure.secagg.session import ClientId

KEYS = "keys"
SHARES = "shares"
MASKED_INPUT = "masked-input"
CONSISTENCY = "consistency"
UNMASK = "unmask"
PHASES = (KEYS, SHARES, MASKED_INPUT, CONSISTENCY, UNMASK)

# The phase that a parcel's own envelope names: it is made in `shares` and read in `masked-input`.
PARCEL = "parcel"

SealingPublic = Annotated[bytes, PUBLIC_BYTES]
Signature = Annotated[bytes, SIGNATURE_BYTES]


@dataclass(frozen=True, slots=True)
class Keys:
    """Client → cohort, passed on: this attempt's public keys and a commitment to the self-mask seed (P-3.1)."""

    share_key: SealingPublic
    mask_key: SealingPublic
    self_commitment: Digest


@dataclass(frozen=True, slots=True)
class KeyList:
    """Server → client: the passed-on :class:`Keys` envelopes, by client (P-3.2)."""

    keys: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Parcel:
    """Client → client, passed on: sealed shares, and the sealed pair seed if the sender's name comes first (P-4.2)."""

    key_root: Digest
    shares: bytes
    pair: bytes | None


@dataclass(frozen=True, slots=True)
class SharePair:
    """What a parcel's ``shares`` box holds: the recipient's shares of the sender's two seeds."""

    self_mask: Secret
    mask_seed: Secret


@dataclass(frozen=True, slots=True)
class Parcels:
    """Client → server: its parcels by recipient. Server → client: the parcels for it, by sender (P-4.3)."""

    parcels: dict[str, bytes]


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
    """Server → survivor. Names the dropped only: the survivors follow from the signed list (P-7.1)."""

    dropped: tuple[ClientId, ...]
    consents: dict[str, Signature]


@dataclass(frozen=True, slots=True)
class Revealed:
    """Survivor → server: shares of survivors' self-mask seeds and of dropped clients' mask seeds (P-7.4)."""

    self_mask: dict[str, Secret]
    mask_seed: dict[str, Secret]
