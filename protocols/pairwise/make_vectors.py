"""Makes vectors/ with the reference implementation: `python make_vectors.py`, then look at the difference.

Seeds and coefficients follow from a file's name, so they stay what they are. HPKE takes no randomness from its caller:
boxes, and what covers them, are new every time.
"""
# ruff: noqa: INP001

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import client_faults
import server_faults
from check_vectors import FOLDER, REFERENCE, check_rejection, check_round, check_values
from faults import Base, Fault
from reference import PHASES, Client, Pinned, Plan, ring_bits, sparse_graph
from reference_primitives import FIELD, V, cbor, derive, digest, keypair, public_of, shares
from reference_server import Server

# Text order, which the protocol uses, is not the order of CBOR's keys here: "b" and "z.1" come before "site-10" there.
NAMES = ("aa", "b", "site-10", "site-9", "z.1", "0", "site-2", "x_y-1")


@dataclass
class Case:
    """One attempt to record."""

    title: str
    names: tuple[str, ...]
    max_corrupt: int
    threshold: int
    min_survivors: int
    counters: dict[str, int]
    threat_model: str = "malicious-server"
    value_bits: int = 20
    silent: dict[str, str] = field(default_factory=dict)  # client: phase in which its reply is lost
    only: tuple[str, ...] = ()  # the clients whose view is recorded; all and the server by default


COUNTERS = {"weight": 4096, "answers": 10_000, "correct": 10_000}
FIVE, EIGHT = NAMES[:5], NAMES
MANY = tuple(f"site-{number:03}" for number in range(120))
CURIOUS = "honest-but-curious"

CASES = {
    "round-n3-b24": Case("Three clients, nobody falls silent", NAMES[:3], 0, 2, 2, {"weight": 100}, value_bits=8),
    "round-n5-b32": Case("Five clients, nobody falls silent", FIVE, 1, 4, 4, COUNTERS, value_bits=12),
    "round-n5-silent-in-keys": Case("One never sends keys", FIVE, 1, 4, 4, COUNTERS, silent={"b": "keys"}),
    "round-n5-silent-in-shares": Case("One never deals parcels", FIVE, 1, 4, 4, COUNTERS, silent={"b": "shares"}),
    "round-n5-silent-in-masked-input": Case(
        "One deals parcels and never uploads: its mask seed is recovered",
        FIVE, 1, 4, 4, COUNTERS, silent={"site-10": "masked-input"},
    ),
    "round-n5-silent-in-consistency": Case(
        "One uploads and never consents: it is in the sum", FIVE, 1, 4, 4, COUNTERS, silent={"z.1": "consistency"}
    ),
    "round-n5-silent-in-unmask": Case(
        "One consents and never reveals: it is in the sum", FIVE, 1, 4, 4, COUNTERS, silent={"aa": "unmask"}
    ),
    "round-n5-curious": Case(
        "Honest but curious, threshold 2: two upload less, two of the other three unmask",
        FIVE, 1, 2, 3, COUNTERS, CURIOUS, silent={"b": "masked-input", "site-9": "masked-input", "aa": "unmask"},
    ),
    "round-n8-b64": Case(
        "The largest ring; one client falls silent in each of the first three phases",
        EIGHT, 1, 5, 5, COUNTERS | {"loss": 2**59 - 1}, silent={"0": "keys", "z.1": "shares", "site-2": "masked-input"},
    ),
    "round-n8-curious-b48": Case(
        "Honest but curious; one client falls silent in each of the five phases",
        EIGHT, 2, 3, 4, COUNTERS | {"loss": 2**43}, CURIOUS,
        silent=dict(zip(("site-9", "x_y-1", "b", "0", "aa"), PHASES, strict=True)),
    ),
    "round-n120-sparse-view": Case(
        "One client's view of a sparse graph with 120 clients, of which two neighbours fall silent",
        MANY, 6, 0, 114, {"weight": 4096}, CURIOUS, only=("site-007",),
    ),
}  # fmt: skip


