"""Replays the test vectors: `python -m protocols.encrypted.check_vectors`, at the top of the repository.

That checks the reference implementation against all of vectors/; another implementation is checked by the same two
functions, given what makes its sessions (see `Implementation`). vectors/README.md describes the files.
"""
# ruff: noqa: INP001

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from protocols.encrypted import reference
from protocols.encrypted.common import (
    CHECKS,
    Plan,
    cbor,
    derive,
    digest,
    frames,
    keypair,
    merkle_root,
    opened,
    uncbor,
    unframe,
    unseal,
)
from protocols.encrypted.reference_schemes import Bfv, Ckks, coefficients, key_check, sheets_of

FOLDER = Path(__file__).parent / "vectors"


@dataclass
class Implementation:
    """What `check_round` and `check_rejection` ask of an implementation.

    Attributes:
        client: from a round's JSON, a client's name, and an earlier session of it or None, a session with
            `reply(request) -> bytes` and `sum` (once it is read; without the checks). With an earlier session it is one
            for the next attempt: with what the client remembers, and with another update.
        server: from a round's JSON, a session with `requests()` (messages by name: a mapping, or pairs),
            `receive(name, reply)`, `end_phase()`, `aggregate()`: the following model, and what was published.
        refusals: the exceptions by which sessions refuse; `clause` and `party` say why, where they are attributes.
    """

    client: Callable[[dict, str, Any], Any]
    server: Callable[[dict], Any]
    refusals: tuple[type[Exception], ...]


def rounds() -> list[Path]:
    """The files of whole attempts."""
    return sorted(FOLDER.glob("round-*.json"))


def rejections() -> list[Path]:
    """The files of single faults."""
    return sorted(FOLDER.glob("reject-*.json"))


def load(path: Path) -> dict:
    """A vector file; a rejection with the attempt that it is based on under `round`."""
    vector = json.loads(path.read_text())
    if "base" in vector:
        vector["round"] = load(FOLDER / vector["base"])
        vector["chunks"] = vector["round"]["chunks"] | vector["chunks"]
    return vector


def message(vector: dict, said: str | list[str]) -> bytes:
    """A message: bytes in base64, or a list of frames, of which some stand under `chunks`."""
    if isinstance(said, str):
        return base64.b64decode(said)
    parts = [vector["chunks"][it.removeprefix("chunk:")] if it.startswith("chunk:") else it for it in said]
    return frames(*(base64.b64decode(part) for part in parts))


def plan_of(vector: dict) -> Plan:
    """The plan, as any request carries it."""
    request = next(iter(vector["phases"][0]["requests"].values()))
    return Plan(uncbor(uncbor(unframe(message(vector, request))[0])["body"])["plan"])


# ---- Rounds ----------------------------------------------------------------------------------------------------------


def check_round(vector: dict, implementation: Implementation) -> None:
    """Every party alone, fed with the file's messages, must say what the file says."""
    for name in vector["clients"]:
        check_client(vector, name, implementation)
    server = implementation.server(vector)
    for phase in vector["phases"]:
        requests = dict(server.requests())
        assert requests.keys() == phase["requests"].keys()
        for name, request in requests.items():
            same(vector, request, message(vector, phase["requests"][name]))
        for name, reply in phase["replies"].items():
            server.receive(name, message(vector, reply))
        server.end_phase()
    assert server.aggregate() == (bytes.fromhex(vector["following"]), vector["published"])


def check_client(vector: dict, name: str, implementation: Implementation) -> None:
    """Its replies, and the sum that it reads; a dealer deals in a session of its own, since boxes differ."""
    client = implementation.client(vector, name, None)
    for phase in vector["phases"]:
        if name in phase["requests"]:
            request = message(vector, phase["requests"][name])
            reply = client.reply(request)
            assert client.reply(request) == reply, "P-1.7: an identical request gets the identical reply"
            if name in phase["replies"]:
                expected = message(vector, phase["replies"][name])
                COMPARED[phase["phase"]](vector, reply, expected)
            if phase["phase"] == "keys":
                client = implementation.client(vector, name, None)
            if phase["phase"] == "sum":
                check_sum(vector, client.sum)


def exactly(vector: dict, found: bytes, expected: bytes) -> None:
    """The same bytes."""
    assert found == expected


def deals(vector: dict, found: bytes, expected: bytes) -> None:
    """A dealing as good as the recorded one: its boxes are others, and hold the same secret."""
    (part, *boxes), recorded = unframe(found), body_of(expected)
    body, secret = body_of(found), bytes.fromhex(vector["key"]["secret"])
    dealer = vector["key"]["dealer"]
    key, shape = bytes.fromhex(vector["clients"][dealer]["public"]), reference.REPLIES["keys"]
    assert body == opened(part, "keys", plan_of(vector).hash, dealer, "server", key, shape)
    assert body == recorded | {"parcels": merkle_root(boxes)}
    for name, box in zip(sorted(vector["clients"]), boxes, strict=True):
        private, _ = keypair(derive(bytes.fromhex(vector["clients"][name]["identity"]), "member-sealing"))
        bound = (body["run"], body["epoch"], body["protocol"], body["roster"])
        assert unseal(private, box, "he-key", *bound, name) == secret


