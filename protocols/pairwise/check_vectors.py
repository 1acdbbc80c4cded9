"""Replays the test vectors: `python check_vectors.py` checks the reference implementation against all of vectors/.

Another implementation is checked by the same two functions, given what makes its sessions (see `Implementation`).
vectors/README.md describes the files.
"""
# ruff: noqa: INP001

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import reference
from reference import Plan, unframe
from reference_primitives import cbor, derive, digest, keypair, merkle_root, uncbor, unseal
from reference_server import Server

FOLDER = Path(__file__).parent / "vectors"


@dataclass
class Implementation:
    """What `check_round` and `check_rejection` ask of an implementation.

    Attributes:
        client: from a round's JSON and a client's name, a session with `reply(request) -> bytes`.
        server: from a round's JSON, a session with `requests()` (messages by name: a mapping, or pairs),
            `receive(name, reply)`, `end_phase()`, `aggregate()` (the sum as integers, without the checks), `survivors`.
        refusals: the exceptions by which sessions refuse; `clause` and `party` say why, where they are attributes.
    """

    client: Callable[[dict, str], Any]
    server: Callable[[dict], Any]
    refusals: tuple[type[Exception], ...]


def rounds() -> list[Path]:
    """The files of whole attempts."""
    return sorted(FOLDER.glob("round-*.json"))


def rejections() -> list[Path]:
    """The files of single faults."""
    return sorted(FOLDER.glob("reject-*.json"))


def load(path: Path) -> dict:
    """A vector file, with its messages still in base64."""
    return json.loads(path.read_text())


def check_round(vector: dict, implementation: Implementation) -> None:
    """Every party alone, fed with the file's messages, must say what the file says."""
    for name in vector["clients"]:
        client = implementation.client(vector, name)
        for phase in vector["phases"]:
            if name in phase["requests"]:
                request = base64.b64decode(phase["requests"][name])
                reply = client.reply(request)
                assert client.reply(request) == reply, "P-1.7: an identical request gets the identical reply"
                if name in phase["replies"]:
                    compare(vector, phase["phase"], name, reply, base64.b64decode(phase["replies"][name]))
    if "sum" in vector:
        server = implementation.server(vector)
        for phase in vector["phases"]:
            requests = {name: base64.b64encode(request).decode() for name, request in dict(server.requests()).items()}
            assert requests == phase["requests"], f"requests of {phase['phase']}"
            for name, reply in phase["replies"].items():
                server.receive(name, base64.b64decode(reply))
            server.end_phase()
        assert server.aggregate() == vector["sum"]
        assert list(server.survivors) == vector["survivors"]


def check_values(vector: dict) -> None:
    """What stands in a round beside the messages must follow from the messages and the seeds."""
    plan, said = Plan(plan_body(vector)), vector["values"]
    shown = {it: value.hex() if isinstance(value, bytes) else value for it, value in plan.body.items()}
    roster = uncbor(base64.b64decode(vector["roster"]))
    assert (vector["plan"], vector["plan_hash"]) == (shown, plan.hash.hex())
    assert vector["roster_hash"] == digest("roster", cbor(roster)).hex() == vector["plan"]["roster"]
    consent = digest("consent", plan.hash, bytes.fromhex(said["key_root"]), vector["survivors"])
    assert said["consent"] == consent.hex()
    for u, own in said["own"].items():
        seed = bytes.fromhex(vector["clients"][u]["random"]["self_seed"])
        assert own["self_commitment"] == derive(seed, "self-commitment", plan.hash, u).hex()
        assert own["self_mask_key"] == derive(seed, "self-mask", plan.hash, u).hex()
        assert own["self_mask"] == plan.self_mask(seed, u)
    for pair, masks in said["pairs"].items():
        u, v = pair.split()
        if u in vector["clients"]:  # else its deals are not in the file
            seed = bytes.fromhex(vector["clients"][u]["deals"][v]["pair_seed"])
            assert masks["pair_mask_key"] == derive(seed, "pair-mask", plan.hash, u, v).hex()
            assert masks["pair_mask"] == plan.pair_mask(seed, u, v)


def compare(vector: dict, phase: str, name: str, reply: bytes, expected: bytes) -> None:
    """Equal bytes; in the phase `shares`, where boxes differ, equal checks and plaintexts under a right signature."""
    if phase != "shares":
        assert reply == expected, f"{name}'s reply in {phase}"
        return
    plan, (part, *parcels) = Plan(plan_body(vector)), unframe(reply)
    key, shape = bytes.fromhex(vector["clients"][name]["public"]), reference.REPLIES["shares"]
    body = reference.opened(part, phase, plan.hash, name, "server", key, shape)
    root, deals = bytes.fromhex(vector["values"]["key_root"]), vector["clients"][name]["deals"]
    assert body == {"key_root": root, "parcels": merkle_root(parcels)}
    recipients = sorted(deals.keys() - {name})
    assert len(parcels) == len(recipients)
    for v, parcel in zip(recipients, parcels, strict=True):
        self_share, mask_share = (bytes.fromhex(deals[v][seed]) for seed in ("self_mask", "mask_seed"))
        assert parcel[:64] == plan.checks(name, v, (self_share, mask_share))
        assert len(parcel) == reference.parcel_size(name, v)
        if v in vector["clients"]:  # else its seeds are not in the file
            keys = private_keys(vector, plan, v)
            context = (plan.hash, root, name, v)
            assert unseal(keys["share_key"], parcel[64:1266], "shares", *context) == self_share + mask_share
            if name < v:
                pair_seed = unseal(keys["mask_key"], parcel[1266:], "pair-seed", *context)
                assert pair_seed.hex() == deals[v]["pair_seed"]


