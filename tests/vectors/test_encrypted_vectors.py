"""The reference implementation and the package against every file of protocols/encrypted/vectors."""

import ast
import base64
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tenseal.sealapi as seal
from packaged import identity, injected, roster_of

sys.path.append(str(Path(__file__).parents[2]))  # for `protocols`, whose modules must not meet those of `pairwise`

from protocols.encrypted import check_vectors, reference, reference_schemes
from protocols.encrypted.check_vectors import check_rejection, check_round, check_values, load, rejections, rounds
from protocols.encrypted.common import cbor

from fedvlm_secure.encoding.codec import Codec, Encoded, Update
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.secagg.encrypted import scheme
from fedvlm_secure.secagg.encrypted.client import BfvClient, CkksClient
from fedvlm_secure.secagg.encrypted.server import Carried, DealtKey, EncryptedServer
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.session import KeyPin, Memory

SPEC = Path(check_vectors.__file__).parent / "SPEC.md"
CHECKS = [1, 0, 0]

# What no single message can break: a client's own update, and what it does in its next attempt (`then` in the files).
NOT_IN_ONE_MESSAGE = {"E-4.4", "E-5.6"}


class Client:
    """A package client that encrypts a file's vector, under BFV with a file's randomness.

    A file has encoded integers or weighted steps, a session takes floats: encoding is left out.
    """

    def __init__(self, session, vector: list, d: int, secret: bytes, seeds: list[str]) -> None:
        self.session, self.vector, self.d, self.secret = session, vector, d, secret
        self.seeds = iter([list(struct.unpack("<8Q", bytes.fromhex(seed))) for seed in seeds])

    @property
    def sum(self) -> list:
        total = self.session.sum.total[:-3].tolist()
        return total[: self.d] + [int(number) for number in total[self.d :]]

    def reply(self, request: bytes) -> bytes:
        with injected(lambda count: self.secret[:count]), self.encoded(), self.seeded():
            return self.session.reply(request)

    @contextmanager
    def encoded(self) -> Iterator[None]:
        whole = self.vector + CHECKS
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Codec, "encode", lambda *_: Encoded(np.array(whole, np.int64), 0, False))
            patch.setattr(Codec, "weigh", lambda *_: (np.array(whole[: self.d], np.float64), whole[self.d :]))
            yield

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """SEAL's randomness is fixed where the encryptor is made, so each ciphertext gets one of its own."""
        honest = scheme.Key.encrypt

        def encrypt(key: scheme.Key, slots: np.ndarray) -> bytes:
            seed = next(self.seeds, None)
            key._encryptor = seal.Encryptor(scheme._context(key._scheme.kind, seed), key._secret)
            return honest(key, slots)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheme.Key, "encrypt", encrypt)
            yield


class Server:
    """A package server that says what it knows of the sum in the files' form."""

    def __init__(self, session: EncryptedServer) -> None:
        self.session = session
        self.requests, self.receive, self.end_phase = session.requests, session.receive, session.end_phase

    def aggregate(self) -> tuple[bytes, dict[str, int]]:
        known = self.session.aggregate()
        return known.model, known.published


def client(vector: dict, name: str, before: Client | None) -> Client:
    mine, floors, layout = vector["clients"][name], vector["policy"], vector["plan"]["layout"]
    kind, model, d = vector["plan"]["protocol"], bytes.fromhex(vector["model"]), layout["update"]
    policy = Policy(
        *(floors[it] for it in ("threat_model", "max_corrupt", "cohort", "min_survivors")),
        (kind,),
        floors["shared_key"],
        tuple(floors["published"]),
    )

    def following(decoded) -> bytes:
        return digest("vector-following", model, *decoded.counters.values())

    party = Party(name, identity(mine["identity"]), roster_of(vector), policy, model, following)
    counters = dict(zip([it["name"] for it in layout["counters"]], mine["vector"][d:], strict=True))
    begun = {run: tuple(place) for run, place in vector["begun"].items()}
    keys = {run: KeyPin(**it | {"dealing": bytes.fromhex(it["dealing"])}) for run, it in vector["keyed"].items()}
    memory = Memory(begun, keys=keys) if before is None else before.session.memory
    update = Update(np.full(d, 0.0 if before is None else 1.0), counters)
    session = (BfvClient if kind == "bfv" else CkksClient)(party, update, memory)
    seeds = mine["seeds"] if before is None else []
    return Client(session, mine["vector"], d, bytes.fromhex(vector["key"]["secret"]), seeds)


def server(vector: dict) -> Server:
    plan = unpack(Plan, cbor(check_vectors.plan_of(vector).body))
    key, dealt = vector["key"], None
    if vector["phases"][0]["phase"] != "keys":
        parcels = tuple(base64.b64decode(parcel) for parcel in key["parcels"])
        name = bytes.fromhex(vector["values"]["dealing"])
        dealt = DealtKey(key["dealer"], base64.b64decode(key["dealing"]), name, parcels)
    carried = pack(Carried(key["epoch"], dealt))
    return Server(EncryptedServer(plan, identity(vector["server"]["identity"]), roster_of(vector), carried))


PACKAGE = check_vectors.Implementation(client, server, (ProtocolError, MisuseError))
IMPLEMENTATIONS = {"reference": check_vectors.REFERENCE, "package": PACKAGE}


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def of(name: str) -> dict:
    return load(check_vectors.FOLDER / f"{name}.json")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("path", rounds(), ids=ids(rounds()))
def test_round(path, implementation):
    check_round(load(path), IMPLEMENTATIONS[implementation])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("path", rejections(), ids=ids(rejections()))
def test_rejection(path, implementation):
    check_rejection(load(path), IMPLEMENTATIONS[implementation])


@pytest.mark.parametrize("path", rounds(), ids=ids(rounds()))
def test_values(path):
    """What stands beside the messages, and what the ciphertexts decrypt to."""
    check_values(load(path))
