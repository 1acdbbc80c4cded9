"""One round of ``bfv`` and of ``ckks`` against NVFlare's encryption: ``python benchmarks/versus_nvflare.py``.

All aggregate the same updates with the same weights in this process. Their clients take turns, one of each after the
other, figures are medians over rounds, and a wrong mean ends the run. Ours are the real sessions: encrypting is from
encoded coordinates to ciphertext bytes, packing and tags included; adding is from bytes to the sum, all checks of a
ciphertext included; a whole phase is everything else as well: clip, rotate and round, digests, signatures, envelopes.

NVFlare is what version 2 does with TenSEAL by the parameters that its provisioning writes: CKKS of degree 8192, primes
of 60, 40 and 40 bits, scale 2^40, symmetric encryption, relinearisation keys. A client weighs a tensor in float64 and
makes one ``ckks_vector`` of it; the server holds a context without keys. Two columns, one tensor for the whole vector
and tensors as LoRA makes them (rank 8, width 2560: they fill their ciphertexts); a ratio takes the better of the two in
every row. A third column, outside the ratios, is public-key encryption. NVFlare is spared: its messages' way through
decomposers and streaming, its log, and the division, which it does on ciphertexts and which is done here on what a
client decrypted. It has no digests, signatures or checks of a sum.

The full size takes two to three minutes; ``--quick`` is 100,000 parameters and one round; ``--json FILE`` writes every
column's medians.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: the threads of a BLAS that wait would be counted

import numpy as np
import tenseal as ts
from measure import CLIENT, DOWN, SERVER, UP, Meter, Updates
from numpy.typing import NDArray
from pairwise import Cohort

from fedvlm_secure.encoding.codec import Codec, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.encrypted.bfv import BfvSheet
from fedvlm_secure.secagg.encrypted.ckks import CkksSheet
from fedvlm_secure.secagg.encrypted.messages import INPUT, KEYS, SUM
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, packing
from fedvlm_secure.secagg.encrypted.scheme import Key, Scheme
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.server import ServerSessionBase

CLIENTS = 10
NVFLARE_READERS = 3  # clients that read its sum: enough for a figure; of ours more than half must, and all do
LORA_TENSOR = 8 * 2560
ONE_TENSOR, LORA_TENSORS, PUBLIC_KEY = "NVFlare, 1 tensor", "NVFlare, LoRA", "NVFlare, public"
THEIRS = (ONE_TENSOR, LORA_TENSORS)
SHARED_SLOTS = (14, 8)  # value_bits of unweighted updates, of which two and three fit a slot

# Parts of a session's work, counted once more by themselves.
ENCODING, FILLING, PACKING, ENCRYPTING = "encoding", "filling", "packing and tags", "encrypting"
LOADING, ADDING, DECRYPTING = "loading", "adding", "decrypting"
_PARTS: tuple[tuple[str, type, str], ...] = (
    (ENCODING, Codec, "encode"),
    (ENCODING, Codec, "weigh"),
    (ENCRYPTING, Key, "encrypt"),
    (LOADING, Scheme, "load"),
    (ADDING, Scheme, "add"),
    (DECRYPTING, Key, "decrypt"),
)

ERROR = "relative L2 error of the mean"

Steps = Generator[None, None, "Round"]
Columns = dict[str, dict[str, float]]  # by name, then by what a row is called


@dataclass(frozen=True, slots=True)
class Round:
    """What one round cost, and the relative L2 error of its mean."""

    meter: Meter
    error: float


class EncryptedCohort(Cohort):
    """A cohort under ``bfv`` or ``ckks``; ``layout`` where another than the default is wanted."""

    def __init__(self, updates: Updates, protocol: str, layout: VectorLayout | None = None, **params: Any) -> None:
        super().__init__(updates, protocol=protocol, **params)
        if layout is not None:
            self.plan = replace(self.plan, layout=layout, ring_bits=layout.ring_bits(len(self.names)))

    def party(self, index: int) -> Party:
        """One client, as it enters a round."""
        policy = Policy(self.plan.threat_model, 0, min_survivors=1, protocols=(self.plan.protocol,))
        return Party(self.names[index], self.keys[self.names[index]], self.roster, policy, self.plan.model)

    def update(self, index: int) -> Update:
        """What it contributes."""
        return Update(self.updates.values[index], {"weight": self.updates.weights[index]})

    def client(self, index: int) -> ClientSessionBase:
        """Its session."""
        return lookup(self.plan.protocol).client(self.party(index), self.update(index))

    def server(self) -> ServerSessionBase:
        """The server's session."""
        return lookup(self.plan.protocol).server(self.plan, self.server_key, self.roster)


