"""What the server proposes for one attempt at a round. Its hash is bound into every key, seed and signature."""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated

from fedvlm_secure.encoding.codec import ROUNDINGS, Codec
from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.encoding.noisy import check_noisy, noise_shares, noise_tail, noise_variance
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest, pack
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY, check_fits
from fedvlm_secure.secagg.graph import neighbours, sparse
from fedvlm_secure.secagg.session import ClientId

HONEST_BUT_CURIOUS = "honest-but-curious"
MALICIOUS_SERVER = "malicious-server"
THREAT_MODELS = (HONEST_BUT_CURIOUS, MALICIOUS_SERVER)
RUN_BYTES = 16
NO_HISTORY = bytes(32)
LARGEST_COHORT = 4096

# Up to here the complete graph is used even where a sparse one would do: at this size and d = 100,000 a client spends
# 0.13 s of CPU on it and 0.04 s on a sparse one (benchmarks/cohorts.py), too little to give up certainty for 2^-40.
SPARSE_ABOVE = 100


def majority(clients: int, max_corrupt: int) -> int:
    """The least number above (n + c)/2: two such sets of clients share an honest one that did not equivocate."""
    return (clients + max_corrupt) // 2 + 1


@dataclass(frozen=True, slots=True)
class Shape:
    """How a cohort is wired: each client's number of neighbours, and the thresholds that are safe there."""

    degree: int
    least_threshold: int
    most_threshold: int


def shape(threat_model: str, clients: int, max_corrupt: int, min_survivors: int) -> Shape:
    """The one graph that a cohort may have.

    Against a malicious server it is complete, whatever the size: a graph that the server can grind is no graph.
    Otherwise, above :data:`SPARSE_ABOVE` clients, it is SecAgg+'s for up to n - min_survivors dropouts, if any is.
    """
    if threat_model == MALICIOUS_SERVER:
        return Shape(clients - 1, majority(clients, max_corrupt), min_survivors)
    found = sparse(clients, max_corrupt, clients - min_survivors) if clients > SPARSE_ABOVE else None
    if found is None:
        return Shape(clients - 1, max(2, max_corrupt + 1), min_survivors)
    return Shape(found.degree, found.threshold, found.threshold)


@dataclass(frozen=True)
class Plan:
    """One attempt at one round.

    Attributes:
        run: 16 random bytes that name the run.
        round, attempt: counted from 1; a new attempt at a round has fresh keys.
        max_corrupt: c, how many clients may collude with the server.
        degree: k, with how many neighbours each client shares masks and seeds; n - 1 is the complete graph.
        threshold: t, how many shares recover a secret.
        min_survivors: fewest clients in a sum; at least t and c + 2.
        clip: the clip norm, a big-endian IEEE 754 double.
        noise: the noise multiplier z, a big-endian double: ``min_survivors`` - max(c, 1) clients' noise has together
            the deviation z·clip; 0 is none.
        ring_bits: what the layout needs for this cohort; recomputed by every client.
        roster, model: hashes of the pinned roster and of the model all clients must have loaded.
        history: head of the transcripts' chain over all attempts of the run before this one
            (:attr:`~fedvlm_secure.secagg.transcript.Transcript.head`); zeros before the first. Clients keep it.
    """

    protocol: str
    run: Annotated[bytes, RUN_BYTES]
    round: int
    attempt: int
    threat_model: str
    max_corrupt: int
    cohort: tuple[ClientId, ...]
    degree: int
    threshold: int
    min_survivors: int
    layout: VectorLayout
    clip: Annotated[bytes, 8]
    noise: Annotated[bytes, 8]
    rounding: str
    ring_bits: int
    roster: Digest
    model: Digest
    history: Digest = NO_HISTORY
    spec: str = SPEC_VERSION

    @cached_property
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

    @cached_property
    def codec(self) -> Codec:
        """The encoding of this round.

        The rotation's signs follow from the model and the round, not from the run's random name: they hide nothing,
        and two runs of the same settings then round alike.
        """
        clip_norm: float = struct.unpack(">d", self.clip)[0]
        seed = digest("rotation", self.model, self.round)
        return Codec(self.layout, clip_norm, seed, self.rounding, self.noise_variance)

    @property
    def noise_multiplier(self) -> float:
        """z; 0 is no noise."""
        multiplier: float = struct.unpack(">d", self.noise)[0]
        return multiplier

    @cached_property
    def noise_variance(self) -> Fraction:
        """Of one client's share of the noise, in squared steps; raises :class:`MisuseError`."""
        shares = noise_shares(self.min_survivors, self.max_corrupt)
        return noise_variance(self.layout, self.noise_multiplier, shares)

    @property
    def noise_tail(self) -> int:
        """What headroom allows for all noise of the cohort together, in steps; raises :class:`MisuseError`."""
        return noise_tail(self.noise_variance, len(self.cohort))

    def check_fits(self) -> None:
        """The protocol can make these sums, noise included (P-2.5).

        Raises:
            MisuseError: it cannot; the text says what to change.
        """
        if self.noise_multiplier:
            check_noisy(self.protocol, self.layout, self.rounding)
        check_fits(self.protocol, self.layout, len(self.cohort), self.noise_tail)

    @property
    def complete(self) -> bool:
        """Whether every two clients are neighbours."""
        return self.degree == len(self.cohort) - 1

    def neighbours(self, client: ClientId) -> tuple[ClientId, ...]:
        """The clients that ``client`` shares masks and seeds with, sorted."""
        if self.complete:
            return tuple(name for name in self.cohort if name != client)
        return neighbours(self.cohort, self.degree, self.hash)[client]

    def point(self, client: ClientId) -> int:
        """The client's point in Shamir's sharing: its place in the cohort, from 1."""
        return self.cohort.index(client) + 1


