"""The compare command as a person meets it."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedvlm_secure.cli import app
from fedvlm_secure.engines import compare as engine

MAIN = [sys.executable, "-c", "from fedvlm_secure.cli import main; main()", "compare"]


def call(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAIN, *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--strategies", "plroa"], 'Did you mean "plora"?'),
        (["--strategies", ","], "needs a strategy"),
        (["--set", "seed=3"], "use --strategies, --data, --seeds"),
        (["--tune", "training.learning-rate"], "write training.learning-rate=0.002,0.004"),
        (["--tune", "training.step=1,2"], 'Did you mean "steps"?'),
        (["--set", "privacy.mode=record"], "fedvlm-secure budget"),
        (["--out", "taken"], "holds no study"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = call(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("words", "out", "cells", "tuning"),
    [
        ([], "compare", 3 * 2, 0),
        (["--full"], "compare-full", 8 * 2 * 5, 8 * 4),
        (["--full", "--no-tune", "--seeds", "1"], "compare-full", 8 * 2, 0),
        (["--tune", "adapter.rank=2,4", "--data", "hospitals-iid"], "compare", 3 * 2, 3 * 2),
    ],
)
def test_what_is_asked_by_default(
    words: list[str], out: str, cells: int, tuning: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "run", lambda plan, folder, **_: asked.append((plan, folder)) or ())
    assert CliRunner().invoke(app, ["compare", *words]).exit_code == 0
    ((plan, folder),) = asked
    assert folder == Path("runs") / out
    assert len(plan.tasks({}, folder)) == cells
    assert sum(map(len, plan.tuning(folder).values())) == tuning


@pytest.mark.slow
def test_a_comparison_with_the_real_engine(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    chosen = [f"model={model_folder}", "rounds=1", "training.steps=2", "training.batch-size=8", "adapter.rank=2"]
    asked = [word for setting in chosen for word in ("--set", setting)]
    asked += ["--data", str(data_folder), "--strategies", "plora,lora", "--seeds", "2", "--out", str(tmp_path / "out")]
    done = call(*asked, "--tune", "training.learning-rate=0.001,0.01", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["planned"], result["finished"], result["failed"]) == (4, 4, {})
    (table,) = result["results"].values()
    assert [row["strategy"] for row in table["strategies"]] == ["plora", "lora"]
    with (tmp_path / "out/comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 4
    site = json.loads(
        (tmp_path / "out/cells" / f"{data_folder.name}-lora-seed-1" / "sites/site-b/summary.json").read_text()
    )
    (line,) = [at for at in lines if (at["strategy"], at["seed"], at["site"]) == ("lora", "1", "site-b")]
    assert float(line["test_accuracy"]) == site["final"]
    again = call(*asked, "--tune", "training.learning-rate=0.001,0.01")
    assert again.returncode == 0, again.stderr
    assert "begins" not in again.stderr
    assert "over lora" in again.stdout
