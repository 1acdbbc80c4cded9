"""CPU seconds and bytes of one ``pairwise`` round, by phase: ``python benchmarks/pairwise.py``.

A client's row is the mean over the clients that answer in that phase, each figure the median over rounds. The clients
that fall silent do so before they upload.
"""

import argparse
import os
import statistics
from contextlib import ExitStack
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: the threads of a BLAS that wait would be counted

from measure import CLIENT, DOWN, SERVER, UP, Meter, Updates, silent_clients

from fedvlm_secure.encoding.codec import Codec, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.pairwise import client as pairwise_client
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.messages import MASKED_INPUT, PHASES, UNMASK
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plan import RUN_BYTES, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.roster import simulated

WEIGHT_MAX = 4096
# Parts of a client's work, counted once more by themselves.
ENCODING = "encoding"
MASKS = "masks"


class Cohort:
    """A cohort's keys, its plan and the updates that it sends.

    Args:
        **params: ``threat_model``, ``max_corrupt``, ``min_survivors`` of the plan.
    """

    def __init__(self, updates: Updates, **params: Any) -> None:
        self.updates = updates
        self.names = [f"client-{index:04d}" for index in range(len(updates.values))]
        self.keys, self.server_key = {name: Identity.generate() for name in self.names}, Identity.generate()
        self.roster = simulated(self.server_key, self.keys)
        self.plan = propose(
            run=bytes(RUN_BYTES),
            round=1,
            attempt=1,
            cohort=tuple(self.names),
            layout=VectorLayout(len(updates.values[0]), (Counter("weight", WEIGHT_MAX),), weight_max=WEIGHT_MAX),
            clip_norm=updates.clip_norm,
            roster=self.roster.hash,
            model=digest("no-model"),
            **params,
        )

    def client(self, index: int) -> PairwiseClient:
        """One client's session."""
        policy = Policy(self.plan.threat_model, min_survivors=self.plan.min_survivors)
        party = Party(self.names[index], self.keys[self.names[index]], self.roster, policy, self.plan.model)
        return PairwiseClient(party, Update(self.updates.values[index], {"weight": self.updates.weights[index]}))

    def server(self) -> PairwiseServer:
        """The server's session."""
        return PairwiseServer(self.plan, self.server_key, self.roster)


def pairwise_round(cohort: Cohort, silent: set[int]) -> Meter:
    """What a complete round costs, from the sessions' opening to the decoded mean.

    Raises:
        RuntimeError: the mean is wrong.
    """
    meter = Meter()
    with ExitStack() as stack:
        stack.enter_context(meter.inside(ENCODING, MASKED_INPUT, Codec, "encode"))
        stack.enter_context(meter.inside(MASKS, MASKED_INPUT, pairwise_client, "apply_masks"))
        clients = {
            name: meter.timed(CLIENT, PHASES[0], cohort.client, index) for index, name in enumerate(cohort.names)
        }
        server = meter.timed(SERVER, PHASES[0], cohort.server)
        gone: set[str] = set()
        while not server.done:
            phase, requests = server.phase, server.requests()
            if phase == MASKED_INPUT:
                gone = {cohort.names[index] for index in silent}
            while (item := meter.timed(SERVER, phase, next, requests, None)) is not None:
                name, request = item
                if name not in gone:
                    reply = meter.timed(CLIENT, phase, clients[name].reply, request)
                    meter.timed(SERVER, phase, server.receive, name, reply)
                    meter.exchanged(phase, len(request), len(reply))
            meter.timed(SERVER, phase, server.end_phase)
        total = meter.timed(SERVER, UNMASK, server.aggregate)
        decoded = meter.timed(SERVER, UNMASK, cohort.plan.codec.decode, total.total)
    cohort.updates.check(decoded.mean, silent, cohort.plan.codec.step)
    return meter


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--dropped", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cohort = Cohort(Updates(arguments.clients, arguments.dimension))
    silent = silent_clients(arguments.clients, arguments.dropped)
    rounds = [pairwise_round(cohort, silent) for _ in range(arguments.repeats)]
    print(f"pairwise, n = {arguments.clients}, d = {arguments.dimension:,}, {arguments.dropped} dropped, CPU seconds")
    print(f"{'phase':<14}{'a client':>10}{'server':>10}{'bytes up':>14}{'bytes down':>14}")
    rows = {phase: row(rounds, phase) for phase in PHASES}
    rows["total"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    for phase, (client, server, up, down) in rows.items():
        print(f"{phase:<14}{client:>10.4f}{server:>10.4f}{up:>14,.0f}{down:>14,.0f}")
    parts = [statistics.median(it.per_client(part, MASKED_INPUT) for it in rounds) for part in (ENCODING, MASKS)]
    print(f"of a client's masked input, encoding is {parts[0]:.4f} and mask expansion and accumulation {parts[1]:.4f};")
    print(f"upload {rows['total'][2] / arguments.dimension:.2f} bytes a parameter")


def row(rounds: list[Meter], phase: str) -> list[float]:
    """Medians of one client's CPU seconds, the server's, and one client's bytes up and down."""
    columns = (
        lambda it: it.per_client(CLIENT, phase),
        lambda it: it.counts[SERVER, phase],
        lambda it: it.per_client(UP, phase),
        lambda it: it.per_client(DOWN, phase),
    )
    return [statistics.median(map(column, rounds)) for column in columns]


if __name__ == "__main__":
    main()