def private_keys(vector: dict, plan: Plan, name: str) -> dict:
    """A client's private sealing keys in an attempt."""
    random = vector["clients"][name]["random"]
    return {
        key: keypair(derive(bytes.fromhex(random[seed]), label, plan.hash, name))[0]
        for key, seed, label in (("share_key", "share_seed", "share-key"), ("mask_key", "mask_seed", "mask-key"))
    }


def plan_body(vector: dict) -> dict:
    """The plan, as any request of the phase `keys` carries it."""
    request = next(iter(vector["phases"][0]["requests"].values()))
    return uncbor(uncbor(unframe(base64.b64decode(request))[0])["body"])


def check_rejection(vector: dict, implementation: Implementation) -> None:
    """The receiver, brought to the state in question, must refuse what the file says it must, for that reason."""
    base = load(FOLDER / vector["base"])
    check = rejected_by_server if vector["receiver"] == "server" else rejected_by_client
    check(base, vector, implementation)


def rejected_by_client(base: dict, vector: dict, implementation: Implementation) -> None:
    """Answer the requests before; refuse the faulty one; answer the genuine one unless the session is closed."""
    client, name = implementation.client(base, vector["receiver"]), vector["receiver"]
    for phase in base["phases"]:
        if phase["phase"] == vector["phase"]:
            break
        client.reply(base64.b64decode(vector["instead"].get(phase["phase"], phase["requests"])[name]))
    refused(vector, implementation, partial(client.reply, base64.b64decode(vector["message"])))
    if vector["afterwards"] == "open":
        genuine = base64.b64decode(phase["requests"][name])
        compare(base, phase["phase"], name, client.reply(genuine), base64.b64decode(phase["replies"][name]))
    if vector["afterwards"] == "closed":
        try:
            client.reply(base64.b64decode(phase["requests"][name]))
        except implementation.refusals:
            return
        raise AssertionError("a closed session has answered")


def rejected_by_server(base: dict, vector: dict, implementation: Implementation) -> None:
    """Take in the replies before; refuse the faulty reply, the phase's end or the sum."""
    server = implementation.server(base)
    for phase in base["phases"]:
        replies = phase["replies"] | vector["instead"].get(phase["phase"], {})
        genuine = {name: base64.b64decode(reply) for name, reply in replies.items() if reply is not None}
        if phase["phase"] != vector["phase"]:
            take_all(server, genuine)
            server.end_phase()
            continue
        if vector["event"] == "message":
            take_all(server, {name: genuine[name] for name in vector["before"]})
            refused(
                vector, implementation, partial(server.receive, vector["from"], base64.b64decode(vector["message"]))
            )
            take_all(server, {name: reply for name, reply in genuine.items() if name not in vector["before"]})
            server.end_phase()
            return
        take_all(server, genuine)
        if vector["event"] == "end":
            refused(vector, implementation, server.end_phase)
            return
        server.end_phase()
    refused(vector, implementation, server.aggregate)


def take_all(server: Any, replies: dict[str, bytes]) -> None:
    """Receive several replies."""
    for name, reply in replies.items():
        server.receive(name, reply)


def refused(vector: dict, implementation: Implementation, act: Callable[[], object]) -> None:
    """`act` must refuse, with the file's clause and party."""
    try:
        act()
    except implementation.refusals as error:
        found = error
    else:
        raise AssertionError("not refused")
    if vector["afterwards"] != "over":
        reason = (getattr(found, "clause", None), getattr(found, "party", None))
        assert reason == (vector["clause"], vector["party"]), f"{reason}: {found}"


def reference_client(vector: dict, name: str) -> reference.Client:
    """A client of the reference implementation, with the file's randomness."""
    mine, policy = vector["clients"][name], vector["policy"]
    draws = iter([bytes.fromhex(draw) for draw in draws_of(mine)])
    begun = {bytes.fromhex(run): tuple(place) for run, place in vector["begun"].items()}
    pinned = reference.Pinned(
        signing_keys(vector), *(bytes.fromhex(vector[it]) for it in ("roster_hash", "model")), policy, begun
    )
    return reference.Client(name, bytes.fromhex(mine["identity"]), pinned, mine["vector"], lambda count: next(draws))


def draws_of(client: dict) -> list[str]:
    """A client's random bytes in the order in which both implementations of this repository use them."""
    random = client["random"]
    seeds = [random[name] for name in ("self_seed", "mask_seed", "share_seed")]
    return seeds + random["self_coefficients"] + random["mask_coefficients"]


def server_of(vector: dict) -> Server:
    """The server of the reference implementation."""
    return Server(plan_body(vector), bytes.fromhex(vector["server"]["identity"]), signing_keys(vector))


def signing_keys(vector: dict) -> dict[str, bytes]:
    """Every member's Ed25519 key and the server's, out of the roster."""
    roster = uncbor(base64.b64decode(vector["roster"]))
    return {"server": roster["server"]} | {member["name"]: member["signing_key"] for member in roster["members"]}


REFERENCE = Implementation(reference_client, server_of, (reference.Refused,))


def main() -> None:
    """Check the reference implementation against every file."""
    for path in rounds():
        check_values(load(path))
        check_round(load(path), REFERENCE)
    for path in rejections():
        check_rejection(load(path), REFERENCE)
    print(f"The reference implementation agrees with {len(rounds())} rounds and {len(rejections())} rejections.")


if __name__ == "__main__":
    main()
