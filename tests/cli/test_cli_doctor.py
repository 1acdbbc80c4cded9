"""``fedvlm-secure doctor`` as a person meets it, and what it says about models that are not sound."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedvlm_secure.cli import doctor as module

# The model has no public bases.
RECORD = ["privacy.mode=record", "privacy.noise-multiplier=2", "adapter.init=random", "adapter.rank=8"]
RECORD = [word for setting in RECORD for word in ("--set", setting)]


@pytest.fixture
def call(model_folder: Path):
    app = typer.Typer()
    app.command()(module.doctor)

    def invoke(*words: str):
        return CliRunner().invoke(app, ["--set", f"model={model_folder}", "--set", "device=cpu", *words])

    return invoke


def test_a_sound_model_is_said_to_be(call):
    done = call()
    assert done.exit_code == 0, done.output
    assert "nothing found" in done.stdout
    for package in ("torch", "opacus", "peft", "dp-accounting"):
        assert f"{package} " in done.stdout.splitlines()[0]


def test_json_is_one_object_and_counts_what_is_trained(call):
    done = call("--json", *RECORD)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["findings"] == []
    assert report["privacy"]["noise-multiplier"] == 2
    # Width 48, inner 64, one layer, rank 8, projections o, gate, up, down: r·(in + out) each.
    assert report["model"]["trainable"] == 8 * (48 + 48 + 3 * (48 + 64))
    loud = report["privacy"]["noise-to-signal"]
    assert loud["300"] == pytest.approx(2 * report["model"]["trainable"] ** 0.5 / (0.5 * 300), abs=0.01)
    assert float(loud["300"]) > float(loud["3000"])


def test_a_loud_adapter_comes_with_advice(call):
    quiet, loud = call(*RECORD), call(*RECORD, "--set", "privacy.noise-multiplier=40")
    assert "adapter.rank" not in quiet.stdout
    assert "adapter.rank" in loud.stdout


def test_settings_come_from_a_file(call, tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_text("[adapter]\nrank = 1\nmodules = ['v_proj']\n")
    report = json.loads(call("--settings", str(path), "--json").stdout)
    assert (report["model"]["layers"], report["model"]["trainable"]) == (1, 96)


@pytest.mark.parametrize(("mode", "code"), [("record", 2), ("none", 0)])
def test_what_breaks_privacy_is_named_and_ends_in_2_where_privacy_is_asked_for(call, monkeypatch, mode, code):
    from fedvlm_secure.engines import assembly

    honest = assembly.attach

    def careless(model, *others):
        adapter = honest(model, *others)
        model.model.text_model.norm.weight.requires_grad_(True)
        return adapter

    monkeypatch.setattr(assembly, "attach", careless)
    done = call(*RECORD, "--set", f"privacy.mode={mode}")
    assert done.exit_code == code, done.output
    assert "text_model.norm.weight is trainable but not part" in done.stdout
    assert "would not hold" in done.stdout