def same(vector: dict, found: bytes, expected: bytes) -> None:
    """The same message, but for the bytes of ciphertexts (they are compressed) and, under CKKS, for their noise."""
    if found == expected:
        return
    (part, *chunks), (recorded, *others) = unframe(found), unframe(expected)
    assert uncbor(part).keys() == uncbor(recorded).keys()
    assert not {it for it, value in uncbor(part).items() if uncbor(recorded)[it] != value} - {"body", "signature"}
    body = body_of(found)
    assert body == body_of(expected) | {"digests": reference.digests(chunks)}
    assert len(chunks) == len(others)
    sheets, key, _ = keyed(vector)
    for chunk, other in zip(chunks, others, strict=True):
        ciphertexts = [sheets.scheme.load(it) for it in (chunk, other)]
        if coefficients(ciphertexts[0]) != coefficients(ciphertexts[1]):
            assert isinstance(sheets, Ckks), "the same seeds give the same ciphertexts"
            close(sheets, *(sheets.scheme.decrypt(key, it) for it in ciphertexts))


COMPARED = {"keys": deals, "input": same, "sum": exactly}


def close(sheets: Ckks, found: list[float], expected: list[float]) -> None:
    """Two decryptions that differ by the noise of two fresh ciphertexts at most."""
    edge = 10 * sheets.deviation(2)
    assert all(abs(x - y) <= edge for x, y in zip(found, expected, strict=True))


def check_sum(vector: dict, found: list) -> None:
    """What a client reads: integers are exact, and floats as near as the noise allows."""
    d, expected = vector["plan"]["layout"]["update"], vector["sum"]
    assert found[d:] == expected[d:]
    assert len(found) == len(expected)
    edge = 0.0
    if vector["plan"]["protocol"] == "ckks":
        sheets = sheets_of(plan_of(vector))
        edge = 10 * sheets.deviation(len(vector["survivors"])) * sheets.range
    assert all(abs(x - y) <= edge for x, y in zip(found[:d], expected[:d], strict=True))


def body_of(request: bytes) -> dict:
    """The body of a message's envelope, unverified."""
    return uncbor(uncbor(unframe(request)[0])["body"])


def keyed(vector: dict) -> tuple[Bfv | Ckks, Any, bytes]:
    """A round's sheets, its secret key for SEAL, and the seed of that."""
    plan, secret = plan_of(vector), bytes.fromhex(vector["key"]["secret"])
    bound = (plan.body["run"], vector["key"]["epoch"], plan.body["protocol"], plan.body["roster"])
    seed, sheets = derive(secret, "he-secret-key", *bound, length=64), sheets_of(plan)
    return sheets, sheets.scheme.key(seed), seed


def check_values(vector: dict) -> None:
    """What stands in a round beside the messages; and what the recorded ciphertexts decrypt to."""
    plan, said, secret = plan_of(vector), vector["values"], bytes.fromhex(vector["key"]["secret"])
    sheets, key, seed = keyed(vector)
    shown = {it: value.hex() if isinstance(value, bytes) else value for it, value in plan.body.items()}
    roster = uncbor(base64.b64decode(vector["roster"]))
    assert (vector["plan"], vector["plan_hash"]) == (shown, plan.hash.hex())
    assert vector["roster_hash"] == digest("roster", cbor(roster)).hex() == vector["plan"]["roster"]
    assert said["key_seed"] == seed.hex()
    assert said["key_check"] == key_check(key).hex()
    for name, client in vector["clients"].items():
        expected = sheets.fill([*client["vector"], *CHECKS], secret, name)
        assert [sheet[: len(it)] for sheet, it in zip(expected, said["head"][name], strict=True)] == said["head"][name]
        assert [sheet[-len(it) :] for sheet, it in zip(expected, said["tail"][name], strict=True)] == said["tail"][name]
        for sheet, chunk in zip(expected, uploaded(vector, name), strict=name in vector["survivors"]):
            found = sheets.scheme.decrypt(key, sheets.scheme.load(chunk))
            if isinstance(sheets, Bfv):
                assert found == sheet
            else:
                close(sheets, found, sheet)


def uploaded(vector: dict, name: str) -> list[bytes]:
    """A client's ciphertexts, if they arrived."""
    (phase,) = (it for it in vector["phases"] if it["phase"] == "input")
    return unframe(message(vector, phase["replies"][name]))[1:] if name in phase["replies"] else []


# ---- Rejections ------------------------------------------------------------------------------------------------------


def check_rejection(vector: dict, implementation: Implementation) -> None:
    """The receiver, brought to the state in question, must refuse what the file says it must, for that reason."""
    check = rejected_by_server if vector["receiver"] == "server" else rejected_by_client
    check(vector["round"], vector, implementation)


