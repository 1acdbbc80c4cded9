"""The command line as a person meets it: a process, its two outputs and its exit code."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def call(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fedvlm_secure.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "numpy", "cryptography", "pydantic", "PIL")


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["demo", "--help"], ["run", "--help"], ["roster", "--help"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    probe = (
        "import sys\nfrom fedvlm_secure.cli import main\n"
        f"sys.argv = ['fedvlm-secure', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code in (0, None), stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run"], "--resume DIR"),
        (["run", "missing.toml"], "cannot read missing.toml"),
        (["run", "--resume", "nowhere"], "no run directory"),
        (["demo", "--set", "aggregation.protocol=pairwize"], 'Did you mean "pairwise"?'),
        (["predict", "nowhere", "--site", "a", "--image", "b", "--question", "c"], "cannot read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], says: str, tmp_path: Path) -> None:
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_run_then_predict(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'name = "small"\nmodel = "{model_folder}"\ndata = "{data_folder}"\nrounds = 1\nthreads = 1\n'
        "[training]\nsteps = 2\nbatch-size = 8\n[adapter]\nrank = 2\n"
    )
    done = call("run", settings, "--json", "--set", "seed=3", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["sites"]) == 4
    assert "seed = 3" in (tmp_path / "out/settings.toml").read_text()
    picture = tmp_path / "grey.png"
    from PIL import Image

    Image.new("L", (80, 60), 128).save(picture)
    asked = ["predict", tmp_path / "out", "--image", picture, "--question", "Which colour is it?"]
    answer = call(*asked, "--site", "site-a", "--json")
    assert answer.returncode == 0, answer.stderr
    assert set(json.loads(answer.stdout)) == {"site", "question", "answer"}
    stranger = call(*asked, "--site", "site-z")
    assert (stranger.returncode, stranger.stderr.count("\n")) == (2, 1)
    assert "site-a" in stranger.stderr


def test_ctrl_c_says_how_to_go_on_and_that_works(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'model = "{model_folder}"\ndata = "{data_folder}"\nrounds = 50\nthreads = 1\n[training]\nsteps = 2\n'
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        "from fedvlm_secure.cli import main; main()",
        "run",
        str(settings),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 2:"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"continue with: fedvlm-secure run --resume {out}" in errors
    assert "Traceback" not in errors
    # The settings are the run's own from here on; shorten it, so that the rest is quick.
    text = (out / "settings.toml").read_text()
    (out / "settings.toml").write_text(text.replace("rounds = 50", "rounds = 3"))
    done = call("run", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert "round 1:" not in done.stderr


def test_diverged_training_and_an_impossible_folder_are_one_line(
    model_folder: Path, data_folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(f'model = "{model_folder}"\ndata = "{data_folder}"\nrounds = 1\nthreads = 1\n')
    wild = ["--set", "training.learning-rate=1e30", "--set", "training.max-grad-norm=1e30"]
    diverged = call("run", settings, *wild, "--out", tmp_path / "a")
    assert (diverged.returncode, diverged.stdout) == (2, "")
    assert "training.learning-rate" in diverged.stderr.splitlines()[-1]
    assert "Traceback" not in diverged.stderr
    blocked = call("run", settings, "--out", settings / "below")
    assert blocked.returncode == 2
    assert "Traceback" not in blocked.stderr


def test_policy_and_abort_have_exit_codes_of_their_own(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'model = "{model_folder}"\ndata = "{data_folder}"\nrounds = 1\nthreads = 1\n[training]\nsteps = 2\n'
    )
    refused = call("run", settings, "--set", "aggregation.protocol=plain", "--out", tmp_path / "a")
    assert refused.returncode == 3
    assert "P-2.6" in refused.stderr
    aborted = call("run", settings, "--set", "simulation.dropout-rate=1", "--out", tmp_path / "b")
    assert aborted.returncode == 4
