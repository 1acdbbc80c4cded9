"""A run of the local engine that SIGKILL ends several times, and ``--resume`` continues, as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.numpy

from fedvlm_secure.federation.settings import Settings

RUN = "import crash_party; crash_party.make_mortal(); from fedvlm_secure.cli import main; main()"
ROUNDS, KILLS = 2, 6


def run(settings: Path, folder: Path, *, die_at: int = 0, seconds: float | None = None) -> int:
    """One process at this run: its exit status. It dies at a commit, before or after it, or after so many seconds."""
    words = ["run", "--resume", folder] if (folder / "settings.toml").exists() else ["run", settings, "--out", folder]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    environment |= {"DIE_AT": str(die_at), "DIE_WHEN": "after" if die_at % 2 else "before"}
    with subprocess.Popen([sys.executable, "-c", RUN, *map(str, words)], env=environment) as process:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        process.kill()
    return process.returncode


def tensors(folder: Path) -> dict[str, bytes]:
    files = [
        folder / f"coordinator/global/round-{ROUNDS:04d}.safetensors",
        *folder.glob("sites/*/adapter/*.safetensors"),
    ]
    return {
        f"{file.relative_to(folder)} {name}": value.tobytes()
        for file in files
        for name, value in safetensors.numpy.load_file(file).items()
    }


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(model_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    quick = [f"model={model_folder}", f"data={data_folder}", f"rounds={ROUNDS}", "threads=1", "name=t"]
    small = ["training.steps=2", "training.batch-size=8", "adapter.rank=2", "aggregation.rounding=nearest"]
    settings = tmp_path / "settings.toml"
    settings.write_text(Settings.from_tables({}, [*quick, *small]).to_toml())
    started = time.monotonic()
    assert run(settings, tmp_path / "whole") == 0
    whole = time.monotonic() - started
    chance = random.Random(0)
    for number in range(KILLS):
        if number % 2:
            ended = run(settings, tmp_path / "pieces", seconds=chance.uniform(0.3, 1) * whole)
        else:
            ended = run(settings, tmp_path / "pieces", die_at=chance.randrange(1, 40))
        assert ended in (-signal.SIGKILL, 0)
    assert run(settings, tmp_path / "pieces") == 0
    assert len(tensors(tmp_path / "whole")) > 10
    assert tensors(tmp_path / "pieces") == tensors(tmp_path / "whole")
