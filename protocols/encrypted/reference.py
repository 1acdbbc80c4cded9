"""The encrypted protocols `bfv` and `ckks` as SPEC.md says them: slow, short, and independent of the package.

Read it from top to bottom with SPEC.md open; comments name its clauses. Keys, ciphertexts and slots are in
reference_schemes.py; envelopes and plans (P-1, P-2) are those of the pairwise reference. A `Client` answers requests, a
`Server` makes them; neither does I/O.
Not for production: it erases nothing, persists nothing and does not limit sizes.
"""
# ruff: noqa: INP001, D102, D103, TID251

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from protocols.encrypted.common import (
    CHECKS,
    PLAN,
    Plan,
    Refused,
    V,
    blame,
    cbor,
    derive,
    digest,
    envelope,
    frames,
    keypair,
    merkle_path,
    merkle_root,
    opened,
    path_root,
    require,
    seal,
    uncbor,
    unframe,
    unseal,
)
from protocols.encrypted.reference_schemes import key_check, sheets_of

PHASES = ("keys", "input", "sum")
PARCEL = 32 + 1136

# ---- Section 5: messages ---------------------------------------------------------------------------------------------

DELIVERY = {"dealer": str, "dealing": bytes, "parcel": PARCEL, "path": bytes}
REQUESTS = {
    "keys": {"plan": PLAN, "epoch": int},
    "input": {"plan": PLAN, "delivery": DELIVERY},
    "sum": {"plan": PLAN, "delivery": DELIVERY, "survivors": [str], "digests": [32]},
}
REPLIES = {
    "keys": {"run": 16, "epoch": int, "protocol": str, "roster": 32, "parcels": 32, "check": 32},
    "input": {"dealing": 32, "digests": [32]},
    "sum": {"model": 32, "published": {str: int}},
}


def said(part: bytes, name: str):
    """A field of an envelope that nobody has verified; None if there is none."""
    try:
        return uncbor(part)[name]
    except (ValueError, TypeError, LookupError):
        return None


def digests(chunks: list[bytes]) -> list[bytes]:
    return [hashlib.sha256(chunk).digest() for chunk in chunks]


def bound(plan: dict, epoch: int) -> tuple:
    """What a dealt secret is bound to: it outlives a plan."""
    return plan["run"], epoch, plan["protocol"], plan["roster"]


def check_chunks(clause: str, chunks: list[bytes], signed: list[bytes], count: int, signer: str) -> None:
    require(len(signed) == count, clause, signer, "not the number of ciphertexts that the layout has")
    require(len(chunks) == count, clause, "network", "chunks are missing or too many")
    require(digests(chunks) == signed, clause, "network", "not the chunks of the signed digests")


# ---- The client ------------------------------------------------------------------------------------------------------


@dataclass
class Pin:
    """A run's key: its epoch and dealing, how many sums were read under it, and whether one of them was none."""

    epoch: int = 1
    dealing: bytes | None = None
    readings: int = 0
    spoiled: bool = False


@dataclass
class Pinned:
    """What a client knows before a plan comes, and what it remembers of earlier attempts."""

    keys: dict[str, bytes]  # Ed25519, of the roster's members by name, and the server's under `server`
    sealing: dict[str, bytes]  # the members' sealing keys
    roster: bytes
    model: bytes
    # P-2.6: protocol, threat_model, max_corrupt, cohort, min_survivors, noise, shared_key; and E-6: published
    floors: dict
    begun: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # P-2.7: (round, attempt) by run
    keyed: dict[bytes, "Pin"] = field(default_factory=dict)  # E-3.4, E-5.6: the key in use, by run
    answered: list[list] = field(default_factory=list)  # E-4.4: the updates that were uploaded


