"""What the audits of our own protocols share: a federation whose server may lie, and clients that are watched."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.target import (
    AGREEMENT,
    HONEST,
    INPUT,
    KEYS,
    PROPOSAL,
    UNMASK,
    BrokenRoundError,
    Cohort,
    Exposed,
    Lacking,
    Malformed,
    Mean,
    Proposal,
    RefusedError,
    Said,
    TooLittleError,
    Upload,
    Withheld,
)
from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import decode, encode
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY
from fedvlm_secure.secagg.envelope import Envelope, join, seal, seal_packed, split
from fedvlm_secure.secagg.plan import RUN_BYTES, Plan, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import Roster, simulated
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import SERVER, Memory, RingSum

METRIC = "correct"
METRIC_BOUND = 1 << 16
MODEL = b"the model"

# Our phases as steps. What a plan is refused for (P-2) is refused at the proposal, whatever phase carries the plan.
STEP_OF = {
    "keys": PROPOSAL,
    "shares": KEYS,
    "masked-input": INPUT,
    "input": INPUT,
    "consistency": AGREEMENT,
    "sum": AGREEMENT,
    "unmask": UNMASK,
}
_CLAUSE = re.compile(r"[A-Z]-\d+\.\d+")


def clip_norm(cohort: Cohort) -> float:
    """A tenth above the largest norm: nothing is clipped."""
    return 1.1 * max(float(np.linalg.norm(update.astype(np.float64))) for update in cohort.updates.values())


@dataclass
class Federation:
    """The members, their server, and one plan, which may be a lie.

    Attributes:
        number: (round, attempt).
        roster: the members; nobody that the server has made up.
        given: the plan itself, where one is to be replayed.
    """

    protocol: str
    cohort: Cohort
    proposal: Proposal = HONEST
    number: tuple[int, int] = (1, 1)
    memories: Mapping[str, Memory] = field(default_factory=dict)
    carried: bytes = b""
    run: bytes = field(default_factory=lambda: entropy.random_bytes(RUN_BYTES))
    server_identity: Identity = field(default_factory=Identity.generate)
    identities: dict[str, Identity] = field(default_factory=dict)
    roster: Roster = field(init=False)
    given: Plan | None = None

    def __post_init__(self) -> None:
        for name in self.cohort.names:
            self.identities.setdefault(name, Identity.generate())
        members = {name: key for name, key in self.identities.items() if name not in self.proposal.sybils}
        self.roster = simulated(self.server_identity, members)

    def following(self, **changes: Any) -> "Federation":
        """The same members once more."""
        next_one = replace(self, **changes)
        next_one.roster = self.roster
        return next_one

    @property
    def max_corrupt(self) -> int:
        """One client, but where every client holds the key."""
        return 0 if self.protocol in SHARED_KEY else 1

    @cached_property
    def layout(self) -> VectorLayout:
        """The update, the weight, and the metric."""
        counters = (Counter("weight", self.cohort.weight_max), Counter(METRIC, METRIC_BOUND))
        return VectorLayout(self.cohort.dimension, counters, 20, self.cohort.weight_max)

    @cached_property
    def plan(self) -> Plan:
        """What the server proposes, lies included."""
        if self.given is not None:
            return self.given
        honest = propose(
            run=self.run,
            round=self.number[0],
            attempt=self.number[1],
            cohort=self.cohort.names,
            layout=self.layout,
            clip_norm=clip_norm(self.cohort),
            roster=self.roster.hash,
            model=digest("audit-model", self.model_of(None)),
            protocol=self.protocol,
            max_corrupt=self.max_corrupt,
        )
        lies: dict[str, Any] = {}
        if self.proposal.threshold is not None:
            lies |= {"threshold": self.proposal.threshold}
        if self.proposal.modulus_bits is not None:
            lies |= {"ring_bits": self.proposal.modulus_bits}
        return replace(honest, **lies)

    def model_of(self, name: str | None) -> bytes:
        """The model that a client was shown; that of most of them for None, which is the one the plan names."""
        shown = list(self.proposal.shown.values()) or [MODEL]
        return max(shown, key=shown.count) if name is None else self.proposal.shown.get(name, MODEL)

    def update(self, name: str) -> Update:
        """What a client contributes."""
        counters = {"weight": self.cohort.weights[name], METRIC: self.cohort.metrics.get(name, 0)}
        return Update(self.cohort.updates[name], counters)

    def party(self, name: str) -> Party:
        """A client as it enters the round; one that the server plays has the server's key."""
        signs = self.server_identity if name in self.proposal.impersonated else self.identities[name]
        policy = Policy(max_corrupt=self.max_corrupt, protocols=(self.protocol,))
        model = digest("audit-model", self.model_of(name))
        return Party(
            name, signs, self.roster, policy, model, following=lambda mean: digest("next", mean.mean.tobytes())
        )

    def says(self, phase: str, client: str, body: object, chunks: Iterable[bytes] = ()) -> bytes:
        """A message under the server's true signature, whatever it says."""
        return join([seal(self.server_identity, phase, self.plan.hash, SERVER, client, body), *chunks])

    def identity_of(self, name: str) -> Identity:
        """A client's signing key."""
        return self.identities[name]


