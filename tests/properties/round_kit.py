"""Rounds drawn at random, an independent statement of how each has to end, and what may be said until then."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from secagg_kit import PHASES, Federation

from fedvlm_secure.encoding.codec import Codec, Encoded, Update
from fedvlm_secure.errors import RoundAbortedError
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.secagg.envelope import Envelope, split
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.client import KeysSent, PairwiseClient
from fedvlm_secure.secagg.plan import MALICIOUS_SERVER, THREAT_MODELS
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import Memory, RingSum

T = TypeVar("T")
Silent = Mapping[str, str]  # client to the phase from which it answers nothing


@st.composite
def federations(draw: st.DrawFn, most_clients: int = 12) -> Federation:
    """Any cohort, threat model, thresholds that are safe there, layout, weights and values."""
    clients = draw(st.integers(3, most_clients))
    threat_model = draw(st.sampled_from(THREAT_MODELS))
    corrupt = draw(st.integers(0, 1) | st.integers(0, clients - 2))
    least = (clients + corrupt) // 2 + 1 if threat_model == MALICIOUS_SERVER else max(2, corrupt + 1)
    threshold = draw(st.just(least) | st.integers(least, clients))
    fewest = max(threshold, corrupt + 2, 3)
    federation = Federation(
        clients=clients,
        dimension=draw(st.sampled_from([0, 1, 5, 33])),
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        max_corrupt=corrupt,
        threat_model=threat_model,
        threshold=threshold,
        min_survivors=draw(st.just(fewest) | st.integers(fewest, clients)),
        value_bits=draw(st.sampled_from([2, 8, 20, 24])),
        weight_max=draw(st.sampled_from([1, 50, 4096, 1 << 20])),
    )
    federation.updates = {name: draw(updates(federation)) for name in federation.names}
    return federation


@st.composite
def updates(draw: st.DrawFn, federation: Federation) -> Update:
    """Any finite values, from nothing to far beyond the clip norm, and any weight."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = random.standard_normal(federation.dimension) * draw(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 30.0, 1e30]))
    if draw(st.booleans()):  # all in one coordinate, or in all alike
        values[1:] = draw(st.sampled_from([0.0, 1.0]))
    weight = draw(st.sampled_from([1, federation.weight_max]) | st.integers(1, federation.weight_max))
    return Update(values.astype(draw(st.sampled_from([np.float32, np.float64]))), {"weight": weight})


@st.composite
def silences(draw: st.DrawFn, federation: Federation) -> Silent:
    """As many fall silent as the round can bear, or any number; each in any phase."""
    clients = len(federation.names)
    count = draw(st.integers(0, clients - federation.plan.min_survivors) | st.integers(0, clients))
    gone = draw(st.permutations(federation.names))[:count]
    return {name: draw(st.sampled_from(PHASES)) for name in gone}


def how_it_ends(federation: Federation, silent: Silent) -> tuple[str | None, set[str]]:
    """The clause that ends the round, or None; and the survivors, as far as there are any.

    Written from the specification (P-3.3, P-5.1, P-5.4, P-7.3, P-7.6 and section 5), not from the code.
    """
    plan, cohort = federation.plan, set(federation.names)
    n, c, t = len(cohort), plan.max_corrupt, plan.threshold
    around = {name: {name, *plan.neighbours(name)} for name in cohort}
    complete = all(circle == cohort for circle in around.values())
    peers = plan.min_survivors if complete else t

    def answering(asked: set[str], phase: str) -> set[str]:
        return {name for name in asked if name not in silent or PHASES.index(phase) < PHASES.index(silent[name])}

    def with_peers(present: set[str]) -> set[str]:
        return {name for name in present if len(around[name] & present) >= peers}

    published = answering(cohort, m.KEYS)
    if len(published) < plan.min_survivors:
        return "P-3.3", set()
    dealt = answering(with_peers(published), m.SHARES)
    if len(dealt) < plan.min_survivors:
        return "P-5.1", set()
    survivors = answering(with_peers(dealt), m.MASKED_INPUT)
    if len(survivors) < plan.min_survivors or any(len(around[owner] & survivors) < t for owner in dealt):
        return "P-5.4", set()
    consenting = answering(survivors, m.CONSISTENCY)
    if len(consenting) <= (n + c) / 2 if plan.threat_model == MALICIOUS_SERVER else len(consenting) < t:
        return "P-7.3", survivors
    revealing = answering(consenting, m.UNMASK)
    if any(len(around[owner] & revealing) < t for owner in dealt):
        return "P-7.6", survivors
    return None, survivors


