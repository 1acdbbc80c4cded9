"""The pairwise protocol as SPEC.md says it: slow, short, and independent of the package beside it.

Read it from top to bottom with SPEC.md open; comments name its clauses. Section 2 is reference_primitives.py, and the
server is reference_server.py. A `Client` answers requests, a `Server` makes them; neither does I/O; all randomness but
HPKE's comes from one function.
Not for production: it erases nothing, persists nothing and does not limit sizes.
"""
# ruff: noqa: INP001, D102, D103, TID251

import hashlib
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, comb, inf, isqrt, sqrt

from reference_primitives import V, cbor, derive, digest, keypair, merkle_root, path_root  # isort: skip
from reference_primitives import seal, shares, sign, signed, stream, uncbor, unseal  # isort: skip

PHASES = ("keys", "shares", "masked-input", "consistency", "unmask")
CHUNK = 2**15
CHECKS = [1, 0, 0]


class Refused(Exception):  # noqa: N818
    """Somebody broke a clause of SPEC.md."""

    def __init__(self, clause: str, party: str, why: str):
        super().__init__(f"{clause}, {party}: {why}")
        self.clause, self.party = clause, party


def require(held: bool, clause: str, party: str, why: str) -> None:
    if not held:
        raise Refused(clause, party, why)


@contextmanager
def blame(clause: str, party: str):
    """What has no value inside is this party's fault."""
    try:
        yield
    except ValueError as error:
        raise Refused(clause, party, str(error)) from None


# ---- Section 3: messages ---------------------------------------------------------------------------------------------

# A type; a length of bytes; a list of such; a map {str: ...} of any names; a map of exactly these fields.
ENVELOPE = {"phase": str, "plan": 32, "sender": str, "recipient": str, "body": bytes, "signature": 64, "spec": str}
LAYOUT = {"update": int, "counters": [{"name": str, "bound": int}], "value_bits": int, "weight_max": int}
NUMBERS = ("round", "attempt", "max_corrupt", "degree", "threshold", "min_survivors", "ring_bits")
TEXTS = ("protocol", "threat_model", "rounding", "spec")
PLAN = {"run": 16, "cohort": [str], "layout": LAYOUT, "clip": 8, "noise": 8, "roster": 32, "model": 32, "history": 32}
REQUESTS = {
    "keys": PLAN | dict.fromkeys(NUMBERS, int) | dict.fromkeys(TEXTS, str),
    "shares": {"keys": {str: bytes}, "others": {str: 32}},
    "masked-input": {"parcels": {str: {"parcel_list": bytes, "parcel": bytes, "path": bytes}}},
    "consistency": {"survivors": [str]},
    "unmask": {"dropped": [str], "consents": {str: 64}},
}
REPLIES = {
    "keys": {"share_key": 1216, "mask_key": 1216, "self_commitment": 32},
    "shares": {"key_root": 32, "parcels": 32},
    "masked-input": {"digests": [32]},
    "consistency": {"signature": 64},
    "unmask": {"self_mask": {str: 33}, "mask_seed": {str: 33}},
}


def fits(value, shape) -> bool:
    if isinstance(shape, type):
        return type(value) is shape
    if isinstance(shape, int):
        return type(value) is bytes and len(value) == shape
    if isinstance(shape, list):
        return type(value) is list and all(fits(item, shape[0]) for item in value)
    if type(value) is not dict or (str not in shape and value.keys() != shape.keys()):
        return False
    return all(fits(item, shape[str if str in shape else key]) for key, item in value.items())