class Client:
    """Gives one reply to the request of each phase, or raises `Refused`.

    Args:
        vector: update and counters, without the checks: for BFV encoded integers, for CKKS the update in steps.
        following: the model that follows from a sum.
        seeds: one of 64 bytes for every ciphertext, for vectors only; SEAL's own randomness otherwise.
    """

    def __init__(
        self,
        name: str,
        key: bytes,
        pinned: Pinned,
        vector: list,
        following: Callable[[list], bytes],
        rand: Callable[[int], bytes] = os.urandom,
        seeds: Iterator[bytes | None] | None = None,
    ):
        self.name, self.key, self.pinned, self.vector, self.following = name, key, pinned, [*vector, *CHECKS], following
        self.rand, self.seeds = rand, seeds
        self.due = ("input", "keys")  # the phases one of which may come next
        self.plan: Plan | None = None
        self.last = (b"", b"")
        self.sum: list = []

    def reply(self, request: bytes) -> bytes:
        if request == self.last[0]:
            return self.last[1]  # P-1.7
        require(bool(self.due), "P-1.7", "server", "this attempt is over")
        part, *chunks = unframe(request)
        phase = said(part, "phase") if said(part, "phase") in self.due else self.due[0]
        require(not chunks or phase == "sum", "P-1.1", "network", "chunks in a phase without")
        claimed = self.plan.hash if self.plan else said(part, "plan") or b"none"
        body = opened(part, phase, claimed, "server", self.name, self.pinned.keys["server"], REQUESTS[phase])
        if self.plan is None:
            plan = Plan(body["plan"])
            require(plan.hash == claimed, "P-1.3", "network", "another plan")
            self.accept(plan)
        try:
            require(Plan(body["plan"]).hash == self.plan.hash, "P-1.3", "server", "another plan inside")
            answer, *sent = {"keys": self.deal, "input": self.upload, "sum": self.read}[phase](body, chunks)
        except Refused as refused:
            self.due = self.due if refused.party == "network" else ()  # else the session is closed
            raise
        self.due = {"keys": ("input",), "input": ("sum",), "sum": ()}[phase]
        reply = frames(envelope(self.key, phase, self.plan.hash, self.name, "server", answer), *sent)
        self.last = (request, reply)
        return reply

    def accept(self, plan: Plan) -> None:
        """P-2, with section 5's changes."""
        body, floors, members = plan.body, self.pinned.floors, self.pinned.keys.keys() - {"server"}
        require(plan.layout_holds(), "P-1.6", "server", "layout")
        require(body["spec"] == V, "P-2.1", "server", "another version")
        sound = plan.cohort == sorted(set(plan.cohort)) and self.name in plan.cohort and members >= set(plan.cohort)
        require(sound and body["roster"] == self.pinned.roster, "P-2.2", "server", "roster or cohort")
        require(body["model"] == self.pinned.model, "P-2.3", "server", "another model")
        require(plan.graph_holds() and plan.min_survivors >= 3, "P-2.4", "server", "graph or thresholds")
        require(body["protocol"] == floors["protocol"], "P-2.6", "server", "another protocol")
        self.sheets = sheets_of(plan)
        ours = len(self.vector) == plan.size
        require(ours and plan.ring_holds() and self.sheets.holds, "P-2.5", "server", "headroom, ring, clip or layout")
        alone = body["max_corrupt"] == 0 or floors["shared_key"]
        quiet = not floors["published"] or not plan.malicious
        strong = alone and quiet and (plan.malicious or floors["threat_model"] != "malicious-server")
        strong = strong and body["max_corrupt"] >= floors["max_corrupt"] and len(plan.cohort) >= floors["cohort"]
        strong = strong and plan.min_survivors >= floors["min_survivors"] and plan.noise_reaches(floors["noise"])
        require(strong, "P-2.6", "server", "below the floors")
        place = (body["round"], body["attempt"])
        require(min(place) > 0 and place > self.pinned.begun.get(body["run"], ()), "P-2.7", "server", "no later plan")
        self.plan, self.run, self.pinned.begun[body["run"]] = plan, body["run"], place

    @property
    def pin(self) -> Pin:
        return self.pinned.keyed.get(self.run, Pin())

    @pin.setter
    def pin(self, pin: Pin) -> None:
        self.pinned.keyed[self.run] = pin

    def deal(self, body: dict, chunks: list[bytes]) -> list:
        epoch, plan, members = body["epoch"], self.plan.body, sorted(self.pinned.sealing)
        new = epoch > self.pin.epoch or (epoch == self.pin.epoch and self.pin.dealing is None)
        require(new and epoch < 2**32, "E-3.1", "server", "there was a key of this epoch or a later one")
        secret = self.rand(32)
        parcels = [seal(self.pinned.sealing[v], secret, "he-key", *bound(plan, epoch), v) for v in members]
        dealing = {"run": self.run, "epoch": epoch, "protocol": plan["protocol"], "roster": plan["roster"]}
        dealing |= {"parcels": merkle_root(parcels), "check": key_check(self.key_of(secret, epoch))}
        self.pin = Pin(epoch, digest("he-dealing", self.name, cbor(dealing)))
        return [dealing, *parcels]

    def key_of(self, secret: bytes, epoch: int):
        return self.sheets.scheme.key(derive(secret, "he-secret-key", *bound(self.plan.body, epoch), length=64))

    def open(self, delivery: dict) -> None:
        """E-3: the key of a delivery; it is the pinned one from then on."""
        dealer, plan, members = delivery["dealer"], self.plan.body, sorted(self.pinned.sealing)
        require(dealer in members and len(members) <= 1024, "E-3.2", "server", "a stranger deals, or to too many")
        part, key = delivery["dealing"], self.pinned.keys[dealer]
        claimed = said(part, "plan") or b"none"  # of the attempt in which the key was dealt
        dealing = opened(part, "keys", claimed, dealer, "server", key, REPLIES["keys"], carrier="server")
        epoch = dealing["epoch"]
        for_us = (dealing["run"], epoch, dealing["protocol"], dealing["roster"]) == bound(plan, epoch)
        require(for_us, "E-3.2", "server", "dealt for another run, protocol or roster")
        require(1 <= epoch < 2**32, "E-3.2", dealer, "no epoch")
        root = path_root(delivery["parcel"], members.index(self.name), len(members), delivery["path"])
        require(root == dealing["parcels"], "E-3.2", "server", "not the box that the dealer signed")
        own, _ = keypair(derive(self.key, "member-sealing"))
        with blame("E-3.3", dealer):
            secret = unseal(own, delivery["parcel"], "he-key", *bound(plan, epoch), self.name)
        he_key = self.key_of(secret, epoch)
        require(key_check(he_key) == dealing["check"], "E-3.3", dealer, "another key than it committed to")
        name = digest("he-dealing", dealer, cbor(dealing))
        allowed = epoch > self.pin.epoch or (epoch == self.pin.epoch and self.pin.dealing in (None, name))
        other = self.due == ("sum",) and name != self.pin.dealing
        require(allowed and not other, "E-3.4", "server", "an earlier epoch, or another key than the one in use")
        self.secret, self.he_key = secret, he_key
        self.pin = self.pin if self.pin.dealing == name else Pin(epoch, name)

    def upload(self, body: dict, chunks: list[bytes]) -> list:
        update = self.vector[: self.plan.layout["update"]]
        require(not update or update not in self.pinned.answered, "E-4.4", self.name, "this update was uploaded before")
        self.open(body["delivery"])
        require(not self.pin.spoiled, "E-5.6", "server", "under this key a sum was not that of its list")
        sheets, seeds = self.sheets.fill(self.vector, self.secret, self.name), self.seeds
        sent = [self.sheets.scheme.encrypt(self.he_key, sheet, next(seeds) if seeds else None) for sheet in sheets]
        self.pinned.answered.append(update)  # E-4.4
        return [{"dealing": self.pin.dealing, "digests": digests(sent)}, *sent]

    def read(self, body: dict, chunks: list[bytes]) -> list:
        plan, survivors, counters = self.plan, body["survivors"], self.plan.layout["counters"]
        sound = survivors == sorted(set(survivors)) and set(survivors) <= set(plan.cohort)
        require(sound and len(survivors) >= plan.min_survivors, "E-5.1", "server", "survivors")
        self.open(body["delivery"])
        check_chunks("E-5.2", chunks, body["digests"], self.sheets.chunks, "server")
        allowed = 2048 // len(self.pinned.sealing)
        require(self.pin.readings < allowed, "E-5.6", "server", "as many sums were read under this key as may be")
        self.pin = replace(self.pin, readings=self.pin.readings + 1)
        try:
            with blame("E-5.3", "server"):
                ciphertexts = [self.sheets.scheme.load(chunk) for chunk in chunks]
            with blame("E-5.4", "server"):
                sheets = [self.sheets.scheme.decrypt(self.he_key, it) for it in ciphertexts]
                *total, here, zero, other_zero = self.sheets.read(sheets, self.secret, survivors)
            sums = total[plan.layout["update"] :]
            within = all(0 <= x <= here * it["bound"] for x, it in zip(sums, counters, strict=True))
            holds = (here, zero, other_zero) == (len(survivors), 0, 0) and within and sums[0] >= here
            require(holds, "E-5.5", "server", "checks, or a counter out of bounds")
        except Refused:
            self.pin = replace(self.pin, spoiled=True)  # E-5.6
            raise
        self.sum, names = total, [it["name"] for it in counters]
        published = {name: x for name, x in zip(names, sums, strict=True) if name in self.pinned.floors["published"]}
        return [{"model": self.following(total), "published": published}]


