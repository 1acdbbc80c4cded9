"""Fuzz every handler of messages: ``python tests/fuzz/fuzzer.py --messages 1000000 --seed 1``.

Messages are spoiled as bytes and as values; spoiled values are signed anew, so that they reach the rules behind the
signatures. Of every message must hold: what comes of it is an answer or a typed error, after an error the receiver's
state is what it was (or closed, where the rules say so), nobody honest is blamed, and memory does not grow. Every few
thousand messages the fuzzed sessions finish their round, and the sum is exact.

The same seed makes the same mutations; only what is drawn inside sealed boxes differs. What fails is written to a file.
"""

import argparse
import json
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, process_time

sys.path.insert(0, str(Path(__file__).parents[1] / "secagg"))

from fuzz_parsers import parsers
from fuzz_scenes import COHORTS, Scene, scenes, small_scale
from fuzz_targets import ClientTarget, ServerTarget, Spoiled, Target

EPOCH = 20_000  # messages between one set of rounds and the next
HANG = 30  # seconds of processor time after which a single message counts as a hang
FAILURES = 20  # after so many different ones it is not worth going on
MEMORY_MIB = 256  # by which the process may ever be larger than with its first set of rounds
LONG = 200_000  # a run of so many messages has to reach every clause

PARSER_SHARE = 0.25
FAILED = "FAILURE"

_EVERY_MESSAGE = {"P-1.1", "P-1.2", "P-1.3", "P-1.4", "P-1.5", "P-1.6", "accepted"}
_PLAN = {"P-2.1", "P-2.2", "P-2.3", "P-2.4", "P-2.5", "P-2.6", "P-2.7"}
REACHED: dict[str, set[str]] = {
    "client: keys": _EVERY_MESSAGE | _PLAN,
    "client: shares": _EVERY_MESSAGE | {"P-3.1", "P-3.2", "P-3.3", "P-3.4"},
    "client: masked-input": _EVERY_MESSAGE | {"P-4.2", "P-4.3", "P-4.4", "P-5.1"},
    "client: consistency": _EVERY_MESSAGE | {"P-6.1", "P-6.3"},
    "client: unmask": _EVERY_MESSAGE | {"P-7.2", "P-7.3", "P-7.4"},
    "client: plain": _EVERY_MESSAGE | _PLAN,
    "server: keys": _EVERY_MESSAGE | {"P-1.7", "P-3.1"},
    "server: shares": _EVERY_MESSAGE | {"P-1.7", "P-4.2", "P-4.3", "P-4.4"},
    "server: masked-input": _EVERY_MESSAGE | {"P-1.7", "P-5.3"},
    "server: consistency": _EVERY_MESSAGE | {"P-1.7", "P-6.2"},
    "server: unmask": _EVERY_MESSAGE | {"P-1.7", "P-7.4", "P-7.7"},
    "server: plain": _EVERY_MESSAGE | {"P-1.7", "P-5.3"},
    "parse: roster": {"R-1", "R-2", "R-4", "R-5", "R-6", "accepted"},
    "parse: enrolment": {"R-1", "R-2", "R-4", "accepted"},
}


class HangError(BaseException):
    """One message has taken :data:`HANG` seconds of processor time."""


