"""The budget command as a person meets it: a process, its two outputs and its exit code."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedvlm_secure.cli import app
from fedvlm_secure.engines import budget as engine

MAIN = [sys.executable, "-c", "from fedvlm_secure.cli import main; main()", "budget"]


def call(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MAIN, *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


@pytest.fixture
def small(model_folder: Path, data_folder: Path) -> list[str]:
    chosen = [f"model={model_folder}", f"data={data_folder}", "rounds=1"]
    chosen += ["training.steps=2", "training.batch-size=8", "adapter.rank=2"]
    return [word for setting in chosen for word in ("--set", setting)]


def test_help_and_a_mistake_import_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "transformers", "peft", "datasets", "matplotlib", "opacus", "dp_accounting", "scipy")
    for words, more in ((["--help"], ("numpy", "pydantic", "rich.progress")), (["--set", "round=1"], ())):
        probe = (
            "import sys\nfrom fedvlm_secure.cli import main\n"
            f"sys.argv = ['fedvlm-secure', 'budget', *{words!r}]\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            f"loaded = [name for name in {(*heavy, *more)!r} if name in sys.modules]\n"
            "assert not loaded, loaded\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epsilons", "1,many"], "write numbers and none"),
        (["--epsilons", "-1"], "outside 0.01 to 1000"),
        (["--strategies", "plroa"], 'Did you mean "plora"?'),
        (["--strategies", ","], "at least one ε, one strategy"),
        (["--set", "seed=3"], "use --epsilons, --strategies, --seeds"),
        (["--set", "training.step=3"], 'Did you mean "steps"?'),
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
    ("words", "out", "cells", "rounds"),
    [([], "budget", 14, 6), (["--full"], "budget-full", 33, 12), (["--set", "rounds = 3"], "budget", 14, 3)],
)
def test_what_is_asked_by_default(
    words: list[str], out: str, cells: int, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "run", lambda plan, folder, **_: asked.append((plan, folder)) or ())
    assert CliRunner().invoke(app, ["budget", *words]).exit_code == 0
    ((plan, folder),) = asked
    assert folder == Path("runs") / out
    assert len(plan.tasks(folder)) == cells
    assert {task.settings.rounds for task in plan.tasks(folder)} == {rounds}
    assert "rounds" in plan.command  # whatever the defaults of another day are


@pytest.mark.slow
def test_a_study_with_the_real_engine(small: list[str], tmp_path: Path) -> None:
    asked = [*small, "--epsilons", "none", "--strategies", "plora,lora", "--seeds", "2", "--out", tmp_path / "out"]
    done = call(*asked, "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["planned"], result["finished"], result["failed"]) == (6, 6, {})
    rows = {(row["strategy"], row["epsilon"]): row for row in result["results"]}
    assert set(rows) == {("plora", None), ("lora", None), ("local", None)}
    assert rows["plora", None]["accuracy"]["seeds"] == 2
    assert done.stderr.count("begins") == 6
    with (tmp_path / "out/budget.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 * 4
    # A cell's figures are those of its own run directory.
    name = "lora-epsilon-none-seed-1"
    site = json.loads((tmp_path / "out/cells" / name / "sites/site-b/summary.json").read_text())
    (line,) = [at for at in lines if (at["strategy"], at["seed"], at["site"]) == ("lora", "1", "site-b")]
    assert (float(line["test_accuracy"]), float(line["base_accuracy"])) == (site["final"], site["base"])
    assert (tmp_path / "out/cells" / name / "report.html").exists()

    again = call(*asked)
    assert again.returncode == 0, again.stderr
    assert "6 cells, 6 of them finished earlier" in again.stderr
    assert "begins" not in again.stderr
    assert str(tmp_path / "out/budget.html") in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_says_how_to_go_on_and_that_works(small: list[str], tmp_path: Path, workers: str) -> None:
    long = ["--set", "rounds=2000", "--epsilons", "none", "--strategies", "lora", "--seeds", "1"]
    asked = [*small, *long, "--out", str(tmp_path / "out"), "--workers", workers]
    process = subprocess.Popen(
        [*MAIN, *asked], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith("begins\n"):
            break
    metrics = tmp_path / "out/cells/lora-epsilon-none-seed-0/coordinator/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 2:  # an interrupted round's line is written again
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"the same command goes on with the study in {tmp_path / 'out'}" in errors
    assert "Traceback" not in errors
    first = metrics.read_text().splitlines()[0]
    # The unfinished runs are the cells' own; shorten them, so that the rest is quick.
    lines = [
        len(path.read_text().splitlines()) for path in (tmp_path / "out/cells").glob("*/coordinator/metrics.jsonl")
    ]
    rounds = max(lines) + 2
    for path in (tmp_path / "out/cells").glob("*/settings.toml"):
        path.write_text(path.read_text().replace("rounds = 2000", f"rounds = {rounds}"))
    asked[asked.index("rounds=2000")] = f"rounds={rounds}"
    done = call(*asked)
    assert done.returncode == 0, done.stderr
    assert metrics.read_text().splitlines()[0] == first


@pytest.mark.slow
def test_a_failing_cell_has_the_exit_code_of_its_error(small: list[str], tmp_path: Path) -> None:
    asked = [*small, "--epsilons", "none", "--strategies", "lora", "--seeds", "1", "--out", tmp_path / "out"]
    refused = call(*asked, "--set", "aggregation.protocol=plain", "--workers", "1")
    assert refused.returncode == 3, refused.stderr
    assert "lora-epsilon-none-seed-0 failed: " in refused.stderr
    assert "P-2.6" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out/budget.html").exists()
