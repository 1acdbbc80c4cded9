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
from protocols.encrypted import check_vectors, reference, reference_schemes
from protocols.encrypted.check_vectors import check_rejection, check_round, check_values, load, rejections, rounds
from protocols.encrypted.common import cbor

SPEC = Path(check_vectors.__file__).parent / "SPEC.md"
CHECKS = [1, 0, 0]

# What no single message can break: whether a client sends its own update twice.
NOT_IN_ONE_MESSAGE = {"E-4.4"}


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
        floors["noise"],
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
        dealt = DealtKey(key["dealer"], base64.b64decode(key["dealing"]), name, plan.roster, parcels)
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


def test_the_reference_implementation_stands_alone():
    """It imports the standard library, `cryptography`, SEAL, its own files and the pairwise reference's."""
    files = list(SPEC.parent.glob("*.py"))
    assert {"reference", "reference_schemes", "check_vectors"} <= {path.stem for path in files}
    beside = {path.stem for path in (SPEC.parents[1] / "pairwise").glob("*.py")}
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        allowed = {*sys.stdlib_module_names, "cryptography", "tenseal", "protocols", *beside}
        assert {name.split(".")[0] for name in names} <= allowed


def test_every_clause_has_a_file():
    clauses = set(re.findall(r"\*\*(E-\d\.\d)\*\*", SPEC.read_text()))
    assert len(clauses) == 17
    refused = {load(path)["clause"] for path in rejections()}
    assert {clause for clause in refused if clause.startswith("E")} == clauses - NOT_IN_ONE_MESSAGE


def test_sizes_packings_and_phases_are_covered():
    vectors = [load(path) for path in rounds()]
    sheets = [reference_schemes.sheets_of(check_vectors.plan_of(vector)) for vector in vectors]
    assert {(vector["plan"]["protocol"], len(vector["clients"])) for vector in vectors} == {
        (kind, n) for kind in ("bfv", "ckks") for n in (3, 5)
    }
    assert {it.per_slot for it in sheets if isinstance(it, reference_schemes.Bfv)} == {1, 3}
    assert {(type(it), it.chunks) for it in sheets} == {
        (kind, chunks) for kind in (reference_schemes.Bfv, reference_schemes.Ckks) for chunks in (1, 2)
    }
    silent_in = {
        (vector["plan"]["protocol"], phase["phase"])
        for vector in vectors
        for phase in vector["phases"]
        if phase["requests"].keys() > phase["replies"].keys()
    }
    assert silent_in == {(kind, phase) for kind in ("bfv", "ckks") for phase in ("input", "sum")}
    assert sum(path.stat().st_size for path in check_vectors.FOLDER.glob("*.json")) < 4_500_000


@pytest.mark.parametrize("path", rejections(), ids=ids(rejections()))
def test_without_its_rule_a_fault_goes_unnoticed(path, monkeypatch):
    """No file is refused for another reason than the one that it is there for."""
    vector = load(path)
    honest_require, honest_blame = reference.require, reference.blame
    pairwise = sys.modules["reference"]

    def require(held, clause, party, why):
        honest_require(held or clause == vector["clause"], clause, party, why)

    def blame(clause, party):
        return honest_blame(f"not {clause}" if clause == vector["clause"] else clause, party)

    for module in (reference, pairwise):
        monkeypatch.setattr(module, "require", require)
        monkeypatch.setattr(module, "blame", blame)
    # Some faults another rule then meets, or the program stumbles over them.
    with pytest.raises((AssertionError, AttributeError, LookupError, TypeError, ValueError, StopIteration)):
        check_rejection(vector, check_vectors.REFERENCE)


@pytest.mark.parametrize("phase", reference.PHASES)
@pytest.mark.parametrize("name", ["round-bfv-n5-packed", "round-ckks-n5"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_wrong_message_in_a_round_is_noticed(implementation, name, phase):
    """The check itself: one recorded message that says something else fails it."""
    vector = of(name)
    place = reference.PHASES.index(phase)
    replies = vector["phases"][place]["replies"]
    if phase == "keys":
        replies["aa"][1] = replies["aa"][2]
    else:
        replies["site-9"] = replies["z.1" if phase == "input" else "site-10" if name == "round-ckks-n5" else "b"]
    with pytest.raises((AssertionError, *IMPLEMENTATIONS[implementation].refusals)):
        check_round(vector, IMPLEMENTATIONS[implementation])


@pytest.mark.parametrize("name", ["round-bfv-n5-packed", "round-ckks-n5"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_wrong_plaintext_is_noticed(implementation, name):
    """A client whose update is off by one step."""
    vector = of(name)
    vector["clients"]["site-9"]["vector"][3] += 1
    with pytest.raises(AssertionError):
        check_vectors.check_client(vector, "site-9", IMPLEMENTATIONS[implementation])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_upload_is_the_last_of_its_update(implementation):
    """E-4.4: the next attempt's request, which another update may answer, gets nothing out of this one."""
    vector, made = of("reject-E-5.1-unsorted"), IMPLEMENTATIONS[implementation]
    base, again = vector["round"], check_vectors.message(vector, vector["then"]["message"])

    def uploaded():
        session = made.client(base, "b", None)
        session.reply(check_vectors.message(base, base["phases"][1]["requests"]["b"]))
        return session

    made.client(base, "b", uploaded()).reply(again)
    first = uploaded()
    if implementation == "reference":
        later = made.client(base, "b", first)
        later.vector = first.vector
        with pytest.raises(reference.Refused, match=r"E-4\.4"):
            later.reply(again)
    else:
        session = first.session
        with pytest.raises(MisuseError, match="train again"):
            type(session)(session._party, session._update, session.memory)


def test_slots_are_values_at_the_roots_that_the_spec_names():
    """Of BFV's plaintexts, found with Python's integers."""
    n, t = reference_schemes.N, reference_schemes.T
    root = next(z for z in (pow(g, (t - 1) // (2 * n), t) for g in range(2, 50)) if pow(z, n, t) == t - 1)
    square, smallest, other = root * root % t, root, root
    for _ in range(n):
        other = other * square % t
        smallest = min(smallest, other)
    encoder, plain = reference_schemes.Scheme("bfv").encoder, seal.Plaintext()
    slots = [7 * slot % 1000 for slot in range(n)]
    encoder.encode(slots, plain)
    polynomial = [plain.data(at) for at in range(plain.coeff_count())]
    for slot in (0, 1, 2047, 2048, 2057, 4095):
        power = pow(3, slot % 2048, 2 * n)
        point, value = pow(smallest, power if slot < 2048 else 2 * n - power, t), 0
        for coefficient in reversed(polynomial):
            value = (value * point + coefficient) % t
        assert value == slots[slot]
