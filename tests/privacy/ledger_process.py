"""A hospital's process that reserves and releases round after round, and is killed at a given point or at any time.

Usage: ledger_process.py LEDGER POINT COUNT. Every line it prints has been acknowledged by the ledger.
"""

import os
import signal
import sqlite3
import sys
from pathlib import Path

from fedvlm_secure.privacy import chain
from fedvlm_secure.privacy.accounting import SampledGaussian
from fedvlm_secure.privacy.ledger import Ledger

EVENT = SampledGaussian(1.0, 1.0, 3)
POINTS = ("begin", "insert", "commit", "committed", "anchor-part", "anchor", "reserved", "released")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Connection(sqlite3.Connection):
    """One whose process dies when it comes to a statement."""

    fatal = ""
    countdown = 0

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:  # type: ignore[override]
        for name, word in (("begin", "BEGIN"), ("insert", "INSERT"), ("commit", "COMMIT")):
            if statement.startswith(word) and hit(name):
                die()
        result = super().execute(statement, *values)
        if statement == "COMMIT" and hit("committed"):
            die()
        return result


def hit(name: str) -> bool:
    if name == Connection.fatal:
        Connection.countdown -= 1
    return name == Connection.fatal and Connection.countdown == 0


def arm(point: str, count: int) -> None:
    Connection.fatal, Connection.countdown = point, count
    connect, replace, sync = sqlite3.connect, Path.replace, os.fsync

    def killing_connect(place: str, **options: object) -> sqlite3.Connection:
        return connect(place, **(options | ({} if place == ":memory:" else {"factory": Connection})))  # type: ignore[call-overload,no-any-return]

    def killing_sync(descriptor: int) -> None:
        sync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith(".anchor.part") and hit("anchor-part"):
            die()

    def killing_replace(self: Path, target: Path) -> Path:
        result = replace(self, target)
        if target.name.endswith(".anchor") and hit("anchor"):
            die()
        return result

    chain.sqlite3.connect, Path.replace, os.fsync = killing_connect, killing_replace, killing_sync  # type: ignore[assignment,method-assign]


def main(path: Path, point: str, count: int) -> None:
    arm(point, count)
    ledger = Ledger(path)
    done = {(release.round, release.released) for release in ledger.releases()}
    for index in range(1, 1000):
        if (index, True) in done:
            continue
        ledger.reserve("run", index, 1, fingerprint="f" * 64, event=EVENT, unit="image", delta=1e-5)
        print("reserved", index, flush=True)
        if hit("reserved"):
            die()
        ledger.release("run", index, 1)
        print("released", index, flush=True)
        if hit("released"):
            die()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
