"""The small federation of :mod:`secagg_kit` under a shared key: rounds in a row, and a server that can be stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from secagg_kit import Federation, identity

from fedvlm_secure.encoding.codec import Decoded
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.secagg.client import Turn
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.client import BfvClient, CkksClient, EncryptedClient
from fedvlm_secure.secagg.encrypted.custody import Held, key_for
from fedvlm_secure.secagg.encrypted.parameters import BFV
from fedvlm_secure.secagg.encrypted.server import EncryptedServer
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import Envelope, Expected, join, seal, split
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.policy import Policy
from fedvlm_secure.secagg.session import SERVER, KeyPin, Memory, SealedSum

MODEL = digest("test-model")
THREE_CHUNKS = 9000  # coordinates, with one to a slot


def following(decoded: Decoded) -> bytes:
    """The model that follows from a sum."""
    return digest("following-model", decoded.mean.tobytes())


@dataclass
class EncryptedFederation(Federation):
    """As :class:`Federation`, under ``bfv`` or ``ckks``; ``counters`` come after the weight."""

    max_corrupt: int = 0
    protocol: str = BFV
    counters: tuple[Counter, ...] = ()
    published: tuple[str, ...] = ()
    round: int = 3
    attempt: int = 2
    model: bytes = MODEL
    carried: bytes = b""

    @cached_property
    def plan(self) -> Plan:
        counters = (Counter("weight", self.weight_max), *self.counters)
        return propose(
            run=bytes(16),
            round=self.round,
            attempt=self.attempt,
            cohort=self.names,
            layout=VectorLayout(self.dimension, counters, self.value_bits, self.weight_max),
            clip_norm=float(np.sqrt(self.dimension)) or 1.0,
            roster=self.roster.hash,
            model=self.model,
            protocol=self.protocol,
            max_corrupt=self.max_corrupt,
            threat_model=self.threat_model,
            threshold=self.threshold,
            min_survivors=self.min_survivors,
            rounding=self.rounding,
        )

    @property
    def policy(self) -> Policy:
        return Policy(self.threat_model, self.max_corrupt, 3, 3, (self.protocol,), published=self.published)

    def party(self, name: str, **changes: Any):
        return super().party(name, **({"model": self.model, "following": following} | changes))

    def client(self, name: str, **changes: Any) -> EncryptedClient:
        kind = BfvClient if self.protocol == BFV else CkksClient
        return kind(self.party(name, **changes), self.updates[name], self.memories.get(name))

    def server(self, plan: Plan | None = None) -> EncryptedServer:
        return EncryptedServer(self.plan if plan is None else plan, identity(SERVER), self.roster, self.carried)

    def table(self) -> "EncryptedTable":
        return EncryptedTable(self, self.server(), {name: self.client(name) for name in self.names})

    def after(self, table: "EncryptedTable", **changes: Any) -> "EncryptedFederation":
        """The next round or attempt: memories and key carried over, everyone trained again."""
        memories = {name: client.memory for name, client in table.clients.items()}
        kept = {"carried": table.server.carried, "memories": memories, "seed": self.seed + 1}
        return replace(self, **(kept | changes))


@dataclass
class EncryptedTable:
    """One attempt in progress, and every reply in it."""

    federation: EncryptedFederation
    server: EncryptedServer
    clients: dict[str, EncryptedClient]
    replies: dict[str, dict[str, bytes]] = field(default_factory=lambda: {phase: {} for phase in m.PHASES})

    def play_until(self, phase: str, silent: Mapping[str, str] | None = None) -> "EncryptedTable":
        """Run whole phases, honestly, up to the start of ``phase``; ``silent`` says who leaves when."""
        while self.server.phase != phase:
            self.play_phase(silent)
            self.server.end_phase()
        return self

    def play_phase(self, silent: Mapping[str, str] | None = None) -> None:
        """The running phase, without its end."""
        for name, request in self.server.requests():
            leaves = (silent or {}).get(name)
            if leaves is None or m.PHASES.index(self.server.phase) < m.PHASES.index(leaves):
                reply = self.replies[self.server.phase][name] = self.clients[name].reply(request)
                self.server.receive(name, reply)

    def finish(self, silent: Mapping[str, str] | None = None) -> SealedSum:
        self.play_until("done", silent)
        return self.server.aggregate()

    def finish_rightly(self, silent: Mapping[str, str] | None = None) -> SealedSum:
        sealed = self.finish(silent)
        for client in self.clients.values():
            if client.sum is not None:
                self.check(client.sum.total, sealed.survivors)
        return sealed

    def check(self, total: np.ndarray, survivors: tuple[str, ...]) -> None:
        """``total`` is what the survivors encode: exactly, or under CKKS up to a billionth of the range."""
        federation, layout = self.federation, self.federation.plan.layout
        if federation.protocol == BFV:
            np.testing.assert_array_equal(total, federation.expected(survivors))
            return
        exact, tail = weighed(federation, survivors)
        np.testing.assert_array_equal(total[layout.update :], tail)
        edge = 1e-9 * layout.weight_max * layout.levels
        np.testing.assert_allclose(total[: layout.update], exact, rtol=0, atol=edge)

    def request(self, name: str) -> bytes:
        return dict(self.server.requests())[name]

    def truth(self, name: str, form: type) -> tuple[Any, list[bytes]]:
        """The body of the honest request to ``name``, and its chunks."""
        return opened(self.request(name), form)


def opened(message: bytes, form: type) -> tuple[Any, list[bytes]]:
    """The body of a message, unverified, and the chunks behind it."""
    envelope, *chunks = (bytes(frame) for frame in split(message))
    return unpack(form, unpack(Envelope, envelope).body), chunks


def says(
    federation: EncryptedFederation, phase: str, client: str, body: object, chunks: list[bytes] | None = None
) -> bytes:
    """A message to ``client`` under the server's true signature, whatever it says."""
    return join([seal(identity(SERVER), phase, federation.plan.hash, SERVER, client, body), *(chunks or [])])


def held(table: EncryptedTable, name: str) -> Held:
    """The key as ``name`` holds it: what a colluder would give away."""
    federation, plan = table.federation, table.federation.plan
    delivery = table.server._request(name).delivery
    party = federation.party(name)
    expected = Expected(m.INPUT, SERVER, name, federation.roster.server, plan.hash, plan.place)
    turn = Turn(party, plan, federation.updates[name], b"", expected, Memory())
    return key_for(turn, plan, delivery, sheet_of(plan).scheme)


def weighed(federation: EncryptedFederation, survivors: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What CKKS sums: the weighted updates in steps, and counters and checks."""
    parts = [federation.plan.codec.weigh(federation.updates[name]) for name in survivors]
    return sum(part[0] for part in parts), np.sum([part[1] for part in parts], axis=0)


def pin_of(client: EncryptedClient) -> KeyPin | None:
    """Which key a client uses in the run."""
    return client.memory.keys.get(bytes(16).hex())
