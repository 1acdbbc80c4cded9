"""CPU seconds and bytes of one pairwise round: ``python benchmarks/pairwise.py [--clients 20] [--dimension 1000000]``.

CPU time of this process on one thread, medians over rounds: a client's is the mean over clients. "without encoding"
leaves out clip, rotation and rounding, the part that the mask arithmetic does not need.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict

# Before numpy is imported: several BLAS threads would all be counted.
os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np

from fedvlm_secure.encoding.codec import Codec, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.messages import PHASES
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plan import RUN_BYTES, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.roster import Member, Roster

WEIGHT_MAX = 4096


def one_round(clients: int, dimension: int, dropped: int) -> dict[tuple[str, str], float]:
    """CPU seconds by (side, phase), the encoding's share, and bytes a parameter up and down, for one client."""
    names = tuple(f"client-{index:04d}" for index in range(clients))
    keys, server_key = {name: Identity.generate() for name in names}, Identity.generate()
    roster = Roster(1, server_key.public, tuple(Member(name, keys[name].public) for name in names))
    random = np.random.default_rng(1)
    plan = propose(
        run=bytes(RUN_BYTES),
        round=1,
        attempt=1,
        cohort=names,
        layout=VectorLayout(dimension, (Counter("weight", WEIGHT_MAX),), weight_max=WEIGHT_MAX),
        clip_norm=float(dimension) ** 0.5,
        roster=roster.hash,
        model=digest("no-model"),
    )
    policy = Policy(min_survivors=plan.min_survivors)
    sessions = {
        name: PairwiseClient(
            Party(name, keys[name], roster, policy, plan.model),
            Update(random.standard_normal(dimension).astype(np.float32), {"weight": 1 + index}),
        )
        for index, name in enumerate(names)
    }
    server, silent, spent = PairwiseServer(plan, server_key, roster), set(names[:dropped]), defaultdict(float)

    def timed(side: str, phase: str, act, *arguments):
        since = time.process_time()
        result = act(*arguments)
        spent[side, phase] += time.process_time() - since
        return result

    encode = Codec.encode
    Codec.encode = lambda codec, update: timed("encoding", "masked-input", encode, codec, update)
    try:
        while not server.done:
            phase, requests = server.phase, server.requests()
            while (item := timed("server", phase, next, requests, None)) is not None:
                name, request = item
                if name in silent and PHASES.index(phase) >= PHASES.index("masked-input"):
                    continue
                reply = timed("client", phase, sessions[name].reply, request)
                spent["bytes up", phase] += len(reply)
                spent["bytes down", phase] += len(request)
                timed("server", phase, server.receive, name, reply)
                del reply
            timed("server", phase, server.end_phase)
        total = timed("server", "unmask", server.aggregate)
    finally:
        Codec.encode = encode
    timed("decoding", "unmask", plan.codec.decode, total.total)
    answered = {phase: clients - (dropped if phase not in ("keys", "shares") else 0) for phase in PHASES}
    return {key: value / (1 if key[0] in ("server", "decoding") else answered[key[1]]) for key, value in spent.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--dropped", type=int, default=0, help="clients that fall silent before they upload")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rounds = [one_round(arguments.clients, arguments.dimension, arguments.dropped) for _ in range(arguments.repeats)]
    median = {key: statistics.median(it.get(key, 0.0) for it in rounds) for key in {key for it in rounds for key in it}}
    print(f"pairwise, n = {arguments.clients}, d = {arguments.dimension:,}, {arguments.dropped} dropped, CPU seconds")
    print(f"{'phase':<14}{'a client':>10}{'server':>10}{'bytes up':>14}{'bytes down':>14}")
    for phase in PHASES:
        row = [median.get((side, phase), 0.0) for side in ("client", "server", "bytes up", "bytes down")]
        print(f"{phase:<14}{row[0]:>10.4f}{row[1]:>10.4f}{row[2]:>14,.0f}{row[3]:>14,.0f}")
    total = {side: sum(median.get((side, phase), 0.0) for phase in PHASES) for side in {key[0] for key in median}}
    print(f"{'total':<14}{total['client']:>10.4f}{total['server']:>10.4f}", end="")
    print(f"{total['bytes up']:>14,.0f}{total['bytes down']:>14,.0f}")
    print(f"a client without encoding {total['client'] - total['encoding']:.4f}; the server's decoding", end=" ")
    print(f"adds {total['decoding']:.4f}; upload {total['bytes up'] / arguments.dimension:.2f} bytes a parameter")


if __name__ == "__main__":
    main()
