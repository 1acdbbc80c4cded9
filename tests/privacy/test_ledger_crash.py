"""A ledger whose process is killed: whatever it has acknowledged is counted, and it opens again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledger_process import EVENT, POINTS

from fedvlm_secure.privacy.accounting import epsilon
from fedvlm_secure.privacy.ledger import Ledger

SCRIPT = Path(__file__).with_name("ledger_process.py")


def start(path: Path, point: str, count: int) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(SCRIPT), str(path), point, str(count)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def check(path: Path, lines: list[str], deaths: int) -> None:
    """All that was acknowledged is there, and at most one entry more a death; ε counts every one of them."""
    ledger = Ledger(path)
    releases = ledger.releases()
    told = []
    for release in releases:
        told += [f"reserved {release.round}", *[f"released {release.round}"] * release.released]
    assert set(lines) <= set(told)
    assert len(told) <= len(set(lines)) + deaths
    assert ledger.spent("f" * 64, 1e-5) == epsilon([EVENT] * len(releases), 1e-5)
    for number, release in enumerate(releases, 1):
        assert (release.round, release.event) == (number, EVENT)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_of_writing(tmp_path: Path, point: str) -> None:
    path = tmp_path / "ledger.sqlite"
    lines: list[str] = []
    for deaths, count in ((1, 1), (2, 4)):
        process = start(path, point, count)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        lines += output.splitlines()
        check(path, lines, deaths)


@pytest.mark.slow
def test_killed_at_any_time(tmp_path: Path) -> None:
    path, lines = tmp_path / "ledger.sqlite", [""]
    for life in range(12):
        process = start(path, "never", 1)
        assert process.stdout is not None
        lines.append(process.stdout.readline().strip())
        time.sleep(random.Random(life).uniform(0, 0.1))
        process.kill()
        lines += process.stdout.read().splitlines()
        process.wait()
        check(path, [line for line in lines if line], life + 1)