def encrypted_round(cohort: EncryptedCohort, expected: NDArray[np.float64]) -> Steps:
    """One round of ours, a client at a time."""
    meter = Meter()
    server = meter.timed(SERVER, KEYS, cohort.server)
    clients = {name: meter.timed(CLIENT, INPUT, cohort.client, index) for index, name in enumerate(cohort.names)}
    while not server.done:
        phase, requests = server.phase, server.requests()
        while True:
            with _parts(meter, phase):
                item = meter.timed(SERVER, phase, next, requests, None)
                if item is None:
                    break
                reply = meter.timed(CLIENT, phase, clients[item[0]].reply, item[1])
                meter.timed(SERVER, phase, server.receive, item[0], reply)
            meter.exchanged(phase, len(item[1]), len(reply))
            del item, reply
            yield
        meter.timed(SERVER, phase, server.end_phase)
    meter.counts[PACKING, INPUT] = meter.counts[FILLING, INPUT] - meter.counts[ENCODING, INPUT]
    read = [session.sum for session in clients.values() if session.sum is not None]
    decoded = cohort.plan.codec.decode(read[0].total)
    cohort.updates.check(decoded.mean, set(), cohort.plan.codec.step)
    return Round(meter, _relative_error(decoded.mean, expected))


@contextlib.contextmanager
def _parts(meter: Meter, phase: str) -> Iterator[None]:
    """Meanwhile the parts that NVFlare has as well are counted by themselves."""
    with contextlib.ExitStack() as stack:
        for what, owner, name in _PARTS:
            stack.enter_context(meter.inside(what, phase, owner, name))
        for sheet in (BfvSheet, CkksSheet):
            stack.enter_context(patch.object(sheet, "fill", _counted(meter, phase, sheet.fill)))
        yield


def _counted(meter: Meter, phase: str, fill: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def steps(*args: Any) -> Iterator[Any]:
        sheets = fill(*args)
        while (sheet := meter.timed(FILLING, phase, next, sheets, None)) is not None:
            yield sheet

    return steps


class Nvflare:
    """A federation as NVFlare provisions it, whose updates come in tensors of ``tensor`` values."""

    def __init__(self, updates: Updates, tensor: int, kind: ts.ENCRYPTION_TYPE) -> None:
        self.updates, self.tensor = updates, tensor
        primes = [60, 40, 40]
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=primes, encryption_type=kind)
        self.context.generate_relin_keys()
        self.context.global_scale = 2**40
        public = self.context.serialize(
            save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=True
        )
        self.server_context = ts.context_from(public)

    def weigh(self, index: int) -> list[NDArray[np.float64]]:
        """A client's tensors, times its weight."""
        values, weight = self.updates.values[index], np.float64(self.updates.weights[index])
        return [values[start : start + self.tensor] * weight for start in range(0, len(values), self.tensor)]

    def encrypt(self, tensors: list[NDArray[np.float64]]) -> list[bytes]:
        """What a client sends. TenSEAL prints a warning for every tensor that is longer than one ciphertext."""
        with contextlib.redirect_stdout(io.StringIO()):
            return [ts.ckks_vector(self.context, tensor).serialize() for tensor in tensors]

    def load(self, tensors: list[bytes]) -> list[ts.CKKSVector]:
        """What the server makes of it."""
        return [ts.ckks_vector_from(self.server_context, tensor) for tensor in tensors]

    @staticmethod
    def add(totals: list[ts.CKKSVector], vectors: list[ts.CKKSVector]) -> None:
        """Add to the running sum, tensor by tensor, as its aggregator does: not in place."""
        for place, vector in enumerate(vectors):
            totals[place] = totals[place] + vector

    def decrypt(self, tensors: list[bytes]) -> NDArray[np.float64]:
        """What a client reads off the sum."""
        return np.concatenate([ts.ckks_vector_from(self.context, tensor).decrypt() for tensor in tensors])


