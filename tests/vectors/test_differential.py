"""The reference implementation and the package in one attempt, and on the same random inputs."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import reference
import reference_primitives
import reference_server
from hypothesis import given, settings
from hypothesis import strategies as st
from packaged import Server

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import ProtocolError, RoundAbortedError
from fedvlm_secure.primitives.entropy import random_bytes
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import combine, split
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import WireError, decode, encode
from fedvlm_secure.secagg.graph import Sparse, sparse
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.policy import Party, Policy, check_plan
from fedvlm_secure.secagg.roster import simulated
from fedvlm_secure.secagg.session import SERVER, Memory

MODEL = digest("model")


def identity(name: str) -> Identity:
    return Identity(Secret(digest("identity", name)))


class Attempt:
    """One plan, and for every client a vector and sessions of either implementation."""

    def __init__(self, names: list[str], size: int, seed: int, **shape) -> None:
        self.roster = simulated(identity(SERVER), {name: identity(name) for name in names})
        self.plan = propose(
            run=bytes(16),
            round=1,
            attempt=1,
            cohort=tuple(sorted(names)),
            layout=VectorLayout(size, (Counter("weight", 50), Counter("correct", 1000)), 12, 50),
            clip_norm=1.0,
            roster=self.roster.hash,
            model=MODEL,
            rounding="nearest",
            **shape,
        )
        random = np.random.default_rng(seed)
        self.updates = {
            name: Update(
                random.standard_normal(size).astype(np.float32) / max(size, 1) ** 0.5,
                {"weight": int(random.integers(1, 51)), "correct": int(random.integers(0, 1001))},
            )
            for name in names
        }

    def vector(self, name: str) -> list[int]:
        return self.plan.codec.encode(self.updates[name]).integers[:-3].tolist()

    def packaged(self, name: str) -> PairwiseClient:
        policy = Policy(self.plan.threat_model, self.plan.max_corrupt, 3, 2)
        return PairwiseClient(Party(name, identity(name), self.roster, policy, MODEL), self.updates[name])

    def referenced(self, name: str) -> reference.Client:
        floors = {"threat_model": self.plan.threat_model, "max_corrupt": 0, "cohort": 3}
        floors |= {"min_survivors": 2, "noise": 0.0}
        pinned = reference.Pinned(dict(self.roster.keys()), self.roster.hash, MODEL, floors)
        return reference.Client(name, identity(name).seed.reveal(), pinned, self.vector(name))

    def servers(self) -> list:
        key = identity(SERVER)
        body = reference_primitives.uncbor(pack(self.plan))
        return [
            Server(PairwiseServer(self.plan, key, self.roster)),
            reference_server.Server(body, key.seed.reveal(), dict(self.roster.keys())),
        ]

    def run(self, server, by_reference: set[str], silent: Mapping[str, str]) -> None:
        """The attempt under this server ends with the survivors' exact sum, or with an abort where too few are left."""
        clients = {
            name: self.referenced(name) if name in by_reference else self.packaged(name) for name in self.plan.cohort
        }
        gone: set[str] = set()
        try:
            for phase in reference.PHASES:
                gone |= {name for name in silent if silent[name] == phase}
                for name, request in dict(server.requests()).items():
                    if name not in gone:
                        server.receive(name, clients[name].reply(request))
                server.end_phase()
            total = server.aggregate()
        except (RoundAbortedError, reference.Refused) as error:
            if error.party != "the cohort" or len(self.plan.cohort) - len(gone) >= self.plan.min_survivors:
                raise
            return
        assert set(server.survivors) >= set(self.plan.cohort) - gone
        expected = [sum(column) for column in zip(*map(self.vector, server.survivors), strict=True)]
        assert total == expected


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_mixed_attempts(data):
    """Up to six clients, each of either implementation, under a server of either, with any dropouts."""
    names = [f"site-{number}" for number in range(data.draw(st.integers(3, 6)))]
    curious = data.draw(st.booleans())
    attempt = Attempt(
        names,
        data.draw(st.integers(0, 40)),
        data.draw(st.integers(0, 2**32)),
        max_corrupt=data.draw(st.integers(0, 1)),
        threat_model="honest-but-curious" if curious else "malicious-server",
    )
    by_reference = set(data.draw(st.lists(st.sampled_from(names), unique=True)))
    silent = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(reference.PHASES), max_size=3))
    for server in attempt.servers():
        attempt.run(server, by_reference, silent)


@pytest.mark.parametrize("which", [0, 1], ids=["package's server", "reference server"])
def test_vectors_of_several_chunks(which):
    attempt = Attempt(["aa", "b", "site-10"], reference.CHUNK + 1000, 1, max_corrupt=0)
    attempt.run(attempt.servers()[which], {"b"}, {"aa": "masked-input"})


@pytest.mark.parametrize("which", [0, 1], ids=["package's server", "reference server"])
def test_a_sparse_attempt(which):
    names = [f"site-{number}" for number in range(104)]
    attempt = Attempt(names, 3, 2, max_corrupt=4, threat_model="honest-but-curious", min_survivors=98)
    assert not attempt.plan.complete
    silent = dict(zip(names[::20], reference.PHASES, strict=False))
    attempt.run(attempt.servers()[which], set(names[::7]), silent)


@pytest.mark.parametrize("clients", [101, 150, 200, 333, 1000])
@pytest.mark.parametrize(("corrupt", "dropped"), [(0.0, 0.05), (0.05, 0.05), (0.1, 0.0), (0.2, 0.1)])
def test_sparse_graphs_have_the_same_parameters(clients, corrupt, dropped):
    """The package computes in floats, rounded up; the reference implementation in fractions."""
    counts = int(corrupt * clients), int(dropped * clients)
    found = reference.sparse_graph(clients, *counts)
    assert sparse(clients, *counts) == (None if found is None else Sparse(*found))


