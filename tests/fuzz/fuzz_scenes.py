"""Rounds in progress, one for each phase: a server and a client that expect their next message, and genuine ones."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
from secagg_kit import Federation, identity

from fedvlm_secure.secagg import plan as planning
from fedvlm_secure.secagg import server as serving
from fedvlm_secure.secagg import upload as uploading
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.graph import Sparse
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plain import PlainClient, PlainServer
from fedvlm_secure.secagg.round import OnFault, run_round, stop
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import SERVER, RingSum

Sessions = tuple[type[ClientSessionBase], type[ServerSessionBase]]

PAIRWISE: Sessions = (PairwiseClient, PairwiseServer)
PLAIN: Sessions = (PlainClient, PlainServer)
# Cohorts small enough to fuzz: the toy graph takes over above six clients that need not fear a malicious server.
COHORTS: tuple[dict[str, Any], ...] = (
    {"clients": 5, "threat_model": "malicious-server"},
    {"clients": 6, "threat_model": "malicious-server", "dimension": 1},
    {"clients": 6, "threat_model": "honest-but-curious", "max_corrupt": 2},
    {"clients": 9, "threat_model": "honest-but-curious", "min_survivors": 7},
)


def _toy_graph(clients: int, max_corrupt: int, max_dropped: int) -> Sparse:
    return Sparse(degree=6, threshold=3)


@contextmanager
def small_scale() -> Iterator[None]:
    """A sparse graph of degree 6 above six clients, and uploads in chunks of 16 values: toys, to reach every branch."""
    with (
        mock.patch.object(planning, "SPARSE_ABOVE", 6),
        mock.patch.object(planning, "sparse", _toy_graph),
        mock.patch.object(serving, "CHUNK", 16),
        mock.patch.object(uploading, "CHUNK", 16),
    ):
        yield


@dataclass
class Scene:
    """One phase of one attempt, as saved by all parties in the middle of it.

    Attributes:
        me: the client between whom and the server messages are spoiled; it has not answered yet.
        request, reply: the genuine ones of this phase.
        server_state, client_states: what the parties saved.
        server, client: the two that are fuzzed.
        places: see :func:`fuzz_envelopes.make_consistent`.
    """

    federation: Federation
    sessions: Sessions
    phase: str
    me: str
    server_state: bytes
    client_states: dict[str, bytes]
    places: dict[str, tuple[int, int]]

    def __post_init__(self) -> None:
        self.server, self.client = self.new_server(), self.new_client(self.me)
        self.request = dict(self.new_server().requests())[self.me]
        self.reply = self.new_client(self.me).reply(self.request)

    @property
    def title(self) -> str:
        """Protocol and phase."""
        return self.phase if self.sessions == PAIRWISE else "plain"

    def new_server(self) -> ServerSessionBase:
        """The server as it was saved."""
        return self.sessions[1].from_bytes(self.server_state, identity(SERVER))

    def new_client(self, name: str) -> ClientSessionBase:
        """A client as it was saved."""
        party = party_of(self.federation, name)
        return self.sessions[0].from_bytes(self.client_states[name], party, self.federation.updates[name])

    def play_on(self, on_fault: OnFault = stop) -> RingSum:
        """Play to the end, honestly, with the two sessions as they are now."""
        clients = {name: self.new_client(name) for name in self.client_states} | {self.me: self.client}
        return run_round(self.server, clients, lambda name, phase: name in clients, on_fault)

    def finish_rightly(self) -> None:
        """Play to the end and compare the sum."""
        total = self.play_on()
        np.testing.assert_array_equal(total.total, self.federation.expected(total.survivors))


def party_of(federation: Federation, name: str) -> Any:
    """The party, whose policy allows both protocols."""
    return replace(federation.party(name), policy=replace(federation.policy, protocols=("pairwise", "plain")))


def scenes(rng: random.Random, cohort: dict[str, Any]) -> list[Scene]:
    """One attempt of a new federation, saved in the middle of every phase; and one of `plain`."""
    federation = Federation(**{"dimension": 40, **cohort}, seed=rng.getrandbits(32))
    federation.plan = replace(federation.plan, run=rng.randbytes(16))
    plain = Federation(**{"dimension": 40, **cohort}, seed=rng.getrandbits(32))
    plain.plan = replace(plain.plan, run=rng.randbytes(16), protocol="plain")
    return [*_played(rng, federation, PAIRWISE), *_played(rng, plain, PLAIN)]


def _played(rng: random.Random, federation: Federation, sessions: Sessions) -> Iterator[Scene]:
    plan, names = federation.plan, list(federation.names)
    me = rng.choice(names)
    others = [name for name in names if name != me]
    phases = sessions[1].phases
    leaving = rng.sample(others, rng.randint(0, len(names) - plan.min_survivors))
    silent = {name: rng.choice(phases) for name in leaving}
    server = sessions[1](plan, identity(SERVER), federation.roster)
    clients = {name: _seasoned(federation, sessions[0], name) for name in names}
    for phase in phases:
        requests = [(name, request) for name, request in server.requests() if not _gone(phases, silent, name, phase)]
        rng.shuffle(requests)
        requests.sort(key=lambda item: item[0] == me)  # we come last
        saved_after = rng.randrange(len(requests))
        for number, (name, request) in enumerate(requests):
            if number == saved_after:
                states = {
                    it: client.to_bytes() for it, client in clients.items() if not _gone(phases, silent, it, phase)
                }
                yield Scene(federation, sessions, phase, me, server.to_bytes(), states, _places(server, me))
            server.receive(name, clients[name].reply(request))
        server.end_phase()


def _gone(phases: tuple[str, ...], silent: dict[str, str], name: str, phase: str) -> bool:
    return name in silent and phases.index(phase) >= phases.index(silent[name])


def _seasoned(federation: Federation, session: type[ClientSessionBase], name: str) -> ClientSessionBase:
    """A client that has begun an earlier attempt, which it remembers."""
    earlier = session(party_of(federation, name), federation.updates[name])
    plan = replace(federation.plan, attempt=1)
    first = session.steps[type(earlier._state)][0].phase
    earlier.reply(federation.says(first, name, plan, plan=plan))
    memory = replace(earlier.memory, answered=())  # in `plain` it has answered already
    return session(party_of(federation, name), federation.updates[name], memory)


def _places(server: ServerSessionBase, me: str) -> dict[str, tuple[int, int]]:
    if not isinstance(server, PairwiseServer) or server.phase != m.MASKED_INPUT:
        return {}
    return {
        sender: (recipients.index(me), len(recipients))
        for sender, recipients in server._recipients.items()
        if me in recipients
    }
