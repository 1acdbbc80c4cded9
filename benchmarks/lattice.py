"""The arithmetic of lattice masks, part by part, on one core: ``python benchmarks/lattice.py``.

Nanoseconds of processor time for each coefficient, medians over turns, over a vector of ``--dimension`` coefficients in
both rings. Noise does not depend on the ring. Shares are of one polynomial of the larger ring, for a committee of 100
with a threshold of 67, 16 of whom give a wrong share to be located. Packed bytes are what is sent. The last line gives
wall-clock seconds for one use of everything in a new process, imports included: with nothing compiled before, and with
what the first such process has kept.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np

COMMITTEE, THRESHOLD = 100, 67


def lattice(dimension: int) -> dict[str, tuple[Callable[[], object], int, int]]:
    """What is timed: a call, the coefficients it handles and the packed bytes it reads or writes."""
    from fedvlm_secure.primitives import gaussian, packing, polynomial
    from fedvlm_secure.primitives.secret import Secret
    from fedvlm_secure.primitives.stream import MaskStream

    key, source = Secret.generate(), MaskStream(Secret.generate())
    timed: dict[str, tuple[Callable[[], object], int, int]] = {}
    for name, ring in (("SMALL", polynomial.SMALL), ("LARGE", polynomial.LARGE)):
        count = -(-dimension // ring.degree)
        size = count * ring.degree
        expanded = polynomial.expand(key, ring, 0, count)
        secret = gaussian.sample(ring.degree, source).astype(np.int64)
        transform = ring.transform(secret)
        addend = np.arange(size).reshape(count, ring.degree)
        words = ring.product(expanded, transform).reshape(-1)
        data, total = packing.pack(words, ring.bits), words.copy()
        calls: dict[str, Callable[[], object]] = {
            "transform": partial(ring.transform, secret),
            "expand": partial(polynomial.expand, key, ring, 0, count),
            "multiply_add": partial(polynomial.multiply_add, ring, expanded, transform, addend),
            "mask": partial(polynomial.mask, key, ring, transform, addend),
            "pack": partial(packing.pack, words, ring.bits),
            "unpack": partial(packing.unpack, data, ring.bits, size),
            "add_packed": partial(packing.add_packed, total, data, ring.bits, ring.modulus),
        }
        for part, call in calls.items():
            handled = ring.degree if part == "transform" else size
            timed[f"{name} {part}"] = call, handled, len(data) if "pack" in part else 0
    timed["gaussian sample"] = partial(gaussian.sample, dimension, source), dimension, 0
    return timed


def committee() -> dict[str, tuple[Callable[[], object], int, int]]:
    """The same for shares; coefficients are counted once, not for each member."""
    from fedvlm_secure.primitives import vector_shamir

    points, size = range(1, COMMITTEE + 1), 4096
    values = np.arange(size) % 41 - 20
    shares = vector_shamir.split(values, THRESHOLD, points)
    word = shares[:, 0].copy()
    word[: (COMMITTEE - THRESHOLD) // 2] ^= 1
    return {
        "shares split": (partial(vector_shamir.split, values, THRESHOLD, points), size, 0),
        "shares recover": (partial(vector_shamir.recover, points[:THRESHOLD], shares[:THRESHOLD]), size, 0),
        "shares syndromes": (partial(vector_shamir.syndromes, points, shares, THRESHOLD), size, 0),
        "shares locate": (partial(vector_shamir.locate, points, word, THRESHOLD), 0, 0),
    }


def first_use() -> list[float]:
    """Seconds for one use of everything in new processes, the second with what the first has compiled."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        seconds = []
        for _ in range(2):
            since = time.perf_counter()
            subprocess.run([sys.executable, __file__, "--once"], check=True, env=environment)
            seconds.append(time.perf_counter() - since)
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=1 << 20)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--once", action="store_true", help="use everything once and print nothing")
    arguments = parser.parse_args()
    timed = {**lattice(1 if arguments.once else arguments.dimension), **committee()}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(1 if arguments.once else arguments.repeats + 1):
        for name, (call, _, _) in timed.items():
            since = time.process_time()
            call()
            if turn:  # the first is for compiling
                seconds[name].append(time.process_time() - since)
    if arguments.once:
        return
    print(f"{'':<22}{'ms a call':>12}{'ns a coefficient':>18}{'packed GB/s':>14}")
    for name, (_, count, size) in timed.items():
        spent = statistics.median(seconds[name])
        each = f"{spent / count * 1e9:>18.2f}" if count else ""
        rate = f"{size / spent / 1e9:>14.2f}" if size else ""
        print(f"{name:<22}{spent * 1e3:>12.3f}{each}{rate}")
    compiling, kept = first_use()
    print(f"one use of everything in a new process: {compiling:.1f} s, with what it has kept {kept:.1f} s")


if __name__ == "__main__":
    main()
