"""A server and clients as processes that SIGKILL ends at any moment, until the round is done."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_party import FEDERATION
from secagg_kit import SERVER

SCRIPT = Path(__file__).with_name("crash_party.py")
PARTIES = (SERVER, *FEDERATION.names)


class Supervisor:
    """Starts the parties, and starts again whoever was killed; never two processes of one party at a time."""

    def __init__(self, folder: Path, life: Callable[[str, int], dict[str, str]]) -> None:
        self.folder, self.life = folder, life
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.deaths = dict.fromkeys(PARTIES, 0)

    def start(self, party: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.life(party, self.deaths[party])
        with (self.folder / f"{party}.log").open("ab") as log:
            self.processes[party] = subprocess.Popen(
                [sys.executable, str(SCRIPT), party, str(self.folder)], env=environment, stderr=log
            )

    def run(self, kill: Callable[[], str | None]) -> None:
        """Until the server ends; ``kill`` names whom to kill now, if anyone."""
        for party in PARTIES:
            self.start(party)
        while (server := self.processes[SERVER].poll()) != 0:
            victim = kill()
            if victim is not None:
                self.processes[victim].kill()
                self.processes[victim].wait()
            for party, process in self.processes.items():
                if process.poll() is not None and not (party == SERVER and process.returncode == 0):
                    assert process.returncode == -signal.SIGKILL, (self.folder / f"{party}.log").read_text()
                    self.deaths[party] += 1
                    self.start(party)
            time.sleep(0.005)
        assert server == 0

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def check(self) -> None:
        """The exact sum of everybody; one request and one reply a phase and client, however often it was sent."""
        result = json.loads((self.folder / "sum.json").read_text())
        assert tuple(result["survivors"]) == FEDERATION.names
        assert result["total"] == FEDERATION.expected(FEDERATION.names).tolist()
        for party in PARTIES:
            said = defaultdict(set)
            for line in (self.folder / f"{party}.sent").read_text().splitlines():
                phase, recipient, message = json.loads(line)
                said[phase, recipient].add(message)
            assert len(said) == (5 * len(FEDERATION.names) if party == SERVER else 5)
            assert all(len(messages) == 1 for messages in said.values())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the name of a Unix socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="crash-"))
    yield path
    shutil.rmtree(path)


def play(folder: Path, life: Callable[[str, int], dict[str, str]], kill: Callable[[], str | None]) -> int:
    supervisor = Supervisor(folder, life)
    try:
        supervisor.run(kill)
    finally:
        supervisor.end()
    supervisor.check()
    return sum(supervisor.deaths.values())


def test_a_few_deaths(folder: Path) -> None:
    """Of the server twice and of two clients, before a commit and after one."""
    lives = {
        SERVER: [{"DIE_AT": "9", "DIE_WHEN": "after"}, {"DIE_AT": "9", "DIE_WHEN": "before"}],
        "c01": [{"DIE_AT": "2", "DIE_WHEN": "before"}, {"DIE_AT": "3", "DIE_WHEN": "after"}],
        "c03": [{"DIE_AT": "5", "DIE_WHEN": "after"}],
    }
    deaths = play(folder, lambda party, life: dict(enumerate(lives.get(party, []))).get(life, {}), lambda: None)
    assert deaths == 5


@pytest.mark.slow
@pytest.mark.parametrize(("when", "server"), [("after", "1"), ("before", "2")])
def test_a_life_for_every_commit(folder: Path, when: str, server: str) -> None:
    """The server makes 26: the plan, 20 replies, 5 ends of a phase. A client's first repeats its last answer."""

    def life(party: str, number: int) -> dict[str, str]:
        return {"DIE_AT": server if party == SERVER else "2", "DIE_WHEN": when}

    assert play(folder, life, lambda: None) >= 25 + 4 * 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_deaths_at_any_moment(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    due = time.monotonic() + 1

    def kill() -> str | None:
        nonlocal due
        if time.monotonic() < due:
            return None
        due = time.monotonic() + chance.uniform(0.05, 0.6)
        return chance.choice(PARTIES)

    play(folder, lambda party, number: {"PAUSE": "0.05"}, kill)
