"""Makes vectors/ with the reference implementation: `python -m protocols.encrypted.make_vectors`.

Then look at the difference. Keys, secrets and SEAL's seeds follow from a file's name, so they stay what they are. HPKE
takes no randomness from its caller: boxes, and what covers them, are new every time.
"""
# ruff: noqa: INP001

import base64
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from protocols.encrypted import client_faults, server_faults
from protocols.encrypted.check_vectors import (
    FOLDER,
    REFERENCE,
    check_rejection,
    check_round,
    check_values,
    following,
    load,
)
from protocols.encrypted.common import CHECKS, V, cbor, derive, digest, keypair, noise_tail, public_of, ring_bits
from protocols.encrypted.faults import Base, Fault, fixed, written
from protocols.encrypted.reference import PHASES, Client, Pin, Pinned, Server
from protocols.encrypted.reference_schemes import centred, key_check

# Text order, which the protocol uses, is not the order of CBOR's keys here: "b" and "z.1" come before "site-10" there.
NAMES = ("aa", "b", "site-10", "site-9", "z.1")
THREE, FIVE = NAMES[:3], NAMES
CURIOUS = "honest-but-curious"


@dataclass
class Case:
    """One attempt to record."""

    title: str
    protocol: str
    names: tuple[str, ...]
    update: int
    value_bits: int
    weight_max: int
    counters: dict[str, int] = field(default_factory=dict)
    most: int = 0  # of a coordinate; the layout's own bound by default
    noise: float = 0.0
    published: tuple[str, ...] = ()
    silent: dict[str, str] = field(default_factory=dict)  # client: phase in which its reply is lost
    threat_model: str = "malicious-server"
    after: str = ""  # the round before, in the same run, whose key is kept


CASES = {
    "round-bfv-n3": Case(
        "Three clients, one coordinate a slot, two ciphertexts", "bfv", THREE, 4100, 16, 100, most=999
    ),
    "round-bfv-n3-key-kept": Case(
        "The next round of the same run: no key is dealt", "bfv", THREE, 5, 16, 100, {"answers": 10_000},
        after="round-bfv-n3",
    ),
    "round-bfv-n5-packed": Case(
        "Three coordinates a slot; one falls silent in each phase that allows it", "bfv", FIVE, 14, 4, 10,
        {"answers": 10**9}, published=("answers", "weight"), silent={"site-10": "input", "z.1": "sum"},
        threat_model=CURIOUS,
    ),
    "round-bfv-n3-noise": Case(
        "Noise in the vectors: one coordinate a slot, reduced modulo t", "bfv", THREE, 20, 4, 1, most=10**12, noise=4.0
    ),
    "round-ckks-n3": Case(
        "Three clients, two ciphertexts", "ckks", THREE, 4100, 12, 50, {"answers": 10_000}, most=500
    ),
    "round-ckks-n5": Case(
        "Five clients; one falls silent in each phase that allows it; counters of up to three limbs", "ckks", FIVE, 11,
        20, 4096, {"answers": 10**6, "loss": 2**40}, published=("answers",), silent={"b": "input", "aa": "sum"},
        threat_model=CURIOUS,
    ),
}  # fmt: skip


