"""A small federation to test with: parties, a round that can be stopped anywhere, and a server that lies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import ProtocolError, RoundAbortedError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.envelope import join, seal, split
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.messages import PHASES
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.roster import CONSORTIUM, NEVER, Roster, member
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import SERVER, Memory, RingSum


def identity(name: str) -> Identity:
    return Identity(Secret(digest("test-identity", name)))


@dataclass
class Federation:
    """``clients`` parties named c00, c01, …, their updates, and one plan for them."""

    clients: int = 5
    dimension: int = 40
    rounding: str = "nearest"
    max_corrupt: int = 1
    threat_model: str = "malicious-server"
    threshold: int | None = None
    min_survivors: int | None = None
    value_bits: int = 12
    weight_max: int = 50
    seed: int = 0
    memories: dict[str, Memory] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(f"c{index:02d}" for index in range(self.clients))

    @cached_property
    def roster(self) -> Roster:
        members = tuple(member(name, identity(name)) for name in (*self.names, "stranger"))
        return Roster(identity(CONSORTIUM).public, 1, NEVER, identity(SERVER).public, members)

    @cached_property
    def plan(self) -> Plan:
        return propose(
            run=bytes(16),
            round=3,
            attempt=2,
            cohort=self.names,
            layout=VectorLayout(
                self.dimension, (Counter("weight", self.weight_max),), self.value_bits, self.weight_max
            ),
            clip_norm=float(np.sqrt(self.dimension)) or 1.0,
            roster=self.roster.hash,
            model=digest("test-model"),
            max_corrupt=self.max_corrupt,
            threat_model=self.threat_model,
            threshold=self.threshold,
            min_survivors=self.min_survivors,
            rounding=self.rounding,
        )

    @cached_property
    def updates(self) -> dict[str, Update]:
        random = np.random.default_rng(self.seed)
        return {
            name: Update(
                random.standard_normal(self.dimension).astype(np.float32),
                {"weight": int(random.integers(1, self.weight_max + 1))},
            )
            for name in self.names
        }

    @property
    def policy(self) -> Policy:
        return Policy(self.threat_model, self.max_corrupt, 3, 3)

    def party(self, name: str, **changes: Any) -> Party:
        return replace(Party(name, identity(name), self.roster, self.policy, digest("test-model")), **changes)

    def client(self, name: str, **changes: Any) -> PairwiseClient:
        return PairwiseClient(self.party(name, **changes), self.updates[name], self.memories.get(name))

    def server(self, plan: Plan | None = None) -> PairwiseServer:
        return PairwiseServer(self.plan if plan is None else plan, identity(SERVER), self.roster)

    def expected(self, survivors: tuple[str, ...]) -> np.ndarray:
        """The integer sum of what the survivors encode; under ``nearest`` rounding it is one fixed vector."""
        return sum(self.plan.codec.encode(self.updates[name]).integers for name in survivors)

    def table(self) -> "Table":
        return Table(self, self.server(), {name: self.client(name) for name in self.names})

    def identity_of(self, name: str) -> Identity:
        return identity(name)

    def says(self, phase: str, client: str, body: object, plan: Plan | None = None, sender: str = SERVER) -> bytes:
        """A message to ``client`` under the server's true signature, whatever it says."""
        plan = self.plan if plan is None else plan
        return join([seal(identity(sender), phase, plan.hash, sender, client, body)])


@dataclass
class Table:
    """One attempt in progress."""

    federation: Federation
    server: PairwiseServer
    clients: dict[str, PairwiseClient]

    def play_until(self, phase: str, silent: Mapping[str, str] | None = None) -> "Table":
        """Run whole phases, honestly, up to the start of ``phase``; ``silent`` says who leaves when."""
        while self.server.phase != phase:
            for name, request in self.server.requests():
                leaves = (silent or {}).get(name)
                if leaves is None or PHASES.index(self.server.phase) < PHASES.index(leaves):
                    self.server.receive(name, self.clients[name].reply(request))
            self.server.end_phase()
        return self

    def request(self, name: str) -> bytes:
        return dict(self.server.requests())[name]

    def finish(self) -> RingSum:
        return run_round(self.server, self.clients)

    def finish_rightly(self) -> RingSum:
        total = self.finish()
        np.testing.assert_array_equal(total.total, self.federation.expected(total.survivors))
        return total


def play(federation: Federation, silent: Mapping[str, str] | None = None) -> RingSum:
    """A whole attempt in which ``silent`` clients leave at the phase named."""

    def alive(name: str, phase: str) -> bool:
        leaves = (silent or {}).get(name)
        return leaves is None or PHASES.index(phase) < PHASES.index(leaves)

    table = federation.table()
    return run_round(table.server, table.clients, alive)


def refused(act: Callable[[], object], clause: str, party: str) -> ProtocolError:
    """``act`` raises a :class:`ProtocolError` for this clause and party."""
    with pytest.raises(ProtocolError) as refusal:
        act()
    assert not isinstance(refusal.value, RoundAbortedError)
    assert (refusal.value.clause, refusal.value.party) == (clause, party)
    return refusal.value


def chunks_of(upload: bytes) -> list[bytes]:
    """The chunks behind the envelope of an upload."""
    return [bytes(frame) for frame in split(upload)[1:]]
