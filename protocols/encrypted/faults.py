"""Tools for client_faults.py and server_faults.py: a recorded attempt, and its messages said again with one change.

Whatever is changed is signed by whoever says it, with the true key: nothing is refused for a reason of its own.
"""
# ruff: noqa: INP001

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from protocols.encrypted.check_vectors import keyed, load, message, plan_of, uploaded
from protocols.encrypted.common import (
    Plan,
    Refused,
    cbor,
    derive,
    digest,
    envelope,
    frames,
    merkle_path,
    merkle_root,
    seal,
    uncbor,
    unframe,
)
from protocols.encrypted.reference import bound, digests
from protocols.encrypted.reference_schemes import key_check

Change = Callable[[dict], object]  # changes a message's body in place

NETWORK, SERVER, COHORT = "network", "server", "the cohort"
STRANGER = "stranger"
JUNK = b"\x5a" * 32
LONG = 20_000  # bytes: what is longer stands under `chunks`


def unchanged(body: dict) -> None:
    """Leave a body as it is."""


def without(name: str) -> Change:
    """Remove a field."""
    return lambda body: body.pop(name)


def flipped(data: bytes, at: int) -> bytes:
    """One bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def refielded(message: bytes, **fields) -> bytes:
    """A message whose envelope says something else under the old signature."""
    part, *chunks = unframe(message)
    return frames(cbor(uncbor(part) | fields), *chunks)


def body_of(message: bytes) -> dict:
    """The body of a message's envelope."""
    return uncbor(uncbor(unframe(message)[0])["body"])


def fixed(*about) -> bytes:
    """64 bytes that follow from what they are for."""
    return derive(digest("vector-seed"), "vector-seed", *about, length=64)


def written(data: bytes, name: str, chunks: dict[str, str]) -> str | list[str]:
    """A message as files have it; its long frames go to `chunks`, unless they are there already."""
    try:
        parts = unframe(data)
    except Refused:
        return base64.b64encode(data).decode()
    said = []
    for number, part in enumerate(parts):
        text = base64.b64encode(part).decode()
        if len(part) > LONG:
            known = next((it for it, chunk in chunks.items() if chunk == text), f"{name}/{number}")
            chunks[known], text = text, f"chunk:{known}"
        said.append(text)
    return said


@dataclass
class Fault:
    """A file: the state of the receiver, the fault, and what must come of it. vectors/README.md explains the fields."""

    name: str  # the clause, then what is wrong
    title: str
    base: "Base"
    phase: str
    receiver: str
    party: str
    message: bytes | None = None
    sender: str = "server"
    event: str = "message"
    afterwards: str = "open"
    before: tuple[str, ...] = ()
    instead: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    keyed: dict | None = None  # how what the receiver remembers of the run's key differs
    then: tuple[bytes, str | None, str | None] | None = None  # a message of the next attempt, clause, party

    def vector(self) -> dict:
        """The file's content."""
        chunks = dict(self.base.vector["chunks"])

        def shown(data: bytes | None) -> str | list[str] | None:
            return None if data is None else written(data, self.name, chunks)

        content = {
            "spec": self.base.vector["spec"],
            "title": self.title,
            "clause": "-".join(self.name.split("-")[:2]),
            "party": self.party,
            "base": f"{self.base.name}.json",
            "receiver": self.receiver,
            "phase": self.phase,
            "instead": {phase: {v: shown(it) for v, it in said.items()} for phase, said in self.instead.items()},
            "before": list(self.before),
            "event": self.event,
            "from": self.sender,
            "message": shown(self.message),
            "afterwards": self.afterwards,
        }
        if self.keyed is not None:
            content["keyed"] = {run: pin | self.keyed for run, pin in self.base.vector["keyed"].items()}
        if self.then is not None:
            content["then"] = dict(
                zip(("message", "clause", "party"), (shown(self.then[0]), *self.then[1:]), strict=True)
            )
        return content | {"chunks": {it: chunk for it, chunk in chunks.items() if it not in self.base.vector["chunks"]}}