# ---- The server ------------------------------------------------------------------------------------------------------


@dataclass
class Dealt:
    """A dealing as the server relays it."""

    dealer: str
    dealing: bytes
    parcels: list[bytes]
    name: bytes


class Server:
    """Makes the requests of one attempt, receives replies, ends phases. It holds no key.

    Args:
        members: everyone on the roster, by name.
        dealt: the run's key of this epoch, if there is one; else it is asked for.
    """

    def __init__(self, plan: dict, key: bytes, keys: dict[str, bytes], epoch: int, dealt: Dealt | None):
        self.plan, self.key, self.keys, self.epoch, self.dealt = Plan(plan), key, keys, epoch, dealt
        self.members, self.sheets = sorted(keys.keys() - {"server"}), sheets_of(self.plan)
        self.phase, self.replied, cohort = 0 if dealt is None else 1, set(), self.plan.cohort
        self.asked = [cohort[(epoch - 1) % len(cohort)]] if dealt is None else list(cohort)  # E-3.1
        self.uploads: dict[str, list[bytes]] = {}
        self.adopted: dict[str, dict] = {}

    def requests(self) -> dict[str, bytes]:
        phase, chunks = PHASES[self.phase], self.sum if self.phase == 2 else []
        bodies = {v: {"plan": self.plan.body} | self.told(v) for v in self.asked}
        part = {v: envelope(self.key, phase, self.plan.hash, "server", v, body) for v, body in bodies.items()}
        return {v: frames(part[v], *chunks) for v in self.asked}

    def told(self, v: str) -> dict:
        if self.phase == 0:
            return {"epoch": self.epoch}
        at, parcels = self.members.index(v), self.dealt.parcels
        delivery = {"dealer": self.dealt.dealer, "dealing": self.dealt.dealing, "parcel": parcels[at]}
        delivery["path"] = merkle_path(parcels, at)
        total = {"survivors": self.survivors, "digests": digests(self.sum)} if self.phase == 2 else {}
        return {"delivery": delivery} | total

    def receive(self, name: str, reply: bytes) -> None:
        """Take in one reply; a refused one changes nothing."""
        due = name in self.asked and name not in self.replied and self.phase < len(PHASES)
        require(due, "P-1.7", "network", "not asked, or a second reply")
        (part, *chunks), phase = unframe(reply), PHASES[self.phase]
        require(not chunks or phase != "sum", "P-1.1", "network", "chunks in a phase without")
        body = opened(part, phase, self.plan.hash, name, "server", self.keys[name], REPLIES[phase])
        (self.take_dealing, self.take_upload, self.take_adopted)[self.phase](name, body, part, chunks)
        self.replied.add(name)

    def take_dealing(self, name: str, body: dict, part: bytes, parcels: list[bytes]) -> None:
        due = bound(self.plan.body, self.epoch)
        require((body["run"], body["epoch"], body["protocol"], body["roster"]) == due, "E-3.2", name, "another run")
        whole = len(parcels) == len(self.members) and merkle_root(parcels) == body["parcels"]
        require(whole, "E-3.2", "network", "not the boxes of the signed dealing")
        require(all(len(parcel) == PARCEL for parcel in parcels), "E-3.2", name, "length of a box")
        self.dealt = Dealt(name, part, parcels, digest("he-dealing", name, cbor(body)))

    def take_upload(self, name: str, body: dict, part: bytes, chunks: list[bytes]) -> None:
        require(body["dealing"] == self.dealt.name, "E-4.1", name, "under another key")
        check_chunks("E-4.2", chunks, body["digests"], self.sheets.chunks, name)
        with blame("E-4.3", name):
            for chunk in chunks:
                self.sheets.scheme.load(chunk)
        self.uploads[name] = chunks

    def take_adopted(self, name: str, body: dict, part: bytes, chunks: list[bytes]) -> None:
        most = {it["name"]: it["bound"] * len(self.uploads) for it in self.plan.layout["counters"]}
        within = all(number <= most.get(it, -1) for it, number in body["published"].items())
        require(within, "E-6.2", name, "publishes what cannot be")
        self.adopted[name] = body

    def end_phase(self) -> None:
        """The deadline: who has not replied is silent from here on."""
        if self.phase == 0:
            require(self.dealt is not None, "E-3.1", self.asked[0], "deals no key; the next epoch asks another client")
            self.asked = list(self.plan.cohort)
        elif self.phase == 1:
            require(len(self.uploads) >= self.plan.min_survivors, "E-4.5", "the cohort", "too few uploads")
            self.asked = self.survivors = sorted(self.uploads)
            self.sum = [self.sheets.scheme.total(list(column)) for column in zip(*self.uploads.values(), strict=True)]
        else:
            agreed = self.adopted and self.said_by(self.most_said()) > len(self.survivors) / 2
            require(bool(agreed), "E-6.1", "the cohort", "not the same from more than half of the survivors")
        self.phase, self.replied = self.phase + 1, set()

    def aggregate(self) -> tuple[bytes, dict[str, int]]:
        """What the server knows of the sum: the following model's hash, and what was published."""
        said = self.most_said()
        return said["model"], said["published"]

    def said_by(self, said: dict) -> int:
        return list(self.adopted.values()).count(said)

    def most_said(self) -> dict:
        return max(self.adopted.values(), key=self.said_by)
