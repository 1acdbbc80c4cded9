"""What the server proposes for one attempt at a round. Its hash is bound into every key, seed and signature."""

import math
import struct
from dataclasses import dataclass
from typing import Annotated

from fedvlm_secure.encoding.codec import ROUNDINGS, Codec
from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack
from fedvlm_secure.secagg.session import ClientId

HONEST_BUT_CURIOUS = "honest-but-curious"
MALICIOUS_SERVER = "malicious-server"
THREAT_MODELS = (HONEST_BUT_CURIOUS, MALICIOUS_SERVER)
RUN_BYTES = 16
LARGEST_COHORT = 4096


def majority(clients: int, max_corrupt: int) -> int:
    """The least number above (n + c)/2: two such sets of clients share an honest one that did not equivocate."""
    return (clients + max_corrupt) // 2 + 1


def least_threshold(threat_model: str, clients: int, max_corrupt: int) -> int:
    """The smallest safe number of shares that recovers a secret, on the complete graph."""
    if threat_model == MALICIOUS_SERVER:
        return majority(clients, max_corrupt)
    return max(2, max_corrupt + 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """One attempt at one round.

    Attributes:
        run: 16 random bytes that name the run.
        round, attempt: counted from 1; a new attempt at a round has fresh keys.
        max_corrupt: c, how many clients may collude with the server.
        threshold: t, how many shares recover a secret.
        min_survivors: fewest clients in a sum; at least t and c + 2.
        clip: the clip norm, a big-endian IEEE 754 double.
        ring_bits: what the layout needs for this cohort; recomputed by every client.
        roster, model: hashes of the pinned roster and of the model all clients must have loaded.
    """

    protocol: str
    run: Annotated[bytes, RUN_BYTES]
    round: int
    attempt: int
    threat_model: str
    max_corrupt: int
    cohort: tuple[ClientId, ...]
    threshold: int
    min_survivors: int
    layout: VectorLayout
    clip: Annotated[bytes, 8]
    rounding: str
    ring_bits: int
    roster: Digest
    model: Digest
    spec: str = SPEC_VERSION

    @property
    def hash(self) -> bytes:
        """The digest that everything in this attempt is bound to."""
        return digest("plan", pack(self))

    @property
    def place(self) -> tuple[int, int]:
        """(round, attempt), as errors name it."""
        return self.round, self.attempt

    @property
    def ring(self) -> Ring:
        """The ring of the sum."""
        return Ring(self.ring_bits)

    @property
    def codec(self) -> Codec:
        """The encoding of this round.

        The rotation's signs follow from the model and the round, not from the run's random name: they hide nothing,
        and two runs of the same settings then round alike.
        """
        clip_norm: float = struct.unpack(">d", self.clip)[0]
        return Codec(self.layout, clip_norm, digest("rotation", self.model, self.round), self.rounding)

    def point(self, client: ClientId) -> int:
        """The client's point in Shamir's sharing: its place in the cohort, from 1."""
        return self.cohort.index(client) + 1


def propose(
    *,
    run: bytes,
    round: int,
    attempt: int,
    cohort: tuple[ClientId, ...],
    layout: VectorLayout,
    clip_norm: float,
    roster: bytes,
    model: bytes,
    protocol: str = "pairwise",
    threat_model: str = MALICIOUS_SERVER,
    max_corrupt: int = 1,
    threshold: int | None = None,
    min_survivors: int | None = None,
    rounding: str = "stochastic",
) -> Plan:
    """A plan with everything that follows from the cohort filled in: thresholds and ring.

    Raises:
        MisuseError: the numbers do not make a safe round; the text says which to change.
    """
    clients = len(cohort)
    if threat_model not in THREAT_MODELS:
        raise MisuseError(f"threat_model is {threat_model!r}; it must be one of {', '.join(THREAT_MODELS)}")
    if not 0 <= max_corrupt < clients:
        raise MisuseError(f"max_corrupt is {max_corrupt} of {clients} clients; it must be 0 to {clients - 1}")
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise MisuseError(f"clip_norm is {clip_norm}; it must be a positive finite number")
    if rounding not in ROUNDINGS:
        raise MisuseError(f"rounding is {rounding!r}; it must be one of {', '.join(ROUNDINGS)}")
    least = least_threshold(threat_model, clients, max_corrupt)
    threshold = least if threshold is None else threshold
    if min_survivors is None:
        min_survivors = max(threshold, max_corrupt + 2)
    if not least <= threshold <= min_survivors <= clients or min_survivors < max_corrupt + 2:
        raise MisuseError(
            f"{clients} clients of which {max_corrupt} may collude cannot aggregate under {threat_model!r} with "
            f"threshold {threshold} and min_survivors {min_survivors}: needed are threshold >= {least}, "
            f"min_survivors >= {max(threshold, max_corrupt + 2)} and as many clients; add clients or lower max_corrupt"
        )
    return Plan(
        protocol=protocol,
        run=run,
        round=round,
        attempt=attempt,
        threat_model=threat_model,
        max_corrupt=max_corrupt,
        cohort=tuple(sorted(cohort)),
        threshold=threshold,
        min_survivors=min_survivors,
        layout=layout,
        clip=struct.pack(">d", clip_norm),
        rounding=rounding,
        ring_bits=layout.ring_bits(clients),
        roster=roster,
        model=model,
    )
