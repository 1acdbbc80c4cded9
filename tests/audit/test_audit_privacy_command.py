"""``fedvlm-secure audit privacy`` as a user types it, on a tiny model.

A true claim is refuted with a chance of one in twenty; where that would fail a test, the confidence is raised.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedvlm_secure.audit import experiments
from fedvlm_secure.cli import app
from fedvlm_secure.engines import local, membership_audit, privacy_audit
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings

RECORD = {"mode": "record", "target-epsilon": 4.0, "accountant": "rdp"}
CLIENT = {"mode": "client", "target-epsilon": 4.0}
SURE = 1 - 1e-7


@pytest.fixture
def written(model_folder, data_folder, tmp_path):
    def write(privacy, **tables) -> Path:
        small = {"training": {"steps": 2, "batch-size": 8}, "adapter": {"rank": 2, "init": "random"}}
        top = {"name": "t", "model": str(model_folder), "data": str(data_folder), "rounds": 2, "threads": 1}
        settings = Settings.from_tables({**top, **small, **tables, "privacy": privacy})
        path = tmp_path / "t.toml"
        path.write_text(settings.to_toml())
        return path

    return write


@pytest.fixture
def sure(monkeypatch):
    monkeypatch.setattr(privacy_audit, "CONFIDENCE", SURE)


@pytest.fixture
def finished(written, tmp_path):
    local.run(Settings.from_toml(written({"mode": "none"})), tmp_path / "run")
    return tmp_path / "run"


def typed(*arguments):
    return CliRunner().invoke(app, ["audit", "privacy", *map(str, arguments)])


def told(*arguments):
    result = typed(*arguments, "--json")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.usefixtures("sure")
def test_a_record_level_claim_stands_with_its_own_steps_and_its_control(written):
    code, audit = told(written(RECORD))
    record, members = audit["experiments"]
    assert (code, audit["schema"], audit["outcome"]) == (0, "fedvlm-secure/audit-privacy/1", "not refuted")
    assert (record["level"], record["outcome"], record["steps"], record["sample-rate"]) == (
        "record",
        "not refuted",
        4,
        0.5,
    )
    assert 3.9 < record["claimed-epsilon"] <= 4.0
    assert record["bound"] < record["claimed-epsilon"]
    assert record["control"]["bound"] > record["bound"]
    assert (record["estimate"], record["estimator"], record["delta"]) == (None, "sampled", 1e-5)
    assert members["outcome"] == "not checkable"
    assert "finished run" in members["seen"][0]
    assert "proves nothing" in audit["note"]


def test_training_with_less_noise_than_claimed_is_exit_code_6(written, monkeypatch):
    """The statement still says ε = 4; what is trained has a thirtieth of its noise."""
    honest = privacy_audit.steps_of_a_run
    monkeypatch.setattr(
        privacy_audit, "steps_of_a_run", lambda s: replace(honest(s), noise_multiplier=honest(s).noise_multiplier / 30)
    )
    path = written(RECORD | {"sample-rate": 1.0, "target-epsilon": 2.0})
    table, (code, audit) = typed(path), told(path)
    assert (table.exit_code, code, audit["outcome"]) == (6, 6, "refuted")
    assert audit["experiments"][0]["bound"] > audit["experiments"][0]["claimed-epsilon"]
    assert "A claim is refuted." in table.stdout


@pytest.mark.usefixtures("sure")
def test_fewer_steps_have_their_own_noise_for_the_same_claim_and_are_told(written):
    path = written(RECORD, rounds=3)
    (_, whole), (_, part) = told(path), told(path, "--steps", 3)
    all_, few = whole["experiments"][0], part["experiments"][0]
    assert (all_["steps"], few["steps"], few["steps-of-the-run"]) == (6, 3, 6)
    assert few["noise-multiplier"] < all_["noise-multiplier"]
    assert few["claimed-epsilon"] == all_["claimed-epsilon"]
    assert "3 steps instead of the run's 6" in few["seen"][1]


@pytest.mark.usefixtures("sure")
def test_a_client_level_claim_stands_and_silence_would_not(written):
    code, audit = told(written(CLIENT), "--steps", 1)
    client = audit["experiments"][0]
    assert (code, client["level"], client["outcome"], client["sums"], client["sums-of-the-run"]) == (
        0,
        "client",
        "not refuted",
        1,
        2,
    )
    assert client["bound"] < client["claimed-epsilon"] < client["control"]["bound"]
    assert client["control"]["refuted"] is True
    assert isinstance(client["estimate"], float)


def test_without_a_claim_a_settings_file_has_nothing_to_refute(written):
    result = typed(written({"mode": "none"}))
    assert result.exit_code == 0
    assert "No differential privacy was applied" in " ".join(result.stdout.split())
    assert "not checkable" in result.stdout
    assert "There is no claim to refute." in result.stdout


def test_a_finished_run_is_asked_for_its_members(finished):
    """Thirty-two rows that nobody trained on are too few for a rate of one in a thousand, and that is said."""
    code, audit = told(finished)
    (members,) = audit["experiments"]
    assert (code, audit["outcome"], members["outcome"], members["claimed-epsilon"]) == (0, "no claim", "measured", None)
    assert (members["members"], members["non-members"], members["true-positive-rate"]) == (96, 64, None)
    assert "too few to measure" in members["seen"][0]
    assert 0 <= members["auc"] <= 1
    assert members["base-model"]["auc"] != members["auc"]


def test_each_site_is_asked_by_its_own_adapter(finished, monkeypatch):
    """Rows trained on are told by the adapter of their own site: with another's, scores differ."""
    seen = []
    real = membership_audit.pooled
    monkeypatch.setattr(membership_audit, "pooled", lambda scores: (seen.append(scores), real(scores))[1])
    told(finished)
    load = membership_audit.load_peft
    monkeypatch.setattr(membership_audit, "load_peft", lambda folder: load(finished / "sites/site-a/adapter"))
    told(finished)
    own, others = seen[0], seen[2]
    np.testing.assert_allclose(own["site-a"][0], others["site-a"][0])
    assert not np.allclose(own["site-b"][0], others["site-b"][0])


