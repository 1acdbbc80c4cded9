"""One complete round of ``pairwise`` against one of Flower's SecAgg+: ``python benchmarks/versus_flwr.py``.

Both aggregate the same updates with the same weights in this process, over a complete graph with the same threshold.
The same tenth of the clients falls silent before it uploads, the one phase in which flwr's round survives that. Rounds
of the two alternate, figures are medians over rounds, and a wrong mean ends the run. ``pairwise`` pays for its way to
and from signed bytes; what flwr is spared is listed in ``flwr_round.py``.

The full size, ``--clients 100 --dimension 1000000``, takes flwr about five minutes of CPU a round and is the default;
``--quick`` is 20 clients and 100,000 parameters. ``--json FILE`` writes the medians by phase as well.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: the threads of a BLAS that wait would be counted

from flwr_round import flwr_round
from measure import CLIENT, DOWN, REPLIES, SERVER, UP, Meter, Updates, silent_clients
from pairwise import Cohort, pairwise_round

OURS = "pairwise"
FLWR = "flwr"
WHOLE_ROUND = (CLIENT, SERVER, UP, DOWN, REPLIES)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of pairwise")
    parser.add_argument("--flwr-repeats", type=int, default=1, help="rounds of flwr")
    parser.add_argument("--quick", action="store_true", help="20 clients, 100,000 parameters")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.dimension = 20, 100_000
    clients, dimension = arguments.clients, arguments.dimension
    updates, silent = Updates(clients, dimension), silent_clients(clients, clients // 10)
    cohort = Cohort(updates)
    threshold = cohort.plan.threshold
    rounds: dict[str, list[Meter]] = {OURS: [], FLWR: []}
    for turn in range(max(arguments.repeats, arguments.flwr_repeats)):
        if turn < arguments.repeats:
            rounds[OURS].append(pairwise_round(cohort, silent))
        if turn < arguments.flwr_repeats:
            rounds[FLWR].append(flwr_round(updates, threshold, silent))
    print(f"n = {clients}, d = {dimension:,}, {len(silent)} dropped, threshold {threshold}")
    print(f"{'':<40}{OURS:>12}{FLWR:>12}{'flwr / ours':>14}")
    rows = {name: _rows(metered, dimension) for name, metered in rounds.items()}
    for label, ours in rows[OURS].items():
        theirs = rows[FLWR][label]
        print(f"{label:<40}{ours:>12.4f}{theirs:>12.4f}{theirs / ours:>14.2f}")
    if arguments.json:
        report = {"clients": clients, "dimension": dimension, "dropped": len(silent), "threshold": threshold}
        report |= {name: rows[name] | {"phases": _phases(metered)} for name, metered in rounds.items()}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _rows(rounds: list[Meter], dimension: int) -> dict[str, float]:
    """One protocol's column."""
    columns = {
        "CPU seconds, all clients": lambda it: it.total(CLIENT),
        "CPU seconds, server": lambda it: it.total(SERVER),
        "vector's upload, bytes a parameter": lambda it: max(_by_phase(it, UP)) / dimension,
        "all a client sends, bytes a parameter": lambda it: sum(_by_phase(it, UP)) / dimension,
        "all a client is sent, bytes a parameter": lambda it: sum(_by_phase(it, DOWN)) / dimension,
        "messages a client sends and is sent": lambda it: 2 * len(it.phases),
    }
    return {label: statistics.median(map(column, rounds)) for label, column in columns.items()}


def _by_phase(meter: Meter, what: str) -> list[float]:
    return [meter.per_client(what, phase) for phase in meter.phases]


def _phases(rounds: list[Meter]) -> dict[str, dict[str, float]]:
    """Every count's median over all clients, by phase."""
    return {
        phase: {what: statistics.median(it.counts[what, phase] for it in rounds) for what in WHOLE_ROUND}
        for phase in rounds[0].phases
    }


if __name__ == "__main__":
    main()
