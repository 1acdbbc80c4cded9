"""``pairwise`` in large cohorts against an honest-but-curious server: ``python benchmarks/cohorts.py``.

On the sparse graph a client's masks cost what its k neighbours cost, whatever n is. A twentieth of the clients may be
corrupt, another twentieth falls silent before it uploads. Every cohort has a process to itself, for all its clients and
the server: the last column is the most memory that it ever had.

All sizes up to 3,000 clients take many minutes; ``--clients 100 300`` is a first look.
"""

import argparse
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: the threads of a BLAS that wait would be counted

from measure import CLIENT, SERVER, Updates, silent_clients
from pairwise import MASKS, Cohort, pairwise_round

from fedvlm_secure.secagg.pairwise.messages import MASKED_INPUT
from fedvlm_secure.secagg.plan import HONEST_BUT_CURIOUS


@dataclass(frozen=True, slots=True)
class Row:
    """CPU seconds of one client's masks and whole round, of the server's whole round, and peak memory in bytes."""

    degree: int
    threshold: int
    masks: float
    client: float
    server: float
    memory: int


def measure(clients: int, dimension: int) -> Row:
    """One round, in a process of its own."""
    dropped = corrupt = clients // 20
    cohort = Cohort(
        Updates(clients, dimension),
        threat_model=HONEST_BUT_CURIOUS,
        max_corrupt=corrupt,
        min_survivors=clients - dropped,
    )
    meter = pairwise_round(cohort, silent_clients(clients, dropped))
    return Row(
        degree=cohort.plan.degree,
        threshold=cohort.plan.threshold,
        masks=meter.per_client(MASKS, MASKED_INPUT),
        client=sum(meter.per_client(CLIENT, phase) for phase in meter.phases),
        server=meter.total(SERVER),
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--dimension", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"honest-but-curious, d = {arguments.dimension:,}, CPU seconds")
    print(f"{'n':>6}{'degree':>8}{'threshold':>11}{'masks':>10}{'a client':>10}{'server':>10}{'memory, GiB':>13}")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for clients in arguments.clients:
            row = processes.submit(measure, clients, arguments.dimension).result()
            print(
                f"{clients:>6}{row.degree:>8}{row.threshold:>11}{row.masks:>10.4f}{row.client:>10.4f}{row.server:>10.2f}"
                f"{row.memory / 2**30:>13.2f}"
            )


if __name__ == "__main__":
    main()
