"""The server of the pairwise protocol as SPEC.md says it; see reference.py."""
# ruff: noqa: INP001, D102

import hashlib

from reference import PHASES, REPLIES, Plan, blame, envelope, frames, opened, parcel_size, plus, require, unframe
from reference_primitives import derive, digest, keypair, merkle_path, merkle_root, recover, seal, signed, unseal


class Server:
    """Makes the requests of one attempt, receives replies, ends phases, removes the masks from the sum."""

    def __init__(self, plan: dict, key: bytes, keys: dict[str, bytes]):
        self.plan, self.key, self.keys = Plan(plan), key, keys
        self.around = {v: self.plan.around(v) for v in self.plan.cohort}
        self.phase, self.asked, self.replied = 0, list(self.plan.cohort), set()
        self.key_messages, self.published, self.parcel_lists, self.dealt = {}, {}, {}, {}
        self.uploads, self.consents, self.revealed = {}, {}, {}

    def requests(self) -> dict[str, bytes]:
        bodies = (lambda v: self.plan.body, self.key_list, self.deliveries, self.survivor_list, self.unmask_request)
        phase, body = PHASES[self.phase], bodies[self.phase]
        return {v: frames(envelope(self.key, phase, self.plan.hash, "server", v, body(v))) for v in self.asked}

    def key_list(self, v: str) -> dict:
        near = {u: part for u, part in self.key_messages.items() if u in self.around[v]}
        return {"keys": near, "others": {u: it for u, it in self.digests.items() if u not in near}}

    def deliveries(self, v: str) -> dict:
        parcels = {}
        for u in self.around[v] & self.dealt.keys() - {v}:
            path = merkle_path(list(self.dealt[u].values()), list(self.dealt[u]).index(v))
            parcels[u] = {"parcel_list": self.parcel_lists[u], "parcel": self.dealt[u][v], "path": path}
        return {"parcels": parcels}

    def survivor_list(self, v: str) -> dict:
        return {"survivors": self.survivors}

    def unmask_request(self, v: str) -> dict:
        consents = dict(sorted(self.consents.items())[: self.plan.quorum])
        return {"dropped": [u for u in self.dropped if u in self.around[v]], "consents": consents}

    def receive(self, name: str, reply: bytes) -> None:
        """Take in one reply; a refused one changes nothing."""
        require(name in self.asked and name not in self.replied, "P-1.7", "network", "not asked, or a second reply")
        (part, *chunks), phase = unframe(reply), PHASES[self.phase]
        require(not chunks or phase in ("shares", "masked-input"), "P-1.1", "network", "chunks in a phase without")
        body = opened(part, phase, self.plan.hash, name, "server", self.keys[name], REPLIES[phase])
        takers = (self.take_keys, self.take_parcels, self.take_upload, self.take_consent, self.take_shares)
        takers[self.phase](name, body, part, chunks)
        self.replied.add(name)

    def take_keys(self, name, body, part, chunks) -> None:
        with blame("P-3.1", name):
            seal(body["share_key"], b"", "is this key usable?")
            seal(body["mask_key"], b"", "is this key usable?")
        self.key_messages[name], self.published[name] = part, body

    def take_parcels(self, name, body, part, chunks) -> None:
        recipients = self.plan.recipients(name, self.key_messages)
        require(body["key_root"] == self.key_root, "P-4.4", name, "another key list")
        require(len(chunks) == len(recipients), "P-4.3", "network", "not one parcel for each neighbour")
        require(merkle_root(chunks) == body["parcels"], "P-4.2", "network", "not the parcels of the signed root")
        sized = [len(parcel) for parcel in chunks] == [parcel_size(name, v) for v in recipients]
        require(sized, "P-4.2", name, "length of a parcel")
        self.parcel_lists[name], self.dealt[name] = part, dict(zip(recipients, chunks, strict=True))

    def take_upload(self, name, body, part, chunks) -> None:
        lengths, width = [len(chunk) for chunk in self.plan.chunks([0] * self.plan.size)], self.plan.bits // 8
        require(len(body["digests"]) == len(lengths), "P-5.3", name, "not the layout's length")
        intact = body["digests"] == [hashlib.sha256(chunk).digest() for chunk in chunks]
        require(intact, "P-5.3", "network", "not the chunks of the signed digests")
        require([len(chunk) for chunk in chunks] == lengths, "P-5.3", name, "chunks of another length")
        data = b"".join(chunks)
        self.uploads[name] = [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]

    def take_consent(self, name, body, part, chunks) -> None:
        consented = digest("consent", self.plan.hash, self.key_root, self.survivors)
        require(signed(self.keys[name], "survivor-list", consented, body["signature"]), "P-6.2", name, "another list")
        self.consents[name] = body["signature"]

    def take_shares(self, name, body, part, chunks) -> None:
        asked = [self.around[name] & set(self.survivors), self.around[name] & set(self.dropped)]
        require([body["self_mask"].keys(), body["mask_seed"].keys()] == asked, "P-7.4", name, "not what was asked for")
        for u in (asked[0] | asked[1]) - {name}:  # of its own share there is no check
            at, share = (0, body["self_mask"][u]) if u in asked[0] else (32, body["mask_seed"][u])
            check = self.plan.checks(u, name, (share, share))[at : at + 32]
            require(check == self.dealt[u][name][at : at + 32], "P-7.7", name, "not the share that was dealt")
        self.revealed[name] = body

    def end_phase(self) -> None:
        """The deadline: who has not replied is silent from here on."""
        plan = self.plan
        here = (self.key_messages, self.dealt, self.uploads, self.consents, self.revealed)[self.phase].keys()
        most, recoverable = (
            len(here) >= plan.min_survivors,
            all(len(self.around[v] & here) >= plan.t for v in self.dealt),
        )
        enough = (most, most, most and recoverable, len(here) >= plan.quorum, recoverable)[self.phase]
        clause = ("P-3.3", "P-5.1", "P-5.4", "P-7.3", "P-7.6")[self.phase]
        require(enough, clause, "the cohort", "too few are left")
        if self.phase == 0:
            self.digests = {v: digest("key-message", part) for v, part in self.key_messages.items()}
            self.key_root = plan.key_root(self.digests)
        if self.phase == 2:
            self.survivors, self.dropped = sorted(self.uploads), sorted(self.dealt.keys() - self.uploads.keys())
        near = plan.least_around if self.phase < 2 else 0  # with fewer neighbours a client would refuse (P-3.3, P-5.1)
        self.asked = sorted(v for v in here if len(self.around[v] & here) >= near)
        self.phase, self.replied = self.phase + 1, set()

    def aggregate(self) -> list[int]:
        """The sum of the survivors' vectors, without the checks."""
        plan, total = self.plan, [sum(column) for column in zip(*self.uploads.values(), strict=True)]
        for u in self.survivors:
            seed = self.recovered("self_mask", u)
            fit = derive(seed, "self-commitment", plan.hash, u) == self.published[u]["self_commitment"]
            require(fit, "P-7.7", u, "dealt shares of another self seed")
            total = plus(total, plan.self_mask(seed, u), -1)
        for u in self.dropped:
            seed = self.recovered("mask_seed", u)
            mask_key, public = keypair(derive(seed, "mask-key", plan.hash, u))
            require(public == self.published[u]["mask_key"], "P-7.7", u, "dealt shares of another mask seed")
            for v in self.around[u] & set(self.survivors):
                with blame("P-4.2", v):
                    box, context = self.dealt[v][u][1266:], (plan.hash, self.key_root, v, u)
                    pair_seed = plan.pair_seed(seed, u, v) if u < v else unseal(mask_key, box, "pair-seed", *context)
                total = plus(total, plan.pair_mask(pair_seed, v, u), -1)
        half = 2 ** (plan.bits - 1)
        *sums, uploads, zero, other_zero = ((x + half) % 2**plan.bits - half for x in total)
        bounds = [counter["bound"] for counter in plan.layout["counters"]]
        counters = sums[plan.layout["update"] :]
        within = counters[0] >= uploads and all(0 <= x <= uploads * m for x, m in zip(counters, bounds, strict=True))
        holds = (uploads, zero, other_zero) == (len(self.uploads), 0, 0) and within
        require(holds, "P-8.1", "the cohort", "checks, or a counter out of bounds")
        return sums

    def recovered(self, kind: str, owner: str) -> bytes:
        """A seed from t shares; the owner's own, of which there is no check, only where the others are too few."""
        holders = sorted(self.around[owner] & self.revealed.keys(), key=lambda v: (v == owner, v))[: self.plan.t]
        places = self.plan.places(holders)
        with blame("P-7.7", owner):
            return recover({places[v]: self.revealed[v][kind][owner] for v in holders})