def main() -> None:
    """Write every file, then check all of them."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, case in CASES.items():
        vector = record(name, case)
        check_values(vector)
        check_round(vector, REFERENCE)
        write(name, vector)
    for fault in every_fault():
        vector = fault.vector()
        check_rejection(vector, REFERENCE)
        write(f"reject-{fault.name}", vector)
    size = sum(path.stat().st_size for path in FOLDER.glob("*.json"))
    print(f"{len(list(FOLDER.glob('*.json')))} files, {size:,} bytes")


def every_fault() -> Iterator[Fault]:
    """One file for each way to break each rule."""
    names = ("n5-silent-in-masked-input", "n5-silent-in-keys", "n5-curious", "n120-sparse-view")
    base, lacking, curious, sparse = (Base(FOLDER / f"round-{name}.json") for name in names)
    yield from client_faults.envelopes(base)
    yield from client_faults.bodies(base)
    yield from client_faults.passed_on(base)
    yield from client_faults.plans(base, curious)
    yield from client_faults.keys(base, sparse)
    yield from client_faults.parcels(base, lacking, sparse)
    yield from client_faults.survivor_lists(base)
    yield from client_faults.unmask_requests(base, curious)
    yield from server_faults.envelopes(base)
    yield from server_faults.keys(base)
    yield from server_faults.parcels(base)
    yield from server_faults.uploads(base)
    yield from server_faults.consents(base)
    yield from server_faults.revealed(base, curious)
    yield from server_faults.sums(base)


def write(name: str, vector: dict) -> None:
    """One JSON file."""
    (FOLDER / f"{name}.json").write_text(json.dumps(vector, indent=1, sort_keys=False) + "\n")


def record(name: str, case: Case) -> dict:
    """Run an attempt, and write down what everyone says and knows."""
    identities = {party: digest("vector-identity", party) for party in (*case.names, "server", "consortium")}
    keys = {party: public_of(identities[party]) for party in (*case.names, "server")}
    roster = roster_of(case.names, identities)
    body = plan_of(name, case, digest("roster", cbor(roster)))
    policy = {"threat_model": case.threat_model, "max_corrupt": case.max_corrupt}
    policy |= {"cohort": max(2, len(case.names) - 1), "min_survivors": case.min_survivors, "noise": 0.0}
    pinned = Pinned(keys, body["roster"], body["model"], policy)
    draws: dict[str, list[bytes]] = {party: [] for party in case.names}
    clients = {
        party: Client(
            party, identities[party], replace(pinned, begun={}), inputs(name, party, case), injected(name, party, draws)
        )
        for party in case.names
    }
    server = Server(body, identities["server"], keys)
    phases = play(server, clients, silent_in(case, server.plan))
    parties = case.only or case.names
    recorded = {
        party: {
            "identity": identities[party].hex(),
            "public": keys[party].hex(),
            "vector": inputs(name, party, case),
            "random": named(draws[party], server.plan.t),
            "deals": deals(party, draws[party], server),
        }
        for party in parties
    }
    vector = {
        "spec": V,
        "title": case.title,
        "plan": readable(body),
        "plan_hash": server.plan.hash.hex(),
        "roster": base64_of(cbor(roster)),
        "roster_hash": body["roster"].hex(),
        "model": body["model"].hex(),
        "policy": policy,
        "begun": {body["run"].hex(): [body["round"], body["attempt"] - 1]},
        "server": {"identity": identities["server"].hex(), "public": keys["server"].hex()},
        "clients": recorded,
        "phases": [
            {
                "phase": phase,
                "requests": {party: base64_of(requests[party]) for party in sorted(requests) if party in parties},
                "replies": {party: base64_of(replies[party]) for party in sorted(replies) if party in parties},
            }
            for phase, requests, replies in phases
        ],
        "values": values(server, clients, parties),
        "survivors": server.survivors,
        "dropped": server.dropped,
    }
    return vector if case.only else vector | {"sum": server.aggregate()}


def play(server: Server, clients: dict[str, Client], silent: dict[str, str]) -> list[tuple[str, dict, dict]]:
    """Each phase's requests, and the replies that arrive."""
    phases = []
    for phase in PHASES:
        requests = server.requests()
        replies = {party: clients[party].reply(request) for party, request in requests.items()}
        replies = {party: reply for party, reply in replies.items() if silent.get(party) != phase}
        for party, reply in replies.items():
            server.receive(party, reply)
        server.end_phase()
        phases.append((phase, requests, replies))
    return phases


def roster_of(names: tuple[str, ...], identities: dict[str, bytes]) -> dict:
    """A roster as docs/roster.md has it; the protocol uses its hash, the names and the signing keys."""
    members = [
        {
            "name": name,
            "signing_key": public_of(identities[name]),
            "sealing_key": keypair(derive(identities[name], "member-sealing"))[1],
        }
        for name in sorted(names)
    ]
    keys = {"consortium": public_of(identities["consortium"]), "server": public_of(identities["server"])}
    return keys | {"version": 1, "expires": 253_402_300_799, "members": members, "revoked": [], "spec": V}


