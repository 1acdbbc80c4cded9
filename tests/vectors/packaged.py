"""The package's sessions as the vectors drive them: with injected randomness."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from check_vectors import Implementation, draws_of, plan_body
from reference_primitives import cbor

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.roster import LIMITS, Roster
from fedvlm_secure.secagg.session import Memory


@contextmanager
def injected(rand: Callable[[int], bytes]) -> Iterator[None]:
    """The package draws from ``rand`` instead of the operating system."""
    before, entropy.random_bytes = entropy.random_bytes, rand
    try:
        yield
    finally:
        entropy.random_bytes = before


class Client:
    """A package client that draws a file's randomness."""

    def __init__(self, session: PairwiseClient, draws: list[str]) -> None:
        self.session = session
        self.draws = iter([bytes.fromhex(draw) for draw in draws])

    def reply(self, request: bytes) -> bytes:
        def rand(count: int) -> bytes:
            draw = next(self.draws)
            assert len(draw) == count
            return draw

        with injected(rand):
            return self.session.reply(request)


class Server:
    """A package server whose sum comes without the checks."""

    def __init__(self, session: PairwiseServer) -> None:
        self.session = session
        self.requests, self.receive, self.end_phase = session.requests, session.receive, session.end_phase

    @property
    def survivors(self) -> tuple[str, ...]:
        return self.session.survivors

    def aggregate(self) -> list[int]:
        return self.session.aggregate().total[:-3].tolist()


def roster_of(vector: dict) -> Roster:
    return unpack(Roster, base64.b64decode(vector["roster"]), LIMITS)


def identity(key: str) -> Identity:
    return Identity(Secret(bytes.fromhex(key)))


def client(vector: dict, name: str) -> Client:
    mine, floors = vector["clients"][name], vector["policy"]
    policy = Policy(
        floors["threat_model"],
        floors["max_corrupt"],
        floors["cohort"],
        floors["min_survivors"],
        least_noise_multiplier=floors["noise"],
    )
    party = Party(name, identity(mine["identity"]), roster_of(vector), policy, bytes.fromhex(vector["model"]))
    names = [counter["name"] for counter in vector["plan"]["layout"]["counters"]]
    update = Update(np.zeros(0, np.float32), dict(zip(names, mine["vector"], strict=True)))
    begun = {run: tuple(place) for run, place in vector["begun"].items()}
    return Client(PairwiseClient(party, update, Memory(begun)), draws_of(mine))


def server(vector: dict) -> Server:
    plan = unpack(Plan, cbor(plan_body(vector)))
    return Server(PairwiseServer(plan, identity(vector["server"]["identity"]), roster_of(vector)))


PACKAGE = Implementation(client, server, (ProtocolError, MisuseError))