def main() -> None:
    """Write every file, then check all of them."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, case in CASES.items():
        write(name, record(name, case))
        vector = load(FOLDER / f"{name}.json")
        check_values(vector)
        check_round(vector, REFERENCE)
    for fault in every_fault():
        write(f"reject-{fault.name}", fault.vector())
        check_rejection(load(FOLDER / f"reject-{fault.name}.json"), REFERENCE)
    size = sum(path.stat().st_size for path in FOLDER.glob("*.json"))
    print(f"{len(list(FOLDER.glob('*.json')))} files, {size:,} bytes")


def every_fault() -> Iterator[Fault]:
    """One file for each way to break each rule."""
    names = ("bfv-n3", "bfv-n3-key-kept", "bfv-n3-noise", "bfv-n5-packed", "ckks-n3", "ckks-n5")
    two, kept, noisy, packed, floats, five = (Base(FOLDER / f"round-{name}.json") for name in names)
    yield from client_faults.envelopes(packed)
    yield from client_faults.plans(packed, five)
    yield from client_faults.noisy_plans(noisy, floats)
    yield from client_faults.dealings(packed, kept)
    yield from client_faults.sums(packed)
    yield from client_faults.bfv_sums(two, kept, packed)
    yield from client_faults.ckks_sums(floats, five)
    yield from server_faults.envelopes(packed)
    yield from server_faults.dealings(packed)
    yield from server_faults.uploads(packed, two, five)
    yield from server_faults.answers(packed)


def write(name: str, vector: dict) -> None:
    """One JSON file; a list of numbers stands on one line."""
    text = json.dumps(vector, indent=1)
    flat = re.sub(r"\[[-+.e\d,\s]+\]", lambda found: " ".join(found[0].split()), text)
    (FOLDER / f"{name}.json").write_text(flat + "\n")


def record(name: str, case: Case) -> dict:
    """Run an attempt, and write down what everyone says and knows."""
    identities = {party: digest("vector-identity", party) for party in (*case.names, "server", "consortium")}
    keys = {party: public_of(identities[party]) for party in (*case.names, "server")}
    roster, model, d = roster_of(case.names, identities), digest("vector-model"), case.update
    earlier = load(FOLDER / f"{case.after}.json") if case.after else None
    body = plan_of(name, case, digest("roster", cbor(roster)), model)
    server = Server(body, identities["server"], keys, 1, dealt_in(earlier))
    policy = {"threat_model": case.threat_model, "max_corrupt": 0, "cohort": 3, "min_survivors": body["min_survivors"]}
    policy |= {"noise": case.noise, "shared_key": False, "published": list(case.published)}
    begun = {body["run"].hex(): [body["round"], body["attempt"] - 1]}
    held = {}
    if earlier:
        held[body["run"].hex()] = {"epoch": 1, "dealing": earlier["values"]["dealing"], "readings": 1, "spoiled": False}
    secret = bytes.fromhex(earlier["key"]["secret"]) if earlier else digest("vector-secret", name)
    sealing = {member["name"]: member["sealing_key"] for member in roster["members"]}
    inputs = {party: vector_of(name, case, party) for party in case.names}
    seeds = {party: [fixed(name, party, at) for at in range(server.sheets.chunks)] for party in case.names}
    clients = {
        party: Client(
            party,
            identities[party],
            Pinned(
                keys, sealing, body["roster"], model, policy | {"protocol": case.protocol}, **remembered(begun, held)
            ),
            inputs[party],
            lambda total: following(model, total[d:]),
            lambda count: secret[:count],
            iter(seeds[party]),
        )
        for party in case.names
    }
    phases, chunks = play(server, clients, case.silent)
    after, published = server.aggregate()
    total = [sum(column) for column in zip(*(inputs[party] for party in server.survivors), strict=True)]
    return {
        "spec": V,
        "title": case.title,
        "plan": {it: value.hex() if isinstance(value, bytes) else value for it, value in body.items()},
        "plan_hash": server.plan.hash.hex(),
        "roster": base64.b64encode(cbor(roster)).decode(),
        "roster_hash": body["roster"].hex(),
        "model": model.hex(),
        "policy": policy,
        "begun": begun,
        "keyed": held,
        "server": {"identity": identities["server"].hex(), "public": keys["server"].hex()},
        "key": {
            "dealer": server.dealt.dealer,
            "epoch": 1,
            "secret": secret.hex(),
            "dealing": base64.b64encode(server.dealt.dealing).decode(),
            "parcels": [base64.b64encode(parcel).decode() for parcel in server.dealt.parcels],
        },
        "clients": {
            party: {
                "identity": identities[party].hex(),
                "public": keys[party].hex(),
                "vector": inputs[party],
                "seeds": [seed.hex() for seed in seeds[party]],
            }
            for party in case.names
        },
        "phases": phases,
        "chunks": chunks,
        "values": values(server, secret, inputs),
        "survivors": server.survivors,
        "dropped": sorted(set(case.names) - set(server.survivors)),
        "sum": centred(total) if case.noise else total,
        "following": after.hex(),
        "published": published,
    }


def dealt_in(earlier: dict | None):
    """The key that a round before was given."""
    return REFERENCE.server(earlier | {"phases": earlier["phases"][1:]}).dealt if earlier else None


def remembered(begun: dict, held: dict) -> dict:
    """What a client remembers, as the reference has it."""
    return {
        "begun": {bytes.fromhex(run): tuple(place) for run, place in begun.items()},
        "keyed": {
            bytes.fromhex(run): Pin(**it | {"dealing": bytes.fromhex(it["dealing"])}) for run, it in held.items()
        },
    }


def play(server: Server, clients: dict[str, Client], silent: dict[str, str]) -> tuple[list[dict], dict[str, str]]:
    """Each phase's requests, and the replies that arrive; ciphertexts on their own."""
    phases, chunks = [], {}
    while server.phase < len(PHASES):
        phase, requests = PHASES[server.phase], server.requests()
        replies = {party: clients[party].reply(request) for party, request in requests.items()}
        replies = {party: reply for party, reply in replies.items() if silent.get(party) != phase}
        for party, reply in replies.items():
            server.receive(party, reply)
        server.end_phase()
        phases.append(
            {
                "phase": phase,
                "requests": {party: written(requests[party], "sum", chunks) for party in sorted(requests)},
                "replies": {party: written(replies[party], f"upload/{party}", chunks) for party in sorted(replies)},
            }
        )
    return phases, chunks


