"""What the benchmarks of whole rounds count, and the updates that they send.

CPU seconds are those of this process, all its threads together: the one number that two protocols in one process, on a
machine that does other things too, can be compared by.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

CLIENT = "client"
SERVER = "server"
UP = "bytes up"
DOWN = "bytes down"
REPLIES = "replies"


class Meter:
    """Amounts by what is counted and the phase it is counted in, over all clients together."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[str, str], float] = defaultdict(float)

    def timed(self, what: str, phase: str, act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``act(...)``, its CPU seconds counted as ``what`` in ``phase``."""
        since = time.process_time()
        result = act(*args, **kwargs)
        self.counts[what, phase] += time.process_time() - since
        return result

    @contextmanager
    def inside(self, what: str, phase: str, owner: object, name: str) -> Iterator[None]:
        """Meanwhile every call of ``owner.name`` is counted as ``what`` as well: a part of its caller's time."""
        original = getattr(owner, name)
        with patch.object(owner, name, lambda *args, **kwargs: self.timed(what, phase, original, *args, **kwargs)):
            yield

    def exchanged(self, phase: str, down: int, up: int) -> None:
        """Count one request of ``down`` bytes and its reply of ``up`` bytes."""
        self.counts[DOWN, phase] += down
        self.counts[UP, phase] += up
        self.counts[REPLIES, phase] += 1

    @property
    def phases(self) -> list[str]:
        """In the order they began."""
        return list(dict.fromkeys(phase for _, phase in self.counts))

    def total(self, what: str) -> float:
        """Over all phases."""
        return sum(amount for (counted, _), amount in self.counts.items() if counted == what)

    def per_client(self, what: str, phase: str) -> float:
        """The mean over the clients that answered in a phase."""
        return self.counts[what, phase] / self.counts[REPLIES, phase]


class Updates:
    """Every client's update and weight, and the mean that a round must give.

    Update ``i`` is the slice of one normal vector that starts at ``i``: all differ, and need no more memory than one.
    """

    def __init__(self, clients: int, dimension: int) -> None:
        values = np.random.default_rng(1).standard_normal(dimension + clients, np.float32)
        self.values = [values[index : index + dimension] for index in range(clients)]
        self.weights = [1 + index % 100 for index in range(clients)]
        self.clip_norm = 1.1 * float(np.linalg.norm(values))

    def check(self, mean: NDArray[np.float64], silent: set[int], step: float) -> None:
        """Compare a round's mean with the true one over the clients that were not silent.

        Args:
            step: what rounding may move a coordinate by at each client, before the division by the total weight.

        Raises:
            RuntimeError: the mean is wrong.
        """
        survivors = [index for index in range(len(self.values)) if index not in silent]
        total_weight = sum(self.weights[index] for index in survivors)
        expected = np.zeros(len(mean))
        for index in survivors:
            expected += self.values[index].astype(np.float64) * (self.weights[index] / total_weight)
        error, allowed = float(np.sqrt(np.mean((mean - expected) ** 2))), step * len(survivors) / total_weight
        if not error <= allowed:
            raise RuntimeError(f"the round's mean is off by {error:.1e} a coordinate; rounding explains {allowed:.1e}")


def silent_clients(clients: int, dropped: int) -> set[int]:
    """Which clients fall silent: evenly spread, since a pair's cost depends on whose name comes first."""
    return {index * clients // dropped for index in range(dropped)}
