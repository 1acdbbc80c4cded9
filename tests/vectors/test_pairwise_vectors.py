"""The reference implementation and the package against every file of protocols/pairwise/vectors."""

import ast
import re
import sys
from pathlib import Path

import check_vectors
import pytest
import reference
import reference_server
from packaged import PACKAGE

from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.pairwise.masks import Bound, apply_masks

IMPLEMENTATIONS = {"reference": check_vectors.REFERENCE, "package": PACKAGE}
SPEC = Path(check_vectors.__file__).parent / "SPEC.md"

# What no single message can break: how a mask seed is used, and how masks are added, show in the sum (P-8.1); the form
# of an unmask request is that of its body (P-1.6).
NOT_IN_ONE_MESSAGE = {"P-4.1", "P-5.2", "P-7.1"}


def ids(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("path", check_vectors.rounds(), ids=ids(check_vectors.rounds()))
def test_round(path, implementation):
    check_vectors.check_round(check_vectors.load(path), IMPLEMENTATIONS[implementation])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("path", check_vectors.rejections(), ids=ids(check_vectors.rejections()))
def test_rejection(path, implementation):
    check_vectors.check_rejection(check_vectors.load(path), IMPLEMENTATIONS[implementation])


@pytest.mark.parametrize("path", check_vectors.rounds(), ids=ids(check_vectors.rounds()))
def test_values(path):
    """What stands beside the messages, by the reference implementation and by the package."""
    vector = check_vectors.load(path)
    check_vectors.check_values(vector)
    bound, ring = Bound(bytes.fromhex(vector["plan_hash"])), Ring(vector["plan"]["ring_bits"])

    def words(mask) -> list[int]:
        total = ring.zeros(len(vector["plan"]["layout"]["counters"]) + 3)
        apply_masks(total, [mask])
        return [int(word) % 2**ring.bits for word in total]

    for u, own in vector["values"]["own"].items():
        seed = Secret(bytes.fromhex(vector["clients"][u]["random"]["self_seed"]))
        assert bound.self_commitment(seed, u).hex() == own["self_commitment"]
        assert bound.self_mask(seed, u).key.reveal().hex() == own["self_mask_key"]
        assert words(bound.self_mask(seed, u)) == own["self_mask"]
    for pair, masks in vector["values"]["pairs"].items():
        u, v = pair.split()
        if u in vector["clients"]:
            seed = bound.pair_seed(Secret(bytes.fromhex(vector["clients"][u]["random"]["mask_seed"])), u, v)
            assert seed.reveal().hex() == vector["clients"][u]["deals"][v]["pair_seed"]
            assert words(bound.pair_mask(seed, u, v)) == masks["pair_mask"]


def test_the_reference_implementation_stands_alone():
    """It imports the standard library, `cryptography` and its own files."""
    files = {path.stem: path for path in SPEC.parent.glob("*.py")}
    assert {"reference", "reference_primitives", "check_vectors"} <= files.keys()
    for path in files.values():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "cryptography", *files}


def test_every_clause_has_a_file():
    clauses = set(re.findall(r"\*\*(P-\d\.\d)\*\*", SPEC.read_text()))
    assert {check_vectors.load(path)["clause"] for path in check_vectors.rejections()} == clauses - NOT_IN_ONE_MESSAGE


def test_each_phase_and_several_sizes_are_covered():
    vectors = [check_vectors.load(path) for path in check_vectors.rounds()]
    plans = [vector["plan"] for vector in vectors]
    assert {len(plan["cohort"]) for plan in plans} >= {3, 5, 8}
    assert {plan["ring_bits"] for plan in plans} >= {24, 32, 40, 48, 64}
    assert {plan["threat_model"] for plan in plans} == {"malicious-server", "honest-but-curious"}
    silent_in = {
        phase["phase"]
        for vector in vectors
        for phase in vector["phases"]
        if phase["requests"].keys() > phase["replies"].keys()
    }
    assert silent_in == set(reference.PHASES)


@pytest.mark.parametrize("path", check_vectors.rejections(), ids=ids(check_vectors.rejections()))
def test_without_its_rule_a_fault_goes_unnoticed(path, monkeypatch):
    """No file is refused for another reason than the one that it is there for."""
    vector = check_vectors.load(path)
    if vector["afterwards"] == "over":
        pytest.skip("a session that has ended checks no rule")
    honest_require, honest_blame = reference.require, reference.blame

    def require(held, clause, party, why):
        honest_require(held or clause == vector["clause"], clause, party, why)

    def blame(clause, party):
        return honest_blame(f"not {clause}" if clause == vector["clause"] else clause, party)

    for module in (reference, reference_server):
        monkeypatch.setattr(module, "require", require)
        monkeypatch.setattr(module, "blame", blame)
    # Some faults another rule then meets, or the program stumbles over them.
    with pytest.raises((AssertionError, LookupError, TypeError)):
        check_vectors.check_rejection(vector, check_vectors.REFERENCE)


@pytest.mark.parametrize("phase", reference.PHASES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_wrong_byte_in_a_round_is_noticed(implementation, phase):
    """The check itself: one recorded message that says something else fails it."""
    vector = check_vectors.load(check_vectors.FOLDER / "round-n3-b24.json")
    replies = vector["phases"][reference.PHASES.index(phase)]["replies"]
    replies["b"] = replies["aa"]
    with pytest.raises((AssertionError, *IMPLEMENTATIONS[implementation].refusals)):
        check_vectors.check_round(vector, IMPLEMENTATIONS[implementation])