def least_survivors(protocol: str, max_corrupt: int) -> int:
    """The fewest clients in a sum: two honest ones; three where every client reads it and knows its own part."""
    return max(max_corrupt + 2, 3 if protocol in SHARED_KEY else 2)


def default_survivors(protocol: str, threat_model: str, clients: int, max_corrupt: int, threshold: int | None) -> int:
    """``min_survivors`` where nobody has chosen it: as few as the thresholds allow, nine in ten in large cohorts."""
    if threshold is None:
        threshold = shape(threat_model, clients, max_corrupt, clients).least_threshold
    least = max(threshold, least_survivors(protocol, max_corrupt))
    if threat_model != MALICIOUS_SERVER and clients > SPARSE_ABOVE:
        return max(clients - clients // 10, least)
    return least


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
    max_corrupt: int | None = None,
    threshold: int | None = None,
    min_survivors: int | None = None,
    rounding: str = "stochastic",
    noise_multiplier: float = 0.0,
    history: bytes = NO_HISTORY,
) -> Plan:
    """A plan with everything that follows from the cohort filled in: thresholds and ring.

    Args:
        max_corrupt: None is 1, or 0 under a protocol whose key every client holds.
        noise_multiplier: z, the deviation of the noise that the sum is sure to have, in clip norms.

    Raises:
        MisuseError: the numbers do not make a safe round; the text says which to change.
    """
    clients = len(cohort)
    if max_corrupt is None:
        max_corrupt = 0 if protocol in SHARED_KEY else 1
    if threat_model not in THREAT_MODELS:
        raise MisuseError(f"threat_model is {threat_model!r}; it must be one of {', '.join(THREAT_MODELS)}")
    if not 0 <= max_corrupt < clients:
        raise MisuseError(f"max_corrupt is {max_corrupt} of {clients} clients; it must be 0 to {clients - 1}")
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise MisuseError(f"clip_norm is {clip_norm}; it must be a positive finite number")
    if rounding not in ROUNDINGS:
        raise MisuseError(f"rounding is {rounding!r}; it must be one of {', '.join(ROUNDINGS)}")
    if noise_multiplier:
        check_noisy(protocol, layout, rounding)
    check_fits(protocol, layout, clients)
    if min_survivors is None:
        min_survivors = default_survivors(protocol, threat_model, clients, max_corrupt, threshold)
    wiring = shape(threat_model, clients, max_corrupt, min_survivors)
    least, most = wiring.least_threshold, wiring.most_threshold
    threshold = least if threshold is None else threshold
    needed = max(threshold, least_survivors(protocol, max_corrupt))
    if not least <= threshold <= most <= clients or not needed <= min_survivors <= clients:
        raise MisuseError(
            f"{clients} clients of which {max_corrupt} may collude cannot aggregate under {threat_model!r} with "
            f"threshold {threshold} and min_survivors {min_survivors}: needed are threshold >= {least}"
            f"{'' if wiring.degree == clients - 1 else f' and no more, for {wiring.degree} neighbours'}, "
            f"min_survivors >= {needed} and as many clients; add clients or lower max_corrupt"
        )
    variance = noise_variance(layout, noise_multiplier, noise_shares(min_survivors, max_corrupt))
    tail = noise_tail(variance, clients)
    check_fits(protocol, layout, clients, tail)
    return Plan(
        protocol=protocol,
        run=run,
        round=round,
        attempt=attempt,
        threat_model=threat_model,
        max_corrupt=max_corrupt,
        cohort=tuple(sorted(cohort)),
        degree=wiring.degree,
        threshold=threshold,
        min_survivors=min_survivors,
        layout=layout,
        clip=struct.pack(">d", clip_norm),
        noise=struct.pack(">d", noise_multiplier),
        rounding=rounding,
        ring_bits=layout.ring_bits(clients, tail),
        roster=roster,
        model=model,
        history=history,
    )