class Watched:
    """A client session whose messages are kept, and whose refusals are translated."""

    def __init__(self, session: ClientSessionBase, name: str) -> None:
        self.session, self.name = session, name
        self.exchanges: list[tuple[bytes, bytes]] = []
        self.secrets: dict[str, bytes] = {}

    @property
    def _state(self) -> Any:
        return self.session._state  # noqa: SLF001  # the attacker's colluders, and secrets to look for

    def reply(self, request: bytes) -> bytes:
        """See :class:`fedvlm_secure.secagg.session.ClientSession`; raises :class:`RefusedError`."""
        with refusals(self.name):
            reply = self.session.reply(request)
        self.exchanges.append((request, reply))
        for each in fields(self._state):
            value = getattr(self._state, each.name)
            if isinstance(value, Secret):
                self.secrets[each.name] = value.reveal()
        return reply

    def copy(self, party: Party, update: Update) -> "Watched":
        """The same client, for a move that shall leave no trace on this one."""
        return Watched(type(self.session).from_bytes(self.session.to_bytes(), party, update), self.name)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """Meanwhile errors of one client are refusals."""
    try:
        yield
    except ProtocolError as error:
        step = PROPOSAL if error.clause.startswith("P-2.") else STEP_OF.get(error.phase, error.phase)
        raise RefusedError(name, step, error.detail, error.clause) from error
    except MisuseError as error:
        raise RefusedError(name, PROPOSAL, str(error), "/".join(_CLAUSE.findall(str(error)))) from error


class OurAttempt(Lacking):
    """One attempt under any of our protocols, with what does not depend on which."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.server: Any = None
        proposal, names = federation.proposal, federation.cohort.names
        played = {*proposal.impersonated, *proposal.sybils}
        self.clients: dict[str, Watched] = {}
        for name in sorted(names, key=lambda name: (name in played, name)):  # a refusal shall be a true client's
            with refusals(name):
                self.clients[name] = Watched(self.new_session(name), name)

    def new_session(self, name: str) -> ClientSessionBase:
        """A client's session with what it remembers."""
        federation = self.federation
        kind = lookup(federation.protocol).client
        return kind(federation.party(name), federation.update(name), federation.memories.get(name))

    @property
    def plan(self) -> Plan:
        """The plan of the attempt."""
        return self.federation.plan

    def finish(self, silent: Mapping[str, str] | None = None) -> Mean:
        """See :class:`Attempt`."""
        federation, leaves = self.federation, silent or {}
        entry = lookup(federation.protocol)
        self.server = entry.server(self.plan, federation.server_identity, federation.roster, federation.carried)

        def alive(name: str, phase: str) -> bool:
            return name not in leaves or entry.phases.index(phase) < entry.phases.index(leaves[name])

        sessions: Any = self.clients
        try:
            total: Any = run_round(self.server, sessions, alive)
        except ProtocolError as error:
            raise BrokenRoundError(f"{error.clause}: {error.detail}") from error
        if not isinstance(total, RingSum):
            total = next(each.session.sum for each in self.clients.values() if each.session.sum is not None)
        decoded = self.plan.codec.decode(total.total)
        return Mean(decoded.mean, decoded.counters["weight"], total.survivors)

    def again(self, new: bool, trained: bool) -> "OurAttempt":
        """See :class:`Attempt`."""
        before, cohort = self.federation, self.federation.cohort
        if trained:
            cohort = replace(cohort, updates={name: update[::-1].copy() for name, update in cohort.updates.items()})
        memories = {name: client.session.memory for name, client in self.clients.items()}
        changes: dict[str, Any] = {"cohort": cohort, "memories": memories, "carried": self.server.carried}
        changes |= {"number": (before.number[0], before.number[1] + 1)} if new else {"given": before.plan}
        return type(self)(before.following(**changes))

    def upload(self, client: str) -> Upload:
        """See :class:`Attempt`; for protocols that send words of the ring."""
        reply = self.reply_in(client, INPUT)
        payload = b"".join(split(reply)[1:])
        ring, size = self.plan.ring, self.plan.layout.update
        encoded = ring.from_signed(self.plan.codec.encode(self.federation.update(client)).integers)
        words, own = (self.residues(each)[:size] for each in (ring.unpack(payload), encoded))
        return Upload(len(reply), payload, words, own, 1 << self.plan.ring_bits, tolerance=1)

    def residues(self, words: Words) -> NDArray[np.int64]:
        """Ring words as numbers from 0; above the ring's bits a word may hold anything."""
        return (words.astype(np.uint64) & np.uint64((1 << self.plan.ring_bits) - 1)).astype(np.int64)

    def reply_in(self, client: str, step: str) -> bytes:
        """What a client has answered at a step."""
        for _, reply in self.clients[client].exchanges:
            if STEP_OF[unpack(Envelope, split(reply)[0]).phase] == step:
                return reply
        raise TooLittleError(f"{client} has said nothing at {step}")

    def said(self, client: str) -> list[Said]:
        """See :class:`Attempt`."""
        found: list[Said] = []
        for _, reply in self.clients[client].exchanges:
            envelope, *chunks = split(reply)
            opened = unpack(Envelope, envelope)
            found += _leaves(opened.phase, decode(opened.body))
            if STEP_OF[opened.phase] == INPUT:
                found += self.words_said(b"".join(chunks))
            else:
                found += [Said(f"{opened.phase} chunk", bytes(chunk)) for chunk in chunks]
        return found

    def words_said(self, payload: bytes) -> list[Said]:
        """What the vector says beside the update: the words of its counters and checks."""
        tail = self.residues(self.plan.ring.unpack(payload))[self.plan.layout.update :]
        return [Said("word of the upload", int(word)) for word in tail]

    def secrets(self, client: str) -> Mapping[str, bytes]:
        """See :class:`Attempt`."""
        return self.clients[client].secrets or self._no("secrets")

    def at_rest(self, client: str) -> bytes:
        """See :class:`Attempt`."""
        return self.clients[client].session.to_bytes()

    def server_view(self) -> bytes:
        """See :class:`Attempt`."""
        said = b"".join(reply for client in self.clients.values() for _, reply in client.exchanges)
        return said + (b"" if self.server is None else self.server.to_bytes())

    def malformed_at(self, step: str, name: str, request: bytes) -> Iterator[Malformed]:
        """The honest ``request`` in forms that it must not have, each for a copy of the client."""
        for what, message in _misshapen(self.federation, request):
            copy = self.clients[name].copy(self.federation.party(name), self.federation.update(name))
            yield Malformed(what, step, lambda copy=copy, message=message: copy.reply(message))  # type: ignore[misc]

    def exposed(self, integers: Any) -> Exposed:
        """One client's input from its integers alone."""
        decoded = self.plan.codec.decode(integers)
        return Exposed(decoded.mean, decoded.counters["weight"])