@dataclass
class Attempt:
    """One attempt, and all that was said in it.

    Attributes:
        encoded: the integers that each client uploaded, under its masks.
        replies: every reply, by phase and client.
        seeds: what the clients drew, and nobody else may ever read.
        clause: what ended the attempt, or None.
        total: the sum, if there is one.
        memories: what each client remembers afterwards.
    """

    encoded: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    replies: dict[str, dict[str, bytes]] = field(default_factory=lambda: {phase: {} for phase in PHASES})
    seeds: set[bytes] = field(default_factory=set)
    clause: str | None = None
    total: RingSum | None = None
    memories: dict[str, Memory] = field(default_factory=dict)

    def bodies(self, phase: str, form: type[T]) -> dict[str, T]:
        """The bodies of one phase's replies, by client."""
        return {name: unpack(form, unpack(Envelope, split(it)[0]).body) for name, it in self.replies[phase].items()}


@dataclass
class Overheard:
    """A client whose replies and seeds are written down."""

    client: PairwiseClient
    attempt: Attempt
    name: str

    def reply(self, request: bytes) -> bytes:
        """The client's reply."""
        reply = self.client.reply(request)
        phase = unpack(Envelope, split(reply)[0]).phase
        self.attempt.replies[phase][self.name] = reply
        if isinstance(self.client._state, KeysSent):
            state = self.client._state
            self.attempt.seeds |= {seed.reveal() for seed in (state.self_seed, state.mask_seed, state.share_seed)}
        return reply


def play(federation: Federation, silent: Silent) -> Attempt:
    """Play one attempt in which the silent fall silent."""
    attempt, encode = Attempt(), Codec.encode
    clients = {name: federation.client(name) for name in federation.names}
    names = {id(update): name for name, update in federation.updates.items()}

    def encode_and_note(codec: Codec, update: Update) -> Encoded:
        encoded = encode(codec, update)
        attempt.encoded[names[id(update)]] = encoded.integers.copy()
        return encoded

    def alive(name: str, phase: str) -> bool:
        return name not in silent or PHASES.index(phase) < PHASES.index(silent[name])

    overheard = {name: Overheard(client, attempt, name) for name, client in clients.items()}
    with mock.patch.object(Codec, "encode", encode_and_note):
        try:
            attempt.total = run_round(federation.server(), overheard, alive)
        except RoundAbortedError as error:
            attempt.clause = error.clause
    attempt.memories = {name: client.memory for name, client in clients.items()}
    return attempt


def check_sum(federation: Federation, attempt: Attempt, survivors: set[str]) -> None:
    """Integer equality with what exactly the survivors encoded."""
    assert attempt.total is not None
    assert attempt.total.survivors == tuple(sorted(survivors))
    assert attempt.total.dropped == tuple(sorted(set(federation.names) - survivors))
    np.testing.assert_array_equal(attempt.total.total, sum(attempt.encoded[name] for name in survivors))


def check_what_was_revealed(federation: Federation, attempt: Attempt, survivors: set[str]) -> None:
    """No seed in clear, no share before `unmask`, and then shares of one kind for each client, by the signed list."""
    said = b"".join(reply for replies in attempt.replies.values() for reply in replies.values())
    assert not any(seed in said for seed in attempt.seeds)
    revealed = attempt.bodies(m.UNMASK, m.Revealed).values()
    assert not revealed or attempt.clause in (None, "P-7.6")
    of_self = Counter(owner for reply in revealed for owner in reply.self_mask)
    of_pairs = Counter(owner for reply in revealed for owner in reply.mask_seed)
    assert of_self.keys() <= survivors
    assert not of_pairs.keys() & survivors
    if attempt.clause == "P-7.6":
        dealt = attempt.replies[m.SHARES]
        fewest = min((of_self if owner in survivors else of_pairs)[owner] for owner in dealt)
        assert fewest < federation.plan.threshold, "the seeds could have been recovered, all of them"