def nvflare_round(nvflare: Nvflare, expected: NDArray[np.float64], step: float) -> Steps:
    """One round of NVFlare's, a client at a time."""
    meter, updates = Meter(), nvflare.updates
    totals: list[ts.CKKSVector] = []
    for index in range(len(updates.values)):
        weighed = meter.timed(ENCODING, INPUT, nvflare.weigh, index)
        sent = meter.timed(ENCRYPTING, INPUT, nvflare.encrypt, weighed)
        vectors = meter.timed(LOADING, INPUT, nvflare.load, sent)
        if totals:
            meter.timed(ADDING, INPUT, nvflare.add, totals, vectors)
        else:
            totals = vectors
        meter.exchanged(INPUT, 0, sum(map(len, sent)))
        del weighed, sent, vectors
        yield
    counts = meter.counts
    counts[CLIENT, INPUT] = counts[ENCODING, INPUT] + counts[ENCRYPTING, INPUT]
    relayed = meter.timed(SERVER, INPUT, lambda: [total.serialize() for total in totals])
    counts[SERVER, INPUT] += counts[LOADING, INPUT] + counts[ADDING, INPUT]
    for _ in range(NVFLARE_READERS):
        total = meter.timed(CLIENT, SUM, nvflare.decrypt, relayed)
        meter.exchanged(SUM, sum(map(len, relayed)), 0)
        yield
    mean = total / sum(updates.weights)
    updates.check(mean, set(), step)
    return Round(meter, _relative_error(mean, expected))


def weighted_mean(updates: Updates) -> NDArray[np.float64]:
    """The true mean, float64 [d]."""
    total = np.zeros(len(updates.values[0]))
    for values, weight in zip(updates.values, updates.weights, strict=True):
        total += values.astype(np.float64) * weight
    return total / sum(updates.weights)


def _relative_error(mean: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(mean - expected) / np.linalg.norm(expected))


def in_turn(rounds: dict[str, Steps]) -> dict[str, Round]:
    """All rounds' results; one step of each after the other."""
    results: dict[str, Round] = {}
    while len(results) < len(rounds):
        for name, steps in rounds.items():
            if name in results:
                continue
            try:
                next(steps)
            except StopIteration as end:
                results[name] = end.value
    return results


def error_as_pairwise(updates: Updates) -> float:
    """The relative error of ``bfv``'s mean where equal integers go in, as rounding to nearest makes them.

    Raises:
        RuntimeError: the sum is not that of ``pairwise``, bit for bit.
    """
    totals = []
    for cohort in (Cohort(updates, rounding="nearest"), EncryptedCohort(updates, BFV, rounding="nearest")):
        clients = {name: cohort.client(index) for index, name in enumerate(cohort.names)}
        total = run_round(cohort.server(), clients)
        totals.append(next((session.sum for session in clients.values() if session.sum is not None), total).total)
    if not np.array_equal(*totals):
        raise RuntimeError("bfv's sum of equal integers is not pairwise's")
    return _relative_error(cohort.plan.codec.decode(totals[1]).mean, weighted_mean(updates))


def rows(rounds: list[Round], dimension: int) -> dict[str, float]:
    """One column's medians."""

    def a_parameter(phase: str, *parts: str) -> Callable[[Round], float]:
        return lambda it: 1e6 * sum(it.meter.per_client(part, phase) for part in parts) / dimension

    columns: dict[str, Callable[[Round], float]] = {
        "upload, bytes a parameter": lambda it: it.meter.per_client(UP, INPUT) / dimension,
        "sum, bytes a parameter": lambda it: it.meter.per_client(DOWN, SUM) / dimension,
        "client: encrypt, serialise": a_parameter(INPUT, PACKING, ENCRYPTING),
        "client: whole input phase": a_parameter(INPUT, CLIENT),
        "server: deserialise, add": a_parameter(INPUT, LOADING, ADDING),
        "server: whole input phase": a_parameter(INPUT, SERVER),
        "client: reading the sum": a_parameter(SUM, CLIENT),
        ERROR: lambda it: it.error,
    }
    return {label: statistics.median(map(column, rounds)) for label, column in columns.items()}