def test_sparse_graphs_have_the_same_neighbours():
    names = [f"site-{number}" for number in range(150)]
    attempt = Attempt(names, 1, 0, max_corrupt=7, threat_model="honest-but-curious", min_survivors=143)
    plan = reference.Plan(reference_primitives.uncbor(pack(attempt.plan)))
    for name in names:
        assert plan.around(name) == {name, *attempt.plan.neighbours(name)}


TREE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 2**64 - 1), st.binary(max_size=30), st.text(max_size=30)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)


@given(TREE)
def test_the_same_cbor(value):
    try:
        data = encode(value)
    except WireError:
        return  # nested more deeply than messages may be
    assert reference_primitives.cbor(value) == data
    assert reference_primitives.uncbor(data) == value


@given(TREE, st.data())
def test_the_same_cbor_is_refused(value, data):
    """Bytes changed, inserted or cut: both decoders take them, for the same value, or neither does."""
    encoded = bytearray(reference_primitives.cbor(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    match data.draw(st.sampled_from(("change", "insert", "cut"))):
        case "change":
            encoded[at] = data.draw(st.integers(0, 255))
        case "insert":
            encoded.insert(at, data.draw(st.integers(0, 255)))
        case _:
            del encoded[at:]
    outcomes = []
    for decoder in (decode, reference_primitives.uncbor):
        try:
            outcomes.append(decoder(bytes(encoded)))
        except ValueError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=30))
def test_the_same_trees(leaves):
    tree = MerkleTree(leaves)
    assert reference_primitives.merkle_root(leaves) == tree.root
    for index, leaf in enumerate(leaves):
        path = reference_primitives.merkle_path(leaves, index)
        assert path == tree.path(index)
        assert reference_primitives.path_root(leaf, index, len(leaves), path) == tree.root
        assert reference_primitives.path_root(leaf, index, len(leaves), path + bytes(32)) == b""


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6))
def test_shares_of_either_recover_the_seed_with_the_other(seed, threshold):
    places = {f"c{number}": number for number in range(1, 7)}
    dealt = reference_primitives.shares(seed, threshold, places, random_bytes)
    some = dict(list(dealt.items())[-threshold:])
    assert combine({places[name]: Secret(share) for name, share in some.items()}).reveal() == seed
    points = {point: share.reveal() for point, share in split(Secret(seed), threshold, [2, 3, 4, 5, 6, 9]).items()}
    assert reference_primitives.recover(dict(list(points.items())[:threshold])) == seed


NUMBERS = (0, 1, 2, 3, 4, 5, 6, 2**63)
CHANGES = {
    "max_corrupt": NUMBERS,
    "degree": NUMBERS,
    "threshold": NUMBERS,
    "min_survivors": NUMBERS,
    "round": NUMBERS,
    "attempt": NUMBERS,
    "ring_bits": (0, 8, 16, 24, 32, 40, 64, 72),
    "threat_model": ("malicious-server", "honest-but-curious", ""),
    "protocol": ("pairwise", "plain"),
    "rounding": ("stochastic", "nearest", "down"),
    "noise": (b"\x80" + bytes(7), b"\x3f\xf8" + bytes(6), b"\x7f\xf8" + bytes(6), b"\xbf\xf0" + bytes(6), b"\xff" * 8),
    "clip": (bytes(8), b"\x80" + bytes(7), b"\x7f\xf0" + bytes(6), b"\xff" * 8, bytes(7) + b"\1", b"\x40" + bytes(7)),
}


@settings(max_examples=200)
@given(st.lists(st.sampled_from(sorted(CHANGES)), unique=True, max_size=3), st.data())
def test_the_same_plans_are_accepted(names, data):
    """Any combination of good and bad fields; where several are bad, either may name another clause."""
    changes = {name: data.draw(st.sampled_from(CHANGES[name])) for name in names}
    attempt = Attempt(["aa", "b", "c", "d", "e"], 4, 0, max_corrupt=1)
    party = Party("b", identity("b"), attempt.roster, Policy("honest-but-curious", 1, 3, 3), MODEL)
    plan = replace(attempt.plan, **changes)
    floors = {"threat_model": "honest-but-curious", "max_corrupt": 1, "cohort": 3, "min_survivors": 3, "noise": 0.0}
    pinned = reference.Pinned(dict(attempt.roster.keys()), attempt.roster.hash, MODEL, floors, {plan.run: (1, 0)})
    client = reference.Client("b", identity("b").seed.reveal(), pinned, attempt.vector("b"))
    accepted = []
    try:
        client.accept(reference.Plan(reference_primitives.uncbor(pack(plan))))
        accepted.append("reference")
    except reference.Refused:
        pass
    try:
        check_plan(plan, party, Memory({plan.run.hex(): (1, 0)}), "keys")
        if plan.protocol == "pairwise":
            accepted.append("package")
    except ProtocolError:
        pass
    assert accepted in ([], ["reference", "package"])
    assert accepted or changes


def test_a_plan_is_read_alike():
    attempt = Attempt(["aa", "b", "c"], 5, 0, max_corrupt=0)
    body = reference_primitives.uncbor(pack(attempt.plan))
    assert reference.Plan(body).hash == attempt.plan.hash
    assert unpack(Plan, reference_primitives.cbor(body)) == attempt.plan
