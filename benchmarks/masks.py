"""Mask expansion and accumulation against its two parts alone: ``python benchmarks/masks.py``.

Bytes of key stream a second on one core: AES-256 in plain counter mode, the counter mode inside GCM, an in-place add of
an expanded mask, and ``apply_masks``, which expands and adds. The ring is the default one, of 40 bits. They take turns,
a few masks over a whole vector each time, and the figures are medians over turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM

from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import CHUNK
from fedvlm_secure.secagg.pairwise.masks import Mask, apply_masks

RING = Ring(40)
PEERS = 10  # masks in one call, as a client has many: the sum's chunk stays in cache from one to the next
CTR_MODE, GCM_MODE, ADD, OURS = "AES-256-CTR", "AES-256-GCM as CTR", "in-place add", "apply_masks"


def contestants(dimension: int) -> dict[str, Callable[[], None]]:
    """What is timed: each handles :data:`PEERS` masks over ``dimension`` words."""
    total, mask = RING.zeros(dimension), RING.zeros(dimension)
    size, key = dimension * RING.word.itemsize, Secret.generate()
    zeros, keystream = bytes(CHUNK * RING.word.itemsize), bytearray(CHUNK * RING.word.itemsize)
    masks = [Mask(key, added=bool(number % 2)) for number in range(PEERS)]

    def expand(mode: CTR | GCM) -> None:
        for _ in range(PEERS):
            encryptor = Cipher(AES256(key.reveal()), mode).encryptor()
            for start in range(0, size, len(zeros)):
                encryptor.update_into(memoryview(zeros)[: size - start], keystream)

    def add() -> None:
        for _ in range(PEERS):
            np.add(total, mask, out=total)

    return {
        CTR_MODE: lambda: expand(CTR(bytes(16))),
        GCM_MODE: lambda: expand(GCM(bytes(12))),
        ADD: add,
        OURS: lambda: apply_masks(total, masks),
    }


def main() -> None:
    """Print the rates and the ratio that counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()
    timed = contestants(arguments.dimension)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(arguments.repeats):
        for name, act in timed.items():
            since = time.process_time()
            act()
            seconds[name].append(time.process_time() - since)
    size = PEERS * arguments.dimension * RING.word.itemsize
    rates = {name: size / statistics.median(spent) / 1e9 for name, spent in seconds.items()}
    print(f"masks over {arguments.dimension:,} words of {RING.word.itemsize} bytes, GB of key stream a second")
    for name, rate in rates.items():
        print(f"{name:<20}{rate:>8.2f}")
    slower = min(CTR_MODE, ADD, key=rates.__getitem__)
    print(f"{OURS} reaches {rates[OURS] / rates[slower]:.0%} of the slower part, {slower}")


if __name__ == "__main__":
    main()