def plan_of(name: str, case: Case, roster: bytes) -> dict:
    """The body of the case's plan."""
    n, weight_max = len(case.names), case.counters["weight"]
    counters = [{"name": it, "bound": bound} for it, bound in case.counters.items()]
    layout = {"update": 0, "counters": counters, "value_bits": case.value_bits, "weight_max": weight_max}
    degree, threshold = n - 1, case.threshold
    if n > 100:
        degree, threshold = sparse_graph(n, case.max_corrupt, n - case.min_survivors) or (degree, threshold)
    return {
        "protocol": "pairwise",
        "run": digest("vector-run", name)[:16],
        "round": 3,
        "attempt": 2,
        "threat_model": case.threat_model,
        "max_corrupt": case.max_corrupt,
        "cohort": sorted(case.names),
        "degree": degree,
        "threshold": threshold,
        "min_survivors": case.min_survivors,
        "layout": layout,
        "clip": struct.pack(">d", 1.0),
        "noise": bytes(8),
        "rounding": "nearest",
        "ring_bits": ring_bits(layout, n),
        "roster": roster,
        "model": digest("vector-model"),
        "history": digest("vector-history"),
        "spec": V,
    }


def silent_in(case: Case, plan: Plan) -> dict[str, str]:
    """Who falls silent when; around the one client of a sparse graph that is recorded, two neighbours do."""
    if not case.only:
        return case.silent
    return dict.fromkeys(plan.recipients(case.only[0], case.names)[:2], "masked-input")


def inputs(name: str, party: str, case: Case) -> list[int]:
    """A client's counters, each from 1 to its bound."""
    return [1 + int.from_bytes(digest("vector-input", name, party, it)) % bound for it, bound in case.counters.items()]


def injected(name: str, party: str, draws: dict[str, list[bytes]]) -> Callable[[int], bytes]:
    """A client's randomness, recorded as it is used. Field elements come out below the field's order at once."""

    def rand(count: int) -> bytes:
        number, trial = FIELD, 0
        while number >= FIELD:
            label = cbor([name, party, len(draws[party]), trial])
            number, trial = int.from_bytes(hashlib.shake_256(label).digest(count)) % 2 ** min(8 * count, 257), trial + 1
        draws[party].append(number.to_bytes(count))
        return draws[party][-1]

    return rand


def named(draws: list[bytes], t: int) -> dict:
    """A client's draws by what they are for; coefficients from the highest degree down."""
    seeds = dict(zip(("self_seed", "mask_seed", "share_seed"), (draw.hex() for draw in draws), strict=False))
    coefficients = [draw.hex() for draw in draws[3:]]
    return seeds | {"self_coefficients": coefficients[: t - 1], "mask_coefficients": coefficients[t - 1 :]}


def deals(party: str, draws: list[bytes], server: Server) -> dict:
    """What a client's parcels must open to, and what it keeps for itself."""
    plan, coefficients = server.plan, iter(draws[3:])
    if len(draws) == 3:
        return {}
    places = plan.places(sorted(plan.around(party) & server.key_messages.keys()))
    self_shares = shares(draws[0], plan.t, places, lambda _: next(coefficients))
    mask_shares = shares(draws[1], plan.t, places, lambda _: next(coefficients))
    dealt = {v: {"self_mask": self_shares[v].hex(), "mask_seed": mask_shares[v].hex()} for v in places}
    for v in dealt:
        if party < v:
            dealt[v]["pair_seed"] = plan.pair_seed(draws[1], party, v).hex()
    return dealt


def values(server: Server, clients: dict[str, Client], parties: tuple[str, ...]) -> dict:
    """What an implementation computes on the way: the first place to look when messages differ."""
    plan, pairs, own = server.plan, {}, {}
    for u in sorted(server.published.keys() & set(parties)):
        seed = clients[u].self_seed
        own[u] = {
            "self_commitment": server.published[u]["self_commitment"].hex(),
            "self_mask_key": derive(seed, "self-mask", plan.hash, u).hex(),
            "self_mask": plan.self_mask(seed, u),
        }
    for u in sorted(server.dealt):
        for v in plan.recipients(u, server.dealt):
            if u < v and {u, v} & set(parties):
                seed = plan.pair_seed(clients[u].mask_seed, u, v)
                key, mask = derive(seed, "pair-mask", plan.hash, u, v), plan.pair_mask(seed, u, v)
                pairs[f"{u} {v}"] = {"pair_mask_key": key.hex(), "pair_mask": mask}
    consent = digest("consent", plan.hash, server.key_root, server.survivors)
    return {"key_root": server.key_root.hex(), "consent": consent.hex(), "own": own, "pairs": pairs}


def readable(body: dict) -> dict:
    """A plan with its byte strings in hex."""
    return {it: value.hex() if isinstance(value, bytes) else value for it, value in body.items()}


def base64_of(message: bytes) -> str:
    """As messages are written."""
    return base64.b64encode(message).decode()


if __name__ == "__main__":
    main()
