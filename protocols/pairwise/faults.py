"""Tools for rejections.py: a recorded attempt, and its messages said again with one thing changed.

Whatever is changed is signed by whoever says it, with the true key: nothing is refused for a reason of its own.
"""
# ruff: noqa: INP001

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from check_vectors import load, plan_body
from reference import Plan, envelope, frames, unframe
from reference_primitives import cbor, digest, merkle_path, merkle_root, seal, sign, uncbor

Change = Callable[[dict], object]  # changes a message's body in place


NETWORK, SERVER, COHORT = "network", "server", "the cohort"
STRANGER = "stranger"
JUNK = b"\x5a" * 32


def unchanged(body: dict) -> None:
    """Leave a body as it is."""


def without(field: str) -> Change:
    """Remove a field."""
    return lambda body: body.pop(field)


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

    def vector(self) -> dict:
        """The file's content."""
        return {
            "spec": self.base.vector["spec"],
            "title": self.title,
            "clause": "-".join(self.name.split("-")[:2]),
            "party": self.party,
            "base": f"{self.base.name}.json",
            "receiver": self.receiver,
            "phase": self.phase,
            "instead": {phase: {v: encoded(it) for v, it in said.items()} for phase, said in self.instead.items()},
            "before": list(self.before),
            "event": self.event,
            "from": self.sender,
            "message": encoded(self.message),
            "afterwards": self.afterwards,
        }


def encoded(message: bytes | None) -> str | None:
    """Base64, as messages are written; None stands for silence."""
    return None if message is None else base64.b64encode(message).decode()


class Base:
    """A recorded attempt, and everybody's keys."""

    def __init__(self, path: Path):
        self.name, self.vector = path.stem, load(path)
        self.plan = Plan(plan_body(self.vector))
        self.root = bytes.fromhex(self.vector["values"]["key_root"])
        self.requests, self.replies = (
            {
                phase["phase"]: {name: base64.b64decode(message) for name, message in phase[way].items()}
                for phase in self.vector["phases"]
            }
            for way in ("requests", "replies")
        )

    def key(self, party: str) -> bytes:
        """A party's Ed25519 private key."""
        return digest("vector-identity", party)

    def request(self, phase: str, client: str, change: Change = unchanged, **fields) -> bytes:
        """A recorded request with its body changed; `fields` replace what the envelope says, `key` who signs."""
        said = {"phase": phase, "sender": "server", "recipient": client} | fields
        return self.say(body_of(self.requests[phase][client]), change, said)

    def reply(self, phase: str, client: str, change: Change = unchanged, chunks=None, **fields) -> bytes:
        """The same of a recorded reply, whose chunks may be replaced."""
        said, recorded = {"phase": phase, "sender": client, "recipient": "server"} | fields, self.replies[phase][client]
        return self.say(body_of(recorded), change, said, unframe(recorded)[1:] if chunks is None else chunks)

    def say(self, body: dict, change: Change, said: dict, chunks=()) -> bytes:
        """A body as a signed message."""
        change(body)
        said = {"plan": self.plan.hash, "key": said["sender"]} | said
        part = envelope(self.key(said["key"]), said["phase"], said["plan"], said["sender"], said["recipient"], body)
        return frames(part, *chunks)

    def plan_request(self, client: str, **fields) -> bytes:
        """The first request, with another plan under its own hash."""
        body = self.plan.body | fields
        said = {"phase": "keys", "plan": Plan(body).hash, "sender": "server", "recipient": client}
        return self.say(body, unchanged, said)

    def keys(self, client: str, change: Change = unchanged, **fields) -> bytes:
        """A client's key message, as it is passed on."""
        return unframe(self.reply("keys", client, change, **fields))[0]

    def parcels(self, u: str) -> dict[str, bytes]:
        """What u deals, by recipient."""
        return dict(zip(self.plan.recipients(u, self.vector["values"]["own"]), self.chunks("shares", u), strict=True))

    def chunks(self, phase: str, client: str) -> list[bytes]:
        """What follows the envelope of a recorded reply."""
        return unframe(self.replies[phase][client])[1:]

    def deal(self, u: str, changed: dict[str, bytes]) -> bytes:
        """u's reply in `shares`, with other parcels for some."""
        parcels = list((self.parcels(u) | changed).values())
        return self.reply("shares", u, lambda body: body.update(parcels=merkle_root(parcels)), parcels)

    def deliver(self, u: str, v: str, parcel: bytes) -> bytes:
        """The request that brings v another parcel of u's."""
        part, *parcels = unframe(self.deal(u, {v: parcel}))
        path = merkle_path(parcels, list(self.parcels(u)).index(v))
        delivery = {"parcel_list": part, "parcel": parcel, "path": path}
        return self.request("masked-input", v, lambda body: body["parcels"].update({u: delivery}))

    def delivery(self, u: str, v: str) -> dict:
        """What the server delivers from u to v."""
        return body_of(self.requests["masked-input"][v])["parcels"][u]

    def consent(self, client: str, survivors: list[str]) -> bytes:
        """A client's signature under a survivor list."""
        return sign(self.key(client), "survivor-list", digest("consent", self.plan.hash, self.root, survivors))

    def shares_box(self, u: str, v: str, pair: tuple[bytes, bytes]) -> bytes:
        """Two shares as u seals them to v."""
        public = body_of(self.replies["keys"][v])["share_key"]
        return seal(public, b"".join(pair), "shares", self.plan.hash, self.root, u, v)
