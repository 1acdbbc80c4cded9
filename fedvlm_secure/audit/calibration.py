"""What the estimators find on an ideal Gaussian mechanism, whose ε is known: how far below the truth they stay."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from fedvlm_secure.audit.estimators import (
    gaussian_bound,
    gaussian_epsilon,
    guess,
    one_run_bound,
)
from fedvlm_secure.audit.score_bounds import cosine_bound, normal_bound, normal_estimate
from fedvlm_secure.primitives.noise import NoiseSource

EPSILONS = (2.0, 4.0, 8.0)
CANARIES = (100, 1000, 5000)
CLIENTS = 200
GUESSED = 0.5  # of the canaries, half of them «in»; fewer guesses would find more
TRIALS = 11
_SIZE = 10**6  # of canary clients' directions


@dataclass(frozen=True, slots=True)
class Calibration:
    """Medians over :data:`TRIALS` plays at one true ε.

    Attributes:
        one_run, gaussian: bounds, by the number of canaries.
        estimate, normal, cosine: by canary clients, :data:`CLIENTS` of which about half take part: Andrew's estimate,
            the bound that takes scores for normal, and the one that does not.
    """

    epsilon: float
    one_run: dict[int, float]
    gaussian: dict[int, float]
    estimate: float
    normal: float
    cosine: float

    def to_json(self) -> dict[str, Any]:
        """Kebab-case names and plain values."""
        return {
            "epsilon": self.epsilon,
            "one-run": {str(count): value for count, value in self.one_run.items()},
            "gaussian": {str(count): value for count, value in self.gaussian.items()},
            "canary-clients": {"estimate": self.estimate, "normal-bound": self.normal, "bound": self.cosine},
        }


def calibrate(
    delta: float, confidence: float, trials: int = TRIALS, on_row: Callable[[float], None] | None = None
) -> list[Calibration]:
    """Play against an ideal mechanism at each of :data:`EPSILONS`; ``on_row`` is called before each."""
    rows = []
    for epsilon in EPSILONS:
        if on_row is not None:
            on_row(epsilon)
        rows.append(calibration(epsilon, delta, confidence, trials))
    return rows


def calibration(epsilon: float, delta: float, confidence: float, trials: int) -> Calibration:
    """One row of the table."""
    separation, source = separation_of(epsilon, delta), NoiseSource()
    one_run: dict[int, float] = {}
    gaussian: dict[int, float] = {}
    for count in CANARIES:
        made = round(GUESSED * count / 2) * 2
        games = []
        for _ in range(trials):
            included = source.bernoulli(0.5, count)
            games.append(guess(source.normal(count) + separation * included, included, made))
        one_run[count] = median(one_run_bound(game, delta, confidence) for game in games)
        gaussian[count] = median(gaussian_bound(game, delta, confidence) for game in games)
    groups = []
    for _ in range(trials):
        included = source.bernoulli(0.5, CLIENTS)
        scores = source.normal(CLIENTS) + separation * included
        groups.append((scores[included], scores[~included]))
    return Calibration(
        epsilon,
        one_run,
        gaussian,
        median(normal_estimate(*group, delta) for group in groups),
        median(normal_bound(*group, delta, confidence) for group in groups),
        median(cosine_bound(group[0] / math.sqrt(_SIZE), _SIZE, delta, confidence) for group in groups),
    )


def separation_of(epsilon: float, delta: float) -> float:
    """μ of the Gaussian mechanism whose ε at ``delta`` this is."""
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, delta) < epsilon:
        high *= 2
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) < epsilon else (low, middle)
    return float(np.mean([low, high]))