def frames(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def unframe(message: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(message):
        end = at + 4 + int.from_bytes(message[at : at + 4])
        require(at + 4 <= len(message) and end <= len(message), "P-1.1", "network", "a frame is cut short")
        parts.append(message[at + 4 : end])
        at = end
    require(bool(parts), "P-1.1", "network", "no frame")
    return parts


def covered_by_signature(phase: str, plan: bytes, sender: str, recipient: str, body: bytes) -> bytes:
    return cbor([phase, plan, sender, recipient, hashlib.sha256(body).digest()])


def envelope(key: bytes, phase: str, plan: bytes, sender: str, recipient: str, body: dict) -> bytes:
    signature = sign(key, "envelope", covered_by_signature(phase, plan, sender, recipient, cbor(body)))
    return cbor(dict(zip(ENVELOPE, (phase, plan, sender, recipient, cbor(body), signature, V), strict=True)))


def opened(part, phase, plan, sender, recipient, key, shape, carrier="network") -> dict:
    """The body of an envelope, checked against P-1 in the SPEC's order; `plan` is None where the Plan itself comes."""
    with blame("P-1.1", carrier):
        found = uncbor(part)
    require(fits(found, ENVELOPE) and found["spec"] == V, "P-1.1", carrier, "no envelope of this version")
    require((found["sender"], found["recipient"]) == (sender, recipient), "P-1.5", carrier, "other names")
    covered = covered_by_signature(found["phase"], found["plan"], found["sender"], found["recipient"], found["body"])
    require(signed(key, "envelope", covered, found["signature"]), "P-1.2", carrier, "not the sender's signature")
    require(found["plan"] == (plan or digest("plan", found["body"])), "P-1.3", carrier, "another plan")
    require(found["phase"] == phase, "P-1.4", carrier, "another phase")
    with blame("P-1.6", sender):
        body = uncbor(found["body"])
    require(fits(body, shape), "P-1.6", sender, "not the fields, types and lengths of this phase")
    return body


# ---- Sections 2, 3 and 5: what follows from a plan -------------------------------------------------------------------


def largest_sum(layout: dict, n: int, tail: int) -> int:
    update = n * (layout["weight_max"] * 2 ** (layout["value_bits"] - 1) + 1) + tail
    return max([update, *(n * it["bound"] for it in layout["counters"])])


def ring_bits(layout: dict, n: int, tail: int = 0) -> int:
    return 8 * -(-(largest_sum(layout, n, tail).bit_length() + 1) // 8)


def noise_tail(body: dict) -> int | None:
    """Section 5: beyond what a sum of everybody's noise does not go; None for noise that P-2.5 forbids."""
    (z,), layout, n = struct.unpack(">d", body["noise"]), body["layout"], len(body["cohort"])
    if z == 0:
        return 0
    fit = 0 < z < inf and body["protocol"] in ("pairwise", "bfv") and body["rounding"] == "stochastic"
    if not fit or layout["weight_max"] != 1 or len(layout["counters"]) != 1:
        return None
    if layout["update"] == 0:
        return 0
    clip = Fraction(4 * layout["update"] * 4 ** (layout["value_bits"] - 1), 289)  # squared, in steps
    variance = Fraction(z) ** 2 * clip / (body["min_survivors"] - max(body["max_corrupt"], 1))
    return isqrt(ceil(100 * n * variance)) if Fraction(1, 2**80) <= variance <= 2**80 else None


def tail(n: int, m: int, k: int, low: int) -> Fraction:
    """P[HG(n, m, k) >= low]."""
    return Fraction(sum(comb(m, i) * comb(n - m, k - i) for i in range(low, min(m, k) + 1)), comb(n, k))


def sparse_graph(n: int, c: int, d: int) -> tuple[int, int] | None:
    """(k, t) of section 5, or None if only the complete graph will do."""
    for k in range(2, n - 1, 2):
        if n * (n - k - 1) * tail(n, c + d, k, k) <= Fraction(2, 2**41):
            t = next(t for t in range(2, k + 2) if n * tail(n, c, k, t) <= Fraction(1, 2**41))
            if n * tail(n, d, k, k - t + 1) <= Fraction(1, 2**20):
                return k, t
    return None


class Plan:
    """A plan's body, and what follows from it for everyone."""

    def __init__(self, body: dict):
        self.body, self.hash = body, digest("plan", cbor(body))
        self.cohort, self.layout, self.bits = body["cohort"], body["layout"], body["ring_bits"]
        self.t, self.min_survivors = body["threshold"], body["min_survivors"]
        self.size = self.layout["update"] + len(self.layout["counters"]) + len(CHECKS)
        self.complete = body["degree"] == len(self.cohort) - 1
        self.malicious = body["threat_model"] == "malicious-server"
        self.majority = (len(self.cohort) + body["max_corrupt"]) // 2 + 1
        self.quorum = self.majority if self.malicious else self.t  # P-7.3
        self.least_around = self.min_survivors if self.complete else self.t  # P-3.3, P-5.1: a client and its neighbours
        self.ring = sorted(self.cohort, key=lambda name: digest("graph-order", self.hash, name))

    def layout_holds(self) -> bool:
        counters, weight_max = self.layout["counters"], self.layout["weight_max"]
        named = len({counter["name"] for counter in counters}) == len(counters) > 0
        sized = self.layout["update"] <= 2**31 and 2 <= self.layout["value_bits"] <= 24 and 1 <= weight_max < 2**32
        return named and sized and counters[0] == {"name": "weight", "bound": weight_max}

    def graph_holds(self) -> bool:
        n, c = len(self.cohort), self.body["max_corrupt"]
        if not max(self.t, c + 2) <= self.min_survivors <= n <= 4096:
            return False
        if self.malicious:
            return self.complete and self.t >= self.majority
        sparse = sparse_graph(n, c, n - self.min_survivors) if n > 100 else None
        complete = self.complete and self.t >= max(2, c + 1)
        holds = (self.body["degree"], self.t) == sparse if sparse else complete
        return holds and self.body["threat_model"] == "honest-but-curious"

    def ring_holds(self) -> bool:
        levels, (clip,) = 2 ** (self.layout["value_bits"] - 1), struct.unpack(">d", self.body["clip"])
        usable = 0 < 8.5 * clip / sqrt(self.layout["update"] or 1) / levels < inf
        usable = usable and self.body["rounding"] in ("stochastic", "nearest")
        tail = noise_tail(self.body)
        return usable and tail is not None and self.bits == ring_bits(self.layout, len(self.cohort), tail) <= 64

    def noise_reaches(self, least: float) -> bool:
        """P-2.6."""
        return struct.unpack(">d", self.body["noise"])[0] >= least

    def around(self, name: str) -> set[str]:
        """A client and its neighbours."""
        at, reach, n = self.ring.index(name), self.body["degree"] // 2, len(self.cohort)
        return set(self.cohort if self.complete else (self.ring[i % n] for i in range(at - reach, at + reach + 1)))

    def recipients(self, u: str, listed) -> list[str]:
        """P-4.3: to whom u deals, in the order of its parcels."""
        return sorted(self.around(u) & set(listed) - {u})

    def places(self, names) -> dict[str, int]:
        return {name: self.cohort.index(name) + 1 for name in names}

    def key_root(self, digests: dict[str, bytes]) -> bytes:
        return digest("key-root", self.hash, sorted(digests), [digests[name] for name in sorted(digests)])

    def checks(self, u: str, v: str, pair: tuple[bytes, bytes]) -> bytes:
        """Of v's shares of u's self seed and mask seed."""
        both = zip(("self-mask", "mask-seed"), pair, strict=True)
        return b"".join(digest("share-check", self.hash, seed, u, v, share) for seed, share in both)

    def pair_seed(self, mask_seed: bytes, u: str, v: str) -> bytes:
        return derive(mask_seed, "pair-seed", self.hash, u, v)

    def pair_mask(self, pair_seed: bytes, u: str, v: str) -> list[int]:
        """As u applies it: the earlier name adds, the later subtracts (P-5.2)."""
        words = stream(derive(pair_seed, "pair-mask", self.hash, *sorted((u, v))), self.size, self.bits)
        return words if u < v else [-x for x in words]

    def self_mask(self, self_seed: bytes, u: str) -> list[int]:
        return stream(derive(self_seed, "self-mask", self.hash, u), self.size, self.bits)

    def chunks(self, vector: list[int]) -> list[bytes]:
        data = [(x % 2**self.bits).to_bytes(self.bits // 8, "little") for x in vector]
        return [b"".join(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]


def parcel_size(u: str, v: str) -> int:
    return 64 + 66 + 1136 + (32 + 1136 if u < v else 0)


def plus(vector: list[int], mask: list[int], sign: int = 1) -> list[int]:
    return [x + sign * y for x, y in zip(vector, mask, strict=True)]


# ---- The client ------------------------------------------------------------------------------------------------------


@dataclass
class Pinned:
    """What a client knows before a plan comes, and what it remembers of earlier ones."""

    keys: dict[str, bytes]  # Ed25519, of the roster's members by name, and the server's under `server`
    roster: bytes
    model: bytes
    floors: dict  # P-2.6: threat_model, max_corrupt, cohort, min_survivors, noise
    begun: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # P-2.7: (round, attempt) by run
    answered: list[list[int]] = field(default_factory=list)  # P-7.5: the updates that an answer covered


class Client:
    """Gives one reply to the request of each phase, or raises `Refused`; `vector` comes without the checks."""

    def __init__(self, name: str, key: bytes, pinned: Pinned, vector: list[int], rand=os.urandom):
        self.name, self.key, self.pinned, self.vector, self.rand = name, key, pinned, [*vector, *CHECKS], rand
        self.steps = [self.publish, self.deal, self.upload, self.consent, self.reveal]
        self.plan: Plan | None = None
        self.last = (b"", b"")

    def reply(self, request: bytes) -> bytes:
        if request == self.last[0]:
            return self.last[1]  # P-1.7
        require(bool(self.steps), "P-1.7", "server", "this attempt is over")
        parts, phase, server = unframe(request), PHASES[-len(self.steps)], self.pinned.keys["server"]
        require(len(parts) == 1, "P-1.1", "network", "a request has no chunks")
        plan_hash = self.plan and self.plan.hash
        body = opened(parts[0], phase, plan_hash, "server", self.name, server, REQUESTS[phase])
        if phase == "keys":
            self.accept(Plan(body))
        try:
            answer, *chunks = self.steps[0](body)
        except Refused:
            self.steps = []  # P-1: the session is closed
            raise
        self.steps = self.steps[1:]
        reply = frames(envelope(self.key, phase, self.plan.hash, self.name, "server", answer), *chunks)
        self.last = (request, reply)
        return reply

    def accept(self, plan: Plan) -> None:
        body, floors, members = plan.body, self.pinned.floors, self.pinned.keys.keys() - {"server"}
        require(plan.layout_holds(), "P-1.6", "server", "layout")
        require(body["spec"] == V, "P-2.1", "server", "another version")
        sound = plan.cohort == sorted(set(plan.cohort)) and self.name in plan.cohort and members >= set(plan.cohort)
        require(sound and body["roster"] == self.pinned.roster, "P-2.2", "server", "roster or cohort")
        require(body["model"] == self.pinned.model, "P-2.3", "server", "another model")
        require(plan.graph_holds(), "P-2.4", "server", "graph or thresholds")
        ours = len(self.vector) == plan.size
        require(ours and plan.ring_holds(), "P-2.5", "server", "ring, clip norm, rounding, or not this client's layout")
        strong = body["protocol"] == "pairwise" and (plan.malicious or floors["threat_model"] != "malicious-server")
        strong = strong and body["max_corrupt"] >= floors["max_corrupt"] and len(plan.cohort) >= floors["cohort"]
        strong = strong and plan.min_survivors >= floors["min_survivors"] and plan.noise_reaches(floors["noise"])
        require(strong, "P-2.6", "server", "below the floors")
        place = (body["round"], body["attempt"])
        require(min(place) > 0 and place > self.pinned.begun.get(body["run"], ()), "P-2.7", "server", "no later plan")
        self.plan, self.pinned.begun[body["run"]] = plan, place

    def publish(self, body: dict) -> list:
        self.self_seed, self.mask_seed, self.share_seed = self.rand(32), self.rand(32), self.rand(32)  # P-3.1
        self.share_key, share_public = keypair(derive(self.share_seed, "share-key", self.plan.hash, self.name))
        self.mask_key, mask_public = keypair(derive(self.mask_seed, "mask-key", self.plan.hash, self.name))
        commitment = derive(self.self_seed, "self-commitment", self.plan.hash, self.name)
        self.own = {"share_key": share_public, "mask_key": mask_public, "self_commitment": commitment}
        return [self.own]

    def passed_on(self, part: bytes, phase: str, sender: str) -> dict:
        key, shape = self.pinned.keys[sender], REPLIES[phase]
        return opened(part, phase, self.plan.hash, sender, "server", key, shape, carrier="server")

    def deal(self, body: dict) -> list:
        plan, around = self.plan, self.plan.around(self.name)
        digests = {name: digest("key-message", part) for name, part in body["keys"].items()} | body["others"]
        split = around >= body["keys"].keys() and around.isdisjoint(body["others"])
        require(split and set(plan.cohort) >= digests.keys(), "P-3.2", "server", "not the cohort, or not neighbours")
        enough = len(digests) >= plan.min_survivors and len(body["keys"]) >= plan.least_around
        require(enough, "P-3.3", "server", "too few clients")
        keys = {v: self.passed_on(part, "keys", v) for v, part in sorted(body["keys"].items())}  # P-3.2
        require(keys.get(self.name) == self.own, "P-3.4", "server", "not this client's own keys")
        self.listed, self.key_root, places = set(digests), plan.key_root(digests), plan.places(keys)
        self_shares = shares(self.self_seed, plan.t, places, self.rand)
        mask_shares = shares(self.mask_seed, plan.t, places, self.rand)
        dealt = {v: (self_shares[v], mask_shares[v]) for v in keys}
        self.held = {self.name: dealt[self.name]}
        parcels = [self.parcel(v, keys[v], dealt[v]) for v in plan.recipients(self.name, self.listed)]
        return [{"key_root": self.key_root, "parcels": merkle_root(parcels)}, *parcels]

    def parcel(self, v: str, keys: dict, pair: tuple[bytes, bytes]) -> bytes:
        u, context = self.name, (self.plan.hash, self.key_root, self.name, v)
        with blame("P-3.1", v):
            boxes = seal(keys["share_key"], b"".join(pair), "shares", *context)
            if u < v:  # P-4.1
                boxes += seal(keys["mask_key"], self.plan.pair_seed(self.mask_seed, u, v), "pair-seed", *context)
        return self.plan.checks(u, v, pair) + boxes

    def upload(self, body: dict) -> list:
        plan, known = self.plan, set(self.plan.recipients(self.name, self.listed))
        require(known >= body["parcels"].keys(), "P-4.3", "server", "parcels of others than neighbours")
        require(1 + len(body["parcels"]) >= plan.least_around, "P-5.1", "server", "too few parcels")
        pair_seeds = {u: self.unpack(u, **delivery) for u, delivery in sorted(body["parcels"].items())}
        update = self.vector[: plan.layout["update"]]
        require(not update or update not in self.pinned.answered, "P-7.5", self.name, "this update was answered for")
        masked = plus(self.vector, plan.self_mask(self.self_seed, self.name))
        for u, pair_seed in pair_seeds.items():
            masked = plus(masked, plan.pair_mask(pair_seed, self.name, u))
        chunks = plan.chunks(masked)
        return [{"digests": [hashlib.sha256(chunk).digest() for chunk in chunks]}, *chunks]

    def unpack(self, u: str, parcel_list: bytes, parcel: bytes, path: bytes) -> bytes:
        """Keep u's shares, give the pair seed."""
        plan, v, context = self.plan, self.name, (self.plan.hash, self.key_root, u, self.name)
        promised, leaves = self.passed_on(parcel_list, "shares", u), plan.recipients(u, self.listed)
        require(promised["key_root"] == self.key_root, "P-4.4", "server", f"{u} was shown another key list")
        root = path_root(parcel, leaves.index(v), len(leaves), path)
        require(root == promised["parcels"], "P-1.2", "server", f"no parcel that {u} signed")
        require(len(parcel) == parcel_size(u, v), "P-4.2", u, "length of a parcel")
        with blame("P-4.2", u):
            both = unseal(self.share_key, parcel[64:1266], "shares", *context)
            sealed = unseal(self.mask_key, parcel[1266:], "pair-seed", *context) if u < v else None
        self.held[u] = (both[:33], both[33:])
        require(plan.checks(u, v, self.held[u]) == parcel[:64], "P-4.2", u, "a share that does not fit its check")
        return sealed or plan.pair_seed(self.mask_seed, v, u)

    def consent(self, body: dict) -> list:
        self.survivors = body["survivors"]
        names, around = set(self.survivors), self.plan.around(self.name)
        sound = self.survivors == sorted(names) and self.name in names <= self.listed
        require(sound and names & around <= self.held.keys(), "P-6.1", "server", "survivors")
        require(len(names) >= self.plan.min_survivors, "P-6.3", "server", "too few survivors")
        self.consented = digest("consent", self.plan.hash, self.key_root, self.survivors)
        return [{"signature": sign(self.key, "survivor-list", self.consented)}]  # P-6.2

    def reveal(self, body: dict) -> list:
        dropped, consents, survivors = body["dropped"], body["consents"], set(self.survivors)
        require(survivors.isdisjoint(dropped), "P-7.4", "server", "asks for both shares of a survivor")
        require(dropped == sorted(self.held.keys() - survivors), "P-7.2", "server", "not exactly the dropped")
        enough = survivors >= consents.keys() and len(consents) >= self.plan.quorum
        require(enough, "P-7.3", "server", "too few consents, or not of survivors")
        valid = all(signed(self.pinned.keys[v], "survivor-list", self.consented, s) for v, s in consents.items())
        require(valid, "P-7.3", "server", "a consent to something else")
        self.pinned.answered.append(self.vector[: self.plan.layout["update"]])  # P-7.5
        self_mask = {v: pair[0] for v, pair in self.held.items() if v in survivors}  # P-7.4
        return [{"self_mask": self_mask, "mask_seed": {v: self.held[v][1] for v in dropped}}]