def test_a_run_of_other_rows_or_without_an_end_is_refused(finished, monkeypatch):
    summary = finished / "sites/site-b/summary.json"
    written = json.loads(summary.read_text())
    summary.write_text(json.dumps(written | {"rows": written["rows"] | {"train": 23}}))
    assert "other rows" in str(typed(finished).exception)
    summary.unlink()
    assert "has not ended" in str(typed(finished).exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--site", "nowhere"), "no site 'nowhere'"),
        (("--set", "rounds=none"), "rounds"),
        (("--steps", "0"), "steps"),
    ],
)
def test_mistakes_are_told(written, arguments, says):
    result = typed(written(RECORD), *arguments)
    assert result.exit_code != 0
    assert says in str(result.exception) + result.output


def test_a_run_keeps_its_settings(finished, tmp_path):
    for arguments, says in (((finished, "--set", "rounds=3"), "keeps the settings"), ((tmp_path,), "no run directory")):
        assert isinstance(typed(*arguments).exception, MisuseError)
        assert says in str(typed(*arguments).exception)


def test_a_strategy_that_turns_is_not_checkable(written):
    code, audit = told(written(RECORD, adapter={"strategy": "rolora", "rank": 2, "init": "random"}))
    assert (code, audit["experiments"][0]["outcome"]) == (0, "not checkable")


def test_a_bound_at_the_claim_refutes_nothing():
    assert experiments.outcome(2.0, 2.0) == "not refuted"
    assert experiments.outcome(2.01, 2.0) == "refuted"
    assert "too small an experiment" in experiments.silenced(1.0, 2.0).text
    assert "64 or more" in experiments.silenced(64.0, 2.0).text


def test_the_guide_says_what_the_command_says():
    guide = (Path(__file__).parents[2] / "docs/audit-privacy.md").read_text(encoding="utf-8")
    assert experiments.PROVES_NOTHING in guide
    assert experiments.SCHEMA in guide
