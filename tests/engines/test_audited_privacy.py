"""What a private run claims, held against what hospitals have signed of their training (A-13)."""

import json
import shutil
from dataclasses import replace

import pytest

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.audit.verdict import FAIL, NOT_CHECKABLE, PASS
from fedvlm_secure.engines import local
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.privacy.attestation import Attestation, attest, read_attestation
from fedvlm_secure.privacy.ledger import Ledger
from fedvlm_secure.secagg.log import ClientLog

RECORD = (
    "privacy.mode=record",
    "privacy.target-epsilon=4",
    "privacy.accountant=rdp",
    "privacy.max-grad-norm=1.5",
    "adapter.init=random",
)
CLIP = 1.5
CLIENT = ("privacy.mode=client", "aggregation.rounding=stochastic")


def of(folder, logs=None):
    verdict = audit_run(folder, sorted(folder.glob("sites/*/log.cbor")) if logs is None else logs)
    return next(clause for clause in verdict.clauses if clause.clause == "A-13"), verdict


@pytest.fixture(scope="module")
def finished(module_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private") / "run"
    local.run(module_settings(*RECORD), folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def claiming(folder, **changed):
    """The summary with another claim, signed by the server as if it were the true one."""
    path = folder / "coordinator/summary.json"
    said = json.loads(path.read_text())
    said["privacy"] |= {name.replace("_", "-"): value for name, value in changed.items()}
    path.write_text(json.dumps(said))
    signed(folder)


def signed(folder):
    run = RunDirectory(folder)
    run.sign_manifest(run.coordinator.identity())


def log_of(folder, site="site-a"):
    path = folder / "sites" / site / "log.cbor"
    return path, ClientLog.from_bytes(path.read_bytes())


def test_a_private_run_and_its_hospitals_word_agree(finished):
    clause, verdict = of(finished)
    assert not verdict.failed, [(it.clause, it.findings) for it in verdict.clauses if it.findings]
    assert clause.outcome == PASS
    assert clause.why == ("an attestation is the hospital's word; no message shows how it has trained",)
    settings = RunDirectory(finished).settings.read_text()
    assert 'mode = "record"' in settings
    folder = RunDirectory(finished).site("site-a")
    _, log = log_of(finished)
    said = read_attestation(log.attested, "site-a", folder.identity().public, bytes.fromhex(verdict.run))
    spent = Ledger(folder.state / "ledger.sqlite").releases()
    assert [(each.round, each.event) for each in said.trained] == [(it.round, it.event) for it in spent]
    assert len(said.trained) == 2


def test_whose_attestation_is_missing_is_named(finished):
    clause, _ = of(finished, [log_of(finished)[0]])
    assert clause.outcome == PASS
    assert "no attestation of site-b, site-c, site-d:" in clause.why[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon": 2.0},
        {"delta": 1e-2},
        {"noise_multiplier": 9.0, "epsilon": 0.5},
        {"unit": "row"},
        {"releases": 1},
        {"sample_rate": 1e-6},
        {"clip_norm": 0.5},
        {"level": "none"},
        {"level": "client"},
        {"epsilon": "4"},
        {"releases": 1 << 70},
        {"delta": 2},
    ],
)
def test_a_claim_that_does_not_follow_is_found_though_the_server_signs_it(changed, run):
    claiming(run, **changed)
    clause, verdict = of(run)
    assert clause.outcome == FAIL
    assert {it.clause for it in verdict.clauses if it.outcome == FAIL} == {"A-13"}


def attested(folder, change):
    """A hospital attests something else, truly signed."""
    path, log = log_of(folder)
    place = RunDirectory(folder).site("site-a")
    run = bytes.fromhex(of(folder)[1].run)
    spent, unit, clip = change(list(Ledger(place.state / "ledger.sqlite").releases()))
    signature = attest(place.identity(), "site-a", log.lines[-1].plan, run, unit, clip, spent)
    path.write_bytes(replace(log, attested=signature).to_bytes())
    return of(folder)[0]


def altered(release, **event):
    return replace(release, event=replace(release.event, **event))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda spent: (spent[:1], "image", CLIP), "attests no training for it"),
        (lambda spent: ([*spent, *spent], "image", CLIP), "one training twice"),
        (lambda spent: (spent, "image", 2.0), "another unit or clip norm"),
        (lambda spent: ([altered(it, noise_multiplier=0.4) for it in spent], "image", CLIP), "and spends"),
        (
            lambda spent: ([replace(it, event=replace(it.event, steps=900)) for it in spent], "image", CLIP),
            "and spends",
        ),
        (lambda spent: ([replace(it, unit="row") for it in spent], "row", CLIP), "another unit or clip norm"),
    ],
)
def test_an_attestation_of_less_privacy_than_claimed_is_found(change, detail, run):
    clause = attested(run, change)
    assert clause.outcome == FAIL
    assert detail in clause.findings[0].detail


def test_an_attestation_by_another_key_or_of_another_run_is_found(run):
    path, log = log_of(run)
    place = RunDirectory(run).site("site-a")
    name, spent = bytes.fromhex(of(run)[1].run), Ledger(place.state / "ledger.sqlite").releases()
    for identity, about in ((Identity.generate(), name), (place.identity(), bytes(len(name)))):
        forged = attest(identity, "site-a", log.lines[-1].plan, about, "image", CLIP, spent)
        path.write_bytes(replace(log, attested=forged).to_bytes())
        assert of(run)[0].outcome == FAIL


def test_noise_inside_sums_is_composed_from_the_plans(module_settings, tmp_path):
    local.run(module_settings(*CLIENT), tmp_path / "run")
    assert of(tmp_path / "run")[0].outcome == PASS
    assert all(not log_of(tmp_path / "run", site)[1].attested for site in ("site-a", "site-d"))
    claimed = json.loads((tmp_path / "run/coordinator/summary.json").read_text())["privacy"]["epsilon"]
    claiming(tmp_path / "run", epsilon=claimed * 0.9)
    assert of(tmp_path / "run")[0].outcome == FAIL


def test_a_run_without_privacy_claims_none(module_settings, tmp_path):
    local.run(module_settings("rounds=1"), tmp_path / "run")
    assert of(tmp_path / "run")[0].outcome == NOT_CHECKABLE
    claiming(tmp_path / "run", level="record")
    assert of(tmp_path / "run")[0].outcome == FAIL


def test_an_attestation_tells_nothing_but_its_fields():
    assert set(Attestation.__dataclass_fields__) == {"run", "unit", "clip", "trained"}