def _leaves(where: str, value: Any) -> list[Said]:
    if isinstance(value, dict):
        return [said for key, item in value.items() for said in _leaves(f"{where}.{key}", item)]
    if isinstance(value, list):
        return [said for item in value for said in _leaves(where, item)]
    return [] if value is None else [Said(where, value)]


def _misshapen(federation: Federation, request: bytes) -> Iterator[tuple[str, bytes]]:
    """Broken frames, which need no signature, and bodies of another form under the server's true one."""
    yield "nothing", b""
    yield "cut by one byte", request[:-1]
    yield "one byte more", request + b"\0"
    yield "a frame that claims 4 GiB", b"\xff\xff\xff\xff" + request[4:]
    envelope, *chunks = split(request)
    opened = unpack(Envelope, envelope)
    body: dict[str, Any] = decode(opened.body)
    first = next(iter(body))

    def resealed(packed: bytes) -> bytes:
        identity, plan = federation.server_identity, opened.plan
        return join([seal_packed(identity, opened.phase, plan, SERVER, opened.recipient, packed), *chunks])

    yield "a field too many", resealed(encode(body | {"and": 1}))
    yield "a field too few", resealed(encode({name: value for name, value in body.items() if name != first}))
    yield "a field of another type", resealed(encode(body | {first: True}))
    yield "arrays nested 100,000 deep", resealed(b"\x81" * 100_000 + b"\x80")
    yield "two million values", resealed(encode([None] * (2 << 20)))
    yield "an encoding that is not canonical", resealed(b"\xb8" + bytes([len(body)]) + opened.body[1:])


class PlainAttempt(OurAttempt):
    """No protection: one phase, and the upload is the input."""

    lacks: Mapping[str, str] = {
        "agree": "there are no masks, hence nothing to agree on before they are removed",
        "keys": "clients have no keys but those of the roster, which every upload is signed with",
        "unmask": "there are no masks, and no shares of seeds to ask for",
        "secrets": "clients hold no secret but their signing keys",
        "read_by_member": "nothing is encrypted",
        "decryption": "nothing is encrypted",
    }

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """See :class:`Attempt`."""
        if self.federation.proposal.impersonated:
            self._no("keys")
        if step == PROPOSAL or any(client.exchanges for client in self.clients.values()):
            return
        for name, client in self.clients.items():
            client.reply(self.federation.says("input", name, self.plan))

    def recover(self, client: str) -> Exposed:
        """See :class:`Attempt`."""
        words = self.plan.ring.unpack(b"".join(split(self.reply_in(client, INPUT))[1:]))
        return self.exposed(self.plan.ring.to_signed(words))

    def malformed(self) -> Iterable[Malformed]:
        """See :class:`Attempt`."""
        name = next(iter(self.clients))
        return self.malformed_at(PROPOSAL, name, self.federation.says("input", name, self.plan))
