"""How fast a finished run is audited: ``python benchmarks/audit_run.py``.

CPU seconds of one core for runs under ``pairwise``, with all clients' logs. A small message costs the check of its
signature, whatever its size; kept payloads are read, hashed and summed again. Bytes are those of transcripts, logs and
payloads.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: one core is what is asked about
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from audit_run_kit import Run

from fedvlm_secure.audit.run import audit_run

# Clients, parameters, rounds, whether payloads are kept.
SETUPS = (
    (10, 24, 2, False),
    (10, 24, 20, False),
    (10, 24, 200, False),
    (25, 24, 2, False),
    (50, 24, 2, False),
    (100, 24, 2, False),
    (10, 100_000, 2, True),
    (10, 1_000_000, 2, True),
    (10, 1_000_000, 8, True),
)


def measure(folder: Path, clients: int, size: int, rounds: int, keep: bool) -> tuple[int, float]:
    """Bytes audited, and CPU seconds, the better of two."""
    run = Run(folder / "run", "pairwise", clients, random.Random(1), 0.02, keep=keep, size=size, rounds=rounds)
    while run.attempts.round <= rounds:
        run.round()
    logs = run.finish()
    parts = [run.folder.coordinator.path / name for name in ("transcript", "payloads")]
    files = [path for part in parts for path in part.rglob("*") if path.is_file()]
    seconds = []
    for _ in range(2):
        since = time.process_time()
        assert not audit_run(run.folder.path, logs).failed
        seconds.append(time.process_time() - since)
    return sum(path.stat().st_size for path in (*files, *logs)), min(seconds)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("clients  parameters  rounds  payloads        MB    CPU s  GB a minute")
    for clients, size, rounds, keep in SETUPS:
        with TemporaryDirectory() as folder:
            audited, seconds = measure(Path(folder), clients, size, rounds, keep)
        kept = "whole" if keep else "digests"
        print(
            f"{clients:>7}  {size:>10,}  {rounds:>6}  {kept:>8}  {audited / 1e6:>8.1f}  {seconds:>7.2f}"
            f"  {audited / 1e9 / seconds * 60:>11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