def rejected_by_client(base: dict, vector: dict, implementation: Implementation) -> None:
    """Answer the requests before; refuse the faulty one; answer the genuine one unless the session is closed."""
    name, base = vector["receiver"], base | {"keyed": vector.get("keyed", base["keyed"])}
    client = implementation.client(base, name, None)
    for phase in base["phases"]:
        if phase["phase"] == vector["phase"]:
            break
        if phase["phase"] == "input":  # no receiver is asked to deal before
            client.reply(message(base, phase["requests"][name]))
    refused(vector, implementation, partial(client.reply, message(vector, vector["message"])))
    if vector["afterwards"] == "open":
        genuine = client.reply(message(base, phase["requests"][name]))
        COMPARED[phase["phase"]](base, genuine, message(base, phase["replies"][name]))
    if vector["afterwards"] == "closed":
        closed = False
        try:
            client.reply(message(base, phase["requests"].get(name, vector["message"])))
        except implementation.refusals:
            closed = True
        assert closed, "a closed session has answered"
    if "then" in vector:
        later = implementation.client(base, name, client)
        again = partial(later.reply, message(vector, vector["then"]["message"]))
        if vector["then"]["clause"] is None:
            again()
        else:
            refused(vector["then"] | {"afterwards": "closed"}, implementation, again)


def rejected_by_server(base: dict, vector: dict, implementation: Implementation) -> None:
    """Take in the replies before; refuse the faulty reply, or the phase's end."""
    server = implementation.server(base)
    for phase in base["phases"]:
        replies = phase["replies"] | vector["instead"].get(phase["phase"], {})
        genuine = {name: message(vector, reply) for name, reply in replies.items() if reply is not None}
        if phase["phase"] != vector["phase"]:
            take_all(server, genuine)
            server.end_phase()
            continue
        if vector["event"] == "end":
            take_all(server, genuine)
            refused(vector, implementation, server.end_phase)
            return
        take_all(server, {name: genuine[name] for name in vector["before"]})
        refused(vector, implementation, partial(server.receive, vector["from"], message(vector, vector["message"])))
        take_all(server, {name: reply for name, reply in genuine.items() if name not in vector["before"]})
        server.end_phase()
        for following in base["phases"][base["phases"].index(phase) + 1 :]:  # the refused one has left nothing behind
            for name, request in dict(server.requests()).items():
                same(base, request, message(base, following["requests"][name]))
            return
        return
    raise AssertionError("the round has no such phase")


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


# ---- The reference implementation ------------------------------------------------------------------------------------


def following(model: bytes, counters: list[int]) -> bytes:
    """The model that follows from a sum, in these files."""
    return digest("vector-following", model, *counters)


def reference_client(vector: dict, name: str, before: reference.Client | None) -> reference.Client:
    """A client of the reference implementation, with the file's randomness."""
    mine, d, model = vector["clients"][name], vector["plan"]["layout"]["update"], bytes.fromhex(vector["model"])
    roster = uncbor(base64.b64decode(vector["roster"]))
    pinned = reference.Pinned(
        signing_keys(vector),
        {member["name"]: member["sealing_key"] for member in roster["members"]},
        bytes.fromhex(vector["roster_hash"]),
        model,
        vector["policy"] | {"protocol": vector["plan"]["protocol"]},
        {bytes.fromhex(run): tuple(place) for run, place in vector["begun"].items()},
        {
            bytes.fromhex(run): reference.Pin(**it | {"dealing": bytes.fromhex(it["dealing"])})
            for run, it in pins(vector)
        },
    )
    data, seeds = mine["vector"], iter([bytes.fromhex(seed) for seed in mine["seeds"]])
    if before is not None:
        pinned = replace(before.pinned)
        data, seeds = [0] * d + data[d:], None
    model_after = lambda total: following(model, total[d:])  # noqa: E731
    secret = bytes.fromhex(vector["key"]["secret"])
    key = bytes.fromhex(mine["identity"])
    return reference.Client(name, key, pinned, data, model_after, lambda count: secret[:count], seeds)


def pins(vector: dict) -> Iterable[tuple[str, dict]]:
    """The keys that a client remembers, by run."""
    return vector["keyed"].items()


def reference_server(vector: dict) -> reference.Server:
    """The server of the reference implementation."""
    key, dealt = vector["key"], None
    if vector["phases"][0]["phase"] != "keys":
        parcels = [base64.b64decode(parcel) for parcel in key["parcels"]]
        dealing = base64.b64decode(key["dealing"])
        dealt = reference.Dealt(key["dealer"], dealing, parcels, bytes.fromhex(vector["values"]["dealing"]))
    identity = bytes.fromhex(vector["server"]["identity"])
    return reference.Server(plan_of(vector).body, identity, signing_keys(vector), key["epoch"], dealt)


def signing_keys(vector: dict) -> dict[str, bytes]:
    """Every member's Ed25519 key and the server's, out of the roster."""
    roster = uncbor(base64.b64decode(vector["roster"]))
    return {"server": roster["server"]} | {member["name"]: member["signing_key"] for member in roster["members"]}


REFERENCE = Implementation(reference_client, reference_server, (reference.Refused,))


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