def _shared_slots(updates: Updates) -> dict[str, EncryptedCohort]:
    """Cohorts under ``bfv`` whose coordinates share slots, by what to call them."""
    cohorts = {}
    for value_bits in SHARED_SLOTS:
        layout = VectorLayout(len(updates.values[0]), (Counter("weight", 1),), value_bits, weight_max=1)
        name = f"{value_bits} bits, {packing(layout, CLIENTS).per_slot} a slot"
        cohorts[name] = EncryptedCohort(updates, BFV, layout)
    return cohorts


def measure(updates: Updates, repeats: int) -> tuple[Columns, Columns]:
    """Medians by column, and those of ours where coordinates share slots."""
    dimension = len(updates.values[0])
    unweighted = Updates(CLIENTS, dimension)
    unweighted.weights = [1] * CLIENTS
    means = weighted_mean(updates), weighted_mean(unweighted)
    ours = {protocol: EncryptedCohort(updates, protocol) for protocol in (BFV, CKKS)}
    shared = _shared_slots(unweighted)
    symmetric, public = ts.ENCRYPTION_TYPE.SYMMETRIC, ts.ENCRYPTION_TYPE.ASYMMETRIC
    theirs = {
        ONE_TENSOR: Nvflare(updates, dimension, symmetric),
        LORA_TENSORS: Nvflare(updates, LORA_TENSOR, symmetric),
        PUBLIC_KEY: Nvflare(updates, dimension, public),
    }
    rounds: dict[str, list[Round]] = {name: [] for name in (*ours, *theirs, *shared)}
    for _ in range(repeats):
        steps = {name: encrypted_round(cohort, means[0]) for name, cohort in ours.items()}
        steps |= {name: nvflare_round(it, means[0], ours[CKKS].plan.codec.step) for name, it in theirs.items()}
        steps |= {name: encrypted_round(cohort, means[1]) for name, cohort in shared.items()}
        for name, result in in_turn(steps).items():
            rounds[name].append(result)
    columns = {name: rows(results, dimension) for name, results in rounds.items()}
    return {name: columns[name] for name in (*ours, *theirs)}, {name: columns[name] for name in shared}


def _print(columns: Columns, ratios: tuple[str, ...] = ()) -> None:
    """A table; ``ratios`` are the columns that NVFlare's better one is compared with."""
    header = [*columns, *(f"NVFlare / {name}" for name in ratios)]
    print(f"{'CPU: µs a parameter':<32}" + "".join(f"{name:>18}" for name in header))
    for label in next(iter(columns.values())):
        cells = [_number(column[label]) for column in columns.values()]
        if label != ERROR:
            cells += [f"{min(columns[it][label] for it in THEIRS) / columns[name][label]:.2f}" for name in ratios]
        print(f"{label:<32}" + "".join(f"{cell:>18}" for cell in cells))


def _number(value: float) -> str:
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def main() -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="100,000 parameters, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.dimension, arguments.repeats = 100_000, 1
    updates = Updates(CLIENTS, arguments.dimension)
    columns, shared = measure(updates, arguments.repeats)
    nearest = error_as_pairwise(updates)
    print(f"n = {CLIENTS}, d = {arguments.dimension:,}, medians of {arguments.repeats} rounds\n")
    _print(columns, (BFV, CKKS))
    print(f"Rounded to nearest, bfv's sum is that of pairwise, bit for bit: {ERROR} {nearest:.1e}\n\nbfv, unweighted:")
    _print(shared)
    if arguments.json:
        report = {"clients": CLIENTS, "dimension": arguments.dimension, "columns": columns | shared}
        arguments.json.write_text(json.dumps(report | {"error, rounded to nearest": nearest}, indent=2) + "\n")


if __name__ == "__main__":
    main()
