"""``fedvlm-secure audit run`` as a user types it."""

import json
from pathlib import Path

import pytest
from audit_run_kit import finished
from typer.testing import CliRunner

from fedvlm_secure.audit.verdict import CLAUSES
from fedvlm_secure.cli import app


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    run, logs = finished(tmp_path_factory.mktemp("audited") / "run", "pairwise", 3, dropouts=0)
    return run.folder.path, logs


def typed(*arguments):
    return CliRunner().invoke(app, ["audit", "run", *map(str, arguments)])


def test_a_sound_run_says_for_whom(audited):
    folder, logs = audited
    without, some = typed(folder), typed(folder, "--client-log", logs[0], "--client-log", logs[1])
    assert (without.exit_code, some.exit_code) == (0, 0)
    assert "requests may have gone unrecorded" in without.output
    assert f"No request went unrecorded for 2 of {len(logs)} clients" in " ".join(some.output.split())
    assert all(clause in some.output for clause in CLAUSES)


def test_a_failure_is_exit_code_6_with_the_evidence(audited):
    folder, _ = audited
    metrics = folder / "coordinator/metrics.jsonl"
    before = metrics.read_bytes()
    metrics.write_bytes(before + b"\n")
    try:
        table, said = typed(folder), typed(folder, "--json")
    finally:
        metrics.write_bytes(before)
    assert (table.exit_code, said.exit_code) == (6, 6)
    assert "metrics.jsonl was changed" in " ".join(table.output.split())
    verdict = json.loads(said.output)
    assert (verdict["verdict"], verdict["clauses"][0]["outcome"]) == ("fail", "fail")


def test_a_hospitals_own_policy_is_what_plans_are_held_against(audited, tmp_path):
    folder, _ = audited
    (tmp_path / "ours.toml").write_text("[policy]\nmin-cohort = 100\n")
    assert typed(folder, "--policy", tmp_path / "ours.toml").exit_code == 6


def test_the_guide_states_every_clause():
    guide = (Path(__file__).parents[2] / "docs/audit-run.md").read_text(encoding="utf-8")
    assert all(f"| {clause} | {rule} |" in guide for clause, rule in CLAUSES.items())
