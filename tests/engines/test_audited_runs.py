"""Audits of whole runs: what the engine leaves behind is what an auditor can follow to the end."""

import pytest
from engine_kit import interrupted

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.audit.verdict import PASS
from fedvlm_secure.engines import local

SITES = ("site-a", "site-b", "site-c", "site-d")


def audit(run):
    verdict = audit_run(run, sorted(run.glob("sites/*/log.cbor")))
    assert not verdict.failed, [(clause.clause, clause.findings) for clause in verdict.clauses if clause.findings]
    assert verdict.covered == SITES
    return verdict


def assert_sound(run):
    outcomes = {clause.clause: clause.outcome for clause in audit(run).clauses}
    assert outcomes["A-10"] == PASS
    return outcomes


@pytest.mark.parametrize(
    "overrides",
    [
        ("aggregation.protocol=bfv",),
        ("aggregation.protocol=ckks", "aggregation.key-rounds=1"),
        ("aggregation.protocol=plain", "policy.protocols=['plain']"),
        ("adapter.strategy=rolora", "simulation.dropout-rate=0.1", "seed=4"),
        ("adapter.warm-up=1",),
    ],
)
def test_a_finished_run_is_sound(overrides, settings, tmp_path):
    local.run(settings(*overrides), tmp_path / "run")
    assert_sound(tmp_path / "run")


def test_a_run_with_noise_in_its_sums_says_so(settings, tmp_path):
    local.run(settings("privacy.mode=client", "aggregation.rounding=stochastic"), tmp_path / "run")
    assert assert_sound(tmp_path / "run")["A-13"] == PASS


@pytest.mark.parametrize(
    "overrides",
    [
        ("adapter.warm-up=1", "simulation.dropout-rate=0.1", "seed=4"),
        ("aggregation.protocol=bfv",),
        ("adapter.strategy=rolora",),
        ("privacy.mode=client", "aggregation.rounding=stochastic"),
    ],
)
def test_the_sums_of_a_run_that_keeps_its_payloads_follow(overrides, settings, tmp_path):
    assert len(list(interrupted(settings("aggregation.keep-payloads=true", *overrides), tmp_path / "run", after=9))) > 1
    verdict = next(it for it in audit(tmp_path / "run").clauses if it.clause == "A-11")
    assert verdict.outcome == PASS
    assert bool(verdict.why) == ("aggregation.protocol=bfv" in overrides)  # only members can read such a sum


def test_an_interrupted_run_is_sound(settings, tmp_path):
    assert len(list(interrupted(settings(), tmp_path / "run", after=9))) > 1
    assert_sound(tmp_path / "run")
