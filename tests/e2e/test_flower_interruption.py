"""Ctrl-C in ``run --engine flower``, and the run that goes on with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import safetensors.numpy

from fedvlm_secure.engines import local
from fedvlm_secure.engines.flower.network import SERVER
from fedvlm_secure.federation.rundir import DEPLOYMENT, RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
INTERRUPTED = 130
ROUNDS = 3


def test_an_interrupted_run_leaves_no_process_and_resumes_to_the_same_end(
    tmp_path: Path, model_folder: Path, data_folder: Path
) -> None:
    quick = [f"model={model_folder}", f"data={data_folder}", f"rounds={ROUNDS}", "threads=1", "name=t"]
    small = ["training.steps=2", "training.batch-size=8", "adapter.rank=2", "aggregation.rounding=nearest"]
    settings = Settings.from_tables({}, [*quick, *small])
    write(tmp_path / "settings.toml", settings.to_toml().encode())
    run = tmp_path / "run"
    began = program("run", str(tmp_path / "settings.toml"), "--engine", "flower", "--out", str(run))
    first = run / DEPLOYMENT / "parties" / SERVER / "runs/t/coordinator/global/round-0001.safetensors"
    while not first.exists():
        assert began.poll() is None, began.communicate()
        time.sleep(0.2)
    os.killpg(began.pid, signal.SIGINT)  # as a terminal does
    _, said = began.communicate(timeout=120)
    assert began.returncode == INTERRUPTED, said
    assert f"--resume {run}" in said
    assert of(run) == []
    resumed = program("run", "--resume", str(run))
    _, said = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, said
    assert of(run) == []
    RunDirectory(run).verify_manifest()
    expected = local.run(settings, tmp_path / "local")
    for name in ["coordinator/global/round-0003.safetensors", "sites/site-a/adapter/adapter_model.safetensors"]:
        mine, other = (safetensors.numpy.load_file(folder / name) for folder in (run, expected.folder))
        assert {key: value.tobytes() for key, value in mine.items()} == {k: v.tobytes() for k, v in other.items()}


def program(*arguments: str) -> subprocess.Popen[str]:
    """The command line, as the leader of a group of processes."""
    begin = "import sys; from fedvlm_secure.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", begin, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def of(folder: Path) -> list[str]:
    """The processes of a run's deployment."""
    commands = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder / DEPLOYMENT) in command]