@dataclass
class Tally:
    """What has come of the messages so far.

    Attributes:
        outcomes: how often each handler has come to each outcome.
        slowest: the longest processor time for one message, in seconds, by handler.
        failures: what was found first at each place, by handler and line of code.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def never_reached(self) -> list[str]:
        """The clauses that no message has reached, by handler."""
        return [
            f"{handler} {clause}"
            for handler, clauses in REACHED.items()
            for clause in sorted(clauses)
            if not self.outcomes[handler, clause]
        ]

    def __str__(self) -> str:
        lines = []
        for handler in sorted({handler for handler, _ in self.outcomes}):
            counts = {outcome: count for (name, outcome), count in sorted(self.outcomes.items()) if name == handler}
            words = ", ".join(f"{outcome} {count}" for outcome, count in counts.items())
            lines.append(f"{handler:22} {sum(counts.values()):8}  slowest {self.slowest[handler]:.2f} s  {words}")
        return "\n".join(lines)


def fuzz(messages: int, seed: int, folder: Path, finish: bool = True) -> Tally:
    """Try ``messages`` spoiled messages; what fails is described in files in ``folder``.

    Args:
        finish: play the fuzzed rounds to their end, and compare the sums.
    """
    tally = Tally()
    with small_scale(), _watchdog():
        for start in range(0, messages, EPOCH):
            rounds = _new_scenes(seed, start // EPOCH)
            sessions = _by_handler(side(scene) for scene in rounds for side in (ClientTarget, ServerTarget))
            readers = _by_handler(target for scene in rounds for target in parsers(scene))
            others = [message for scene in rounds for message in (scene.request, scene.reply)]
            for number in range(start, min(start + EPOCH, messages)):
                rng = random.Random(f"{seed}/{number}")
                target = rng.choice(rng.choice(readers if rng.random() < PARSER_SHARE else sessions))
                _try(target, rng, others, tally, folder / f"fuzz-failure-{seed}-{number}.json")
                if len(tally.failures) >= FAILURES:
                    return tally
            if finish:  # after thousands of refused messages the honest ones still make the exact sum
                for scene in rounds:
                    scene.finish_rightly()
    return tally


def _new_scenes(seed: int, epoch: int) -> list[Scene]:
    rng = random.Random(f"{seed}/epoch {epoch}")
    return [scene for cohort in COHORTS for scene in scenes(rng, cohort)]


def _by_handler(targets: Iterable[Target]) -> list[list[Target]]:
    """So that each handler has its fair share, however many situations there are for it."""
    sorts: dict[str, list[Target]] = {}
    for target in targets:
        sorts.setdefault(target.handler, []).append(target)
    return list(sorts.values())


def _try(target: Target, rng: random.Random, others: list[bytes], tally: Tally, file: Path) -> None:
    spoiled, began = target.spoil(rng, others), process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
    try:
        outcome = target.hand_over(rng, spoiled)
    except (Exception, HangError) as error:  # noqa: BLE001  # whatever it is, it is what we are looking for
        outcome = FAILED
        raised = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{target.handler}, {Path(raised.filename).name}:{raised.lineno}"
        if where not in tally.failures:
            tally.failures[where] = f"{file.name}: {traceback.format_exc(limit=-3)}"
            _describe(file, target, spoiled)
        target.renew()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    tally.outcomes[target.handler, outcome] += 1
    tally.slowest[target.handler] = max(tally.slowest.get(target.handler, 0.0), process_time() - began)


def _describe(file: Path, target: Target, spoiled: Spoiled) -> None:
    case = {
        "handler": target.handler,
        "message": spoiled.message.hex(),
        "signed by": sorted(spoiled.liars),
        "receiver's state": target.state.hex(),
        "error": traceback.format_exc(),
    }
    file.write_text(json.dumps(case, indent=1))


@contextmanager
def _watchdog() -> Iterator[None]:
    def bark(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGVTALRM, bark)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """The command line; 1 if anything was found or a clause was never reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="where failing cases are written")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{options.messages} messages from seed {options.seed}", flush=True)
    fuzz(EPOCH // 10, options.seed, options.folder)  # caches fill, and the allocator takes what it needs
    peak, began = _peak_mib(), monotonic()
    tally = fuzz(options.messages, options.seed, options.folder)
    grown = _peak_mib() - peak
    print(tally)
    print(f"{monotonic() - began:.0f} s, peak memory {peak:.0f} MiB at first and {grown:.0f} MiB more at the end")
    print(*(f"{where}: {found}" for where, found in tally.failures.items()), sep="\n")
    unreached = tally.never_reached() if options.messages >= LONG else []
    if unreached:
        print("never reached:", "; ".join(unreached))
    return int(bool(tally.failures or unreached) or grown > MEMORY_MIB)


if __name__ == "__main__":
    sys.exit(main())
