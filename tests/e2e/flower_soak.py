"""Many rounds over real SuperNodes while processes are killed at random: ``make soak``.

Ends with an error if a sum is not, to the last bit, that of its survivors' updates, if a process is left over, or if
the server's process grows.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from network_kit import SITES, assert_exact, begin, kill_server, learnt

from fedvlm_secure.engines.flower.network import SERVER, Network
from fedvlm_secure.errors import MisuseError

DEADLINE = 30  # seconds that hospitals have for a message
STUCK = 900.0  # seconds without a new round
WATCHED = 5.0  # seconds between looks at what has ended
STARTING = 20.0  # seconds that a server has to come up before another is asked for
MEMORY_MIB, SETTLED = 64, 20  # by which the server's process may ever grow, after so many seconds
SUPERLINK = "superlink"


class Killer(threading.Thread):
    """Kills a hospital, the server or the SuperLink now and then, and starts it again a little later.

    What ends by itself meanwhile is started again as well, as an init system would.
    """

    def __init__(self, network: Network, choices: random.Random, pause: float) -> None:
        super().__init__()
        self.network, self.choices, self.pause = network, choices, pause
        self.over, self.killed = threading.Event(), list[str]()

    def run(self) -> None:
        due = time.monotonic() + self.choices.expovariate(1 / self.pause)
        while not self.over.wait(WATCHED):
            self.network.revive()
            if time.monotonic() < due:
                continue
            due = time.monotonic() + self.choices.expovariate(1 / self.pause)
            # Three hospitals make a sum, so one of four at a time.
            victim = self.choices.choices([*SITES, SERVER, SUPERLINK], [2] * len(SITES) + [2, 1])[0]
            self.killed.append(victim)
            if victim == SERVER:
                kill_server(self.network)
                continue
            self.network.kill(victim)
            self.over.wait(self.choices.uniform(0, 10))
            if victim == SUPERLINK:
                self.network.start_superlink()
            else:
                self.network.start(victim)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, help="of who is killed and when; another one every time if not given")
    parser.add_argument("--pause", type=float, default=150.0, help="mean seconds from a kill to the next")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="fedvlm-soak-"))
    print(f"seed {seed}, everything is in {folder}", flush=True)
    began, network = time.monotonic(), Network(folder, SITES)
    with network:
        killer = Killer(network, random.Random(seed), options.pause)
        killer.start()
        try:
            rounds(network, options.rounds, killer)
        finally:
            killer.over.set()
            killer.join()
    if left := _left_over(folder):
        sys.exit(f"left over: {left}")
    exact = [assert_exact(network, number) for number in range(1, options.rounds + 1)]
    whole = sum(len(survivors) == len(SITES) for survivors in exact)
    times = {name: killer.killed.count(name) for name in (*SITES, SERVER, SUPERLINK)}
    print(f"{len(exact)} rounds, every sum exact, {whole} of them of all {len(SITES)} hospitals")
    print(f"killed: {times}; {time.monotonic() - began:.0f} s; nothing left running")


def rounds(network: Network, wanted: int, killer: Killer) -> None:
    """Begin runs until there are so many rounds; a run ends when its server was killed."""
    memory: dict[int, list[float]] = {}  # of each of the server's processes, sample by sample
    last, since, asked = 0, time.monotonic(), 0.0
    while (done := len(learnt(network))) < wanted:
        if done > last:
            last, since = done, time.monotonic()
            print(f"{done} of {wanted} rounds, {len(killer.killed)} kills", flush=True)
        if time.monotonic() - since > STUCK:
            sys.exit(f"no round for {STUCK:.0f} s after round {done}; see {network.folder}")
        if (server := _server(network)) is not None:
            with suppress(psutil.NoSuchProcess):
                memory.setdefault(server.pid, []).append(server.memory_info().rss / 2**20)
        elif time.monotonic() - asked > STARTING:
            with suppress(MisuseError):  # while the SuperLink is down
                begin(network, wanted - done, seconds=DEADLINE)
                asked = time.monotonic()
        time.sleep(1)
    lives = [life[SETTLED:] for life in memory.values() if len(life) > 2 * SETTLED]
    grown = max((max(life) - life[0] for life in lives), default=0.0)
    print(f"the server's memory grew by at most {grown:.0f} MiB in one of its {len(memory)} lives")
    if grown > MEMORY_MIB:
        sys.exit("that is too much")


def _left_over(folder: Path, patience: float = 10.0) -> list[str]:
    """Processes of this deployment that have not ended."""
    ends = time.monotonic() + patience
    while True:
        commands = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
        found = [command for command in commands if str(folder) in command]
        if not found or time.monotonic() > ends:
            return found
        time.sleep(0.5)


def _server(network: Network) -> psutil.Process | None:
    """The server's process, if it runs or has just been asked for."""
    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int((network.party(SERVER) / "pid").read_text()))
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


if __name__ == "__main__":
    main()