class Base:
    """A recorded attempt, and everybody's keys."""

    def __init__(self, path: Path):
        self.name, self.vector = path.stem, load(path)
        self.plan = plan_of(self.vector)
        self.secret = bytes.fromhex(self.vector["key"]["secret"])
        self.dealer = self.vector["key"]["dealer"]
        self.sheets, self.he_key, _ = keyed(self.vector)
        roster = uncbor(base64.b64decode(self.vector["roster"]))
        self.sealing = {member["name"]: member["sealing_key"] for member in roster["members"]}
        self.requests, self.replies = (
            {
                phase["phase"]: {name: message(self.vector, said) for name, said in phase[way].items()}
                for phase in self.vector["phases"]
            }
            for way in ("requests", "replies")
        )

    def key(self, party: str) -> bytes:
        """A party's Ed25519 private key."""
        return digest("vector-identity", party)

    def request(self, phase: str, client: str, /, change: Change = unchanged, chunks=None, **fields) -> bytes:
        """A recorded request with its body changed; `fields` replace what the envelope says, `key` who signs."""
        said, recorded = {"phase": phase, "sender": "server", "recipient": client}, self.requests[phase][client]
        return self.say(body_of(recorded), change, said | fields, unframe(recorded)[1:] if chunks is None else chunks)

    def reply(self, phase: str, client: str, /, change: Change = unchanged, chunks=None, **fields) -> bytes:
        """The same of a recorded reply."""
        said, recorded = {"phase": phase, "sender": client, "recipient": "server"}, self.replies[phase][client]
        return self.say(body_of(recorded), change, said | fields, unframe(recorded)[1:] if chunks is None else chunks)

    def say(self, body: dict, change: Change, said: dict, chunks=()) -> bytes:
        """A body as a signed message."""
        change(body)
        said = {"plan": self.plan.hash, "key": said["sender"]} | said
        part = envelope(self.key(said["key"]), said["phase"], said["plan"], said["sender"], said["recipient"], body)
        return frames(part, *chunks)

    def plan_request(self, client: str, phase: str = "input", **fields) -> bytes:
        """A request with another plan, under its own hash."""
        plan = self.plan.body | fields
        return self.request(phase, client, lambda body: body.update(plan=plan), plan=Plan(plan).hash)

    def next_attempt(self, client: str) -> bytes:
        """The same key, once more."""
        return self.plan_request(client, attempt=self.plan.body["attempt"] + 1)

    def dealt(self, secret: bytes, change: Change = unchanged, boxes: Change = unchanged) -> tuple[dict, list[bytes]]:
        """A dealing of epoch 1 and its boxes; `change` comes before these are sealed, `boxes` changes them."""
        plan = self.plan.body
        body = {"run": plan["run"], "epoch": 1, "protocol": plan["protocol"], "roster": plan["roster"]}
        change(body)
        context = bound(body, body["epoch"])
        seed = derive(secret, "he-secret-key", *context, length=64)
        parcels = [seal(self.sealing[v], secret, "he-key", *context, v) for v in sorted(self.sealing)]
        boxes(parcels)
        return {"parcels": merkle_root(parcels), "check": key_check(self.sheets.scheme.key(seed))} | body, parcels

    def delivery(self, client: str, dealer: str, secret: bytes, change: Change = unchanged, boxes: Change = unchanged):
        """What brings `client` a key that `dealer` has dealt."""
        body, parcels = self.dealt(secret, change, boxes)
        said = {"phase": "keys", "sender": dealer, "recipient": "server"}
        at, (part,) = sorted(self.sealing).index(client), unframe(self.say(body, unchanged, said))
        return {"dealer": dealer, "dealing": part, "parcel": parcels[at], "path": merkle_path(parcels, at)}

    def uploads(self, client: str) -> list[bytes]:
        """A client's ciphertexts."""
        return uploaded(self.vector, client)

    def total(self, *columns: list[bytes]) -> list[bytes]:
        """The sum of several clients' ciphertexts, one by one."""
        return [self.sheets.scheme.total(list(column)) for column in zip(*columns, strict=True)]

    def sum_of(self, client: str, chunks: list[bytes], survivors: list[str] | None = None, **fields) -> bytes:
        """The request that hands `client` these ciphertexts as the sum."""
        said = fields | {"digests": digests(chunks)} | ({"survivors": survivors} if survivors else {})
        return self.request("sum", client, lambda body: body.update(said), chunks)

    def encrypted(self, sheets: list[list], name: str) -> list[bytes]:
        """Sheets under the round's key, with randomness that follows from `name`."""
        scheme = self.sheets.scheme
        return [scheme.encrypt(self.he_key, sheet, fixed(name, at)) for at, sheet in enumerate(sheets)]

    def upload_of(self, client: str, vector: list, name: str) -> list[bytes]:
        """What a client would upload of another vector; its checks come with it."""
        return self.encrypted(self.sheets.fill(vector, self.secret, client), name)
