"""Membership inference: can one tell from a finished model whether a row was trained on?

A row's score is how much less the model loses on it than the base model does: that takes away how hard the row is
(«calibrated» loss, Watson et al. 2021, arXiv 2111.08440). What counts is how many members are found where hardly any
other row is mistaken for one (Carlini et al. 2021, arXiv 2112.03570); an area under the curve of 0.5 says nothing about
the few rows that a model has by heart.

It is a measurement, not a bound of ε: rows are no coins; they share pictures, one model, and a split somebody made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.estimators import least_rate

Floats = NDArray[np.float64]

RATE = 0.001  # of false positives
_LEAST = 1000  # non-members, below which one mistake is more than that rate


@dataclass(frozen=True, slots=True)
class Found:
    """What an attack found.

    Attributes:
        members, others: rows, of all sites together.
        area: under the curve; 0.5 is chance.
        mistaken: non-members above the threshold; None as the three below if there are too few to tell.
        found: members above the threshold.
        low, high: an exact interval of the true positive rate at this threshold (Clopper and Pearson), its confidence
            as asked for.
    """

    members: int
    others: int
    area: float
    mistaken: int | None = None
    found: int | None = None
    low: float | None = None
    high: float | None = None

    @property
    def rate(self) -> float | None:
        """The true positive rate at :data:`RATE`."""
        return None if self.found is None else self.found / self.members

    def to_json(self) -> dict[str, Any]:
        """Kebab-case names and plain values."""
        return {
            "members": self.members,
            "non-members": self.others,
            "auc": self.area,
            "false-positive-rate": RATE,
            "found": self.found,
            "mistaken": self.mistaken,
            "true-positive-rate": self.rate,
            "interval": None if self.low is None else [self.low, self.high],
        }


def pooled(scores: Mapping[str, tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Members' and non-members' scores of all sites together, by site as many of the one for each of the other.

    Else the pools would differ by who is in them: a site whose scores are higher would count as members. Where a site
    has too many of either, every so-manieth is taken.

    Args:
        scores: (members', non-members') by site, at least one of each.
    """
    least = min(len(members) / len(others) for members, others in scores.values())
    members = [_spread(own, round(least * len(others))) for own, others in scores.values()]
    return np.concatenate(members), np.concatenate([others for _, others in scores.values()])


def attack(members: Floats, others: Floats, confidence: float) -> Found:
    """Find members by their scores, float64 [k] and [n], at most ``RATE`` of non-members being as high.

    The threshold is the lowest score that so few non-members exceed; ties with it are not found. The interval takes the
    threshold as given.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([members, others]))[: len(members)].sum()
    area = float((ranks - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))
    if len(others) < _LEAST:
        return Found(len(members), len(others), area)
    threshold = np.sort(others)[::-1][int(RATE * len(others))]
    found, mistaken = int((members > threshold).sum()), int((others > threshold).sum())
    tail = (1 - confidence) / 2
    low, high = least_rate(found, len(members), tail), 1 - least_rate(len(members) - found, len(members), tail)
    return Found(len(members), len(others), area, mistaken, found, low, high)


def allowed(epsilon: float, delta: float) -> float:
    """The largest true positive rate at :data:`RATE` that (ε, δ)-differential privacy of a unit leaves possible."""
    grown = np.exp(min(epsilon, 50.0)) * RATE + delta
    return float(min(grown, 1 - np.exp(-epsilon) * (1 - RATE - delta), 1.0))


def _spread(scores: Floats, count: int) -> Floats:
    """``count`` of the scores, evenly spread over their order."""
    places = np.linspace(0, len(scores) - 1, min(count, len(scores))).round().astype(np.int64)
    return scores[places]