def roster_of(names: tuple[str, ...], identities: dict[str, bytes]) -> dict:
    """A roster as docs/roster.md has it; the protocol uses its hash, names, signing keys and sealing keys."""
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


def plan_of(name: str, case: Case, roster: bytes, model: bytes) -> dict:
    """The body of the case's plan."""
    n, bounds = len(case.names), {"weight": case.weight_max} | case.counters
    counters = [{"name": it, "bound": bound} for it, bound in bounds.items()]
    layout = {"update": case.update, "counters": counters, "value_bits": case.value_bits, "weight_max": case.weight_max}
    body = {
        "protocol": case.protocol,
        "run": digest("vector-run", case.after or name)[:16],
        "round": 4 if case.after else 3,
        "attempt": 2,
        "threat_model": case.threat_model,
        "max_corrupt": 0,
        "cohort": sorted(case.names),
        "degree": n - 1,
        "threshold": n // 2 + 1 if case.threat_model == "malicious-server" else 2,
        "min_survivors": 3,
        "layout": layout,
        "clip": struct.pack(">d", 1.0),
        "noise": struct.pack(">d", case.noise),
        "rounding": "stochastic" if case.noise else "nearest",
        "roster": roster,
        "model": model,
        "history": digest("vector-history"),
        "spec": V,
    }
    return body | {"ring_bits": ring_bits(layout, n, noise_tail(body))}


def vector_of(name: str, case: Case, party: str) -> list:
    """A client's update and counters: under BFV integers, under CKKS multiples of a quarter of a step."""
    most = case.most or case.weight_max * 2 ** (case.value_bits - 1)
    draws = struct.unpack(f"<{case.update}Q", stretched(name, party, 8 * case.update))
    update = [draw % (2 * most + 1) - most for draw in draws]
    update = [x / 4 if case.protocol == "ckks" else x for x in update]
    bounds = {"weight": case.weight_max} | case.counters
    return update + [
        1 + int.from_bytes(digest("vector-input", name, party, it)) % bound for it, bound in bounds.items()
    ]


def stretched(name: str, party: str, size: int) -> bytes:
    """As many bytes as are needed."""
    blocks = (fixed("input", name, party, at) for at in range(-(-size // 64)))
    return b"".join(blocks)[:size]


def values(server: Server, secret: bytes, inputs: dict[str, list]) -> dict:
    """What an implementation computes on the way: the first place to look when messages differ."""
    sheets, body = server.sheets, server.plan.body
    seed = derive(secret, "he-secret-key", body["run"], 1, body["protocol"], body["roster"], length=64)
    filled = {party: sheets.fill([*vector, *CHECKS], secret, party) for party, vector in inputs.items()}
    tail = 1 if body["protocol"] == "bfv" else len(inputs) + 4
    return {
        "dealing": server.dealt.name.hex(),
        "key_seed": seed.hex(),
        "key_check": key_check(sheets.scheme.key(seed)).hex(),
        "head": {party: [sheet[:8] for sheet in it] for party, it in filled.items()},
        "tail": {party: [sheet[-tail:] for sheet in it] for party, it in filled.items()},
    }


if __name__ == "__main__":
    main()
