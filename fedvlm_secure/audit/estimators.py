"""Lower bounds of ε from guesses about who was in the data: none of them knows how the mechanism works.

The experiment is a game: canaries are put into the data or left out by fair coins, an attacker sees what is released
and guesses some of the coins. Who guesses better than (ε, δ)-differential privacy allows has refuted it. All bounds
hold with the confidence asked for, whatever the attack: a bad attack gives a low bound, never a false one.

=========================  =========================================================================================
:func:`one_run_bound`      all canaries in one run; for any (ε, δ) mechanism (Steinke et al. 2023)
:func:`gaussian_bound`     all canaries in one run, tighter; for mechanisms whose trade-off is a Gaussian's, such as
                           DP-SGD without subsampling (Mahloujifar et al. 2024)
:func:`sampled_bound`      the same for DP-SGD with subsampling
:func:`many_runs_bound`    one canary a run, many independent runs; for any (ε, δ) mechanism
=========================  =========================================================================================

What directions and scores say is in :mod:`fedvlm_secure.audit.score_bounds`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm_secure.errors import MisuseError

Floats = NDArray[np.float64]

LARGEST = 64.0  # no experiment that ends reaches e^64
_PRECISION = 1e-4
_GRID = 65
_TANGENTS = 400
_NOISE_PRECISION = 1e-3


@dataclass(frozen=True, slots=True)
class Guesses:
    """How an attacker did in one run.

    Attributes:
        canaries: how many there were, m, each in the data with probability 1/2 on its own.
        made: guesses, r; the attacker may abstain on the others.
        correct: how many of these were right, v.

    Raises:
        MisuseError: not 0 ≤ correct ≤ made ≤ canaries.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries:
            raise MisuseError(f"{self.correct} right of {self.made} guesses about {self.canaries} canaries")


def guess(scores: ArrayLike, included: ArrayLike, made: int) -> Guesses:
    """Guess that the ``made / 2`` canaries with the highest scores were in the data, and those with the lowest not.

    How many guesses are made must be fixed before the scores are seen; the best of several numbers is no bound.

    Args:
        scores: float [m], higher for canaries that seem to be in the data; ties go by position.
        included: bool [m], the truth.
        made: even, at most m.

    Raises:
        MisuseError: a score is NaN, the arrays differ in shape, or ``made`` does not fit them.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(included, np.bool_)
    if values.ndim != 1 or values.shape != truth.shape or np.isnan(values).any():
        raise MisuseError("each canary needs one score, a number, and whether it was in the data")
    if made % 2 or not 0 <= made <= len(values):
        raise MisuseError(f"{made} guesses about {len(values)} canaries; it must be an even number of at most that")
    order = np.argsort(values, kind="stable")
    right = np.count_nonzero(truth[order[len(order) - made // 2 :]]) + np.count_nonzero(~truth[order[: made // 2]])
    return Guesses(len(values), made, int(right))


def one_run_bound(guesses: Guesses, delta: float, confidence: float) -> float:
    """ε below which (ε, δ)-differential privacy is refuted by one run (Steinke, Nasr and Jagielski 2023, 2305.08846).

    With Q(u) the probability of u or more successes in r tosses of probability e^ε/(1+e^ε), the guesses' p-value is at
    most Q(v) + 2mδ·max_i (Q(v-i) - Q(v))/i. A bound of m canaries cannot exceed about ln(m / ln(1/(1-confidence))).

    Returns:
        the largest ε up to which all are refuted, at least 0.

    Raises:
        MisuseError: ``delta`` or ``confidence`` is out of range.
    """
    significance = significance_of(delta, confidence)
    if guesses.correct == 0:
        return 0.0
    return _refuted_up_to(lambda epsilon: one_run_p_value(guesses, epsilon, delta) < significance)


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """At most how likely that many right guesses are under (ε, δ)-differential privacy; see :func:`one_run_bound`."""
    from scipy.stats import binom  # slow to import

    success = 1 / (1 + math.exp(-epsilon))
    # tail[i] = Q(v - i)
    tail = binom.sf(np.arange(guesses.correct - 1, -2, -1), guesses.made, success)
    steps = np.arange(1, len(tail))
    slack = float(np.max((tail[1:] - tail[0]) / steps, initial=0.0))
    return min(float(tail[0]) + 2 * guesses.canaries * delta * slack, 1.0)


def gaussian_bound(guesses: Guesses, delta: float, confidence: float) -> float:
    """ε(δ) below which Gaussian differential privacy is refuted by one run (Mahloujifar et al. 2024, 2410.22235).

    Only for claims of the form «no easier to tell apart than N(0, 1) and N(μ, 1)»: the Gaussian mechanism, composed as
    often as one likes, without subsampling. A subsampled mechanism is less private than G_μ at some δ and more at
    others; there this bound can exceed a true claim.

    Raises:
        MisuseError: ``delta`` (also: zero) or ``confidence`` is out of range.
    """
    significance = significance_of(delta, confidence)
    if delta == 0:
        raise MisuseError("a Gaussian mechanism has no finite ε at δ = 0")
    separation = _refuted_up_to(lambda mu: _exceeds_gaussian(guesses, mu, significance))
    return gaussian_epsilon(separation, delta)


def _exceeds_gaussian(guesses: Guesses, separation: float, significance: float) -> bool:
    """Whether the guesses are too good for G_μ; as μ grows they are less so: what is refuted is an interval."""
    from scipy.special import ndtr, ndtri

    return _exceeds(guesses, lambda found: float(ndtr(ndtri(found) - separation)), significance)


def sampled_bound(guesses: Guesses, sample_rate: float, steps: int, delta: float, confidence: float) -> float:
    """ε(δ) below which DP-SGD with Poisson sampling is refuted by one run (Mahloujifar et al. 2024, 2410.22235).

    Only for claims of the form «no easier to tell apart than ``steps`` steps at ``sample_rate`` with noise σ». What is
    refuted is an interval of σ, from large ones down; the bound is the ε of its end. A trade-off is that of a privacy
    loss distribution, rounded to the private side (dp-accounting), at :data:`_TANGENTS` values of ε.

    Raises:
        MisuseError: ``delta`` (also: zero) or ``confidence`` is out of range.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    significance = significance_of(delta, confidence)
    if delta == 0:
        raise MisuseError("a sampled Gaussian mechanism has no finite ε at δ = 0")
    tangents = np.geomspace(0.01, 2 * LARGEST, _TANGENTS)

    def refuted(sigma: float) -> float | None:
        """ε at this noise if the guesses are too good for it."""
        one = pld.from_gaussian_mechanism(sigma, sampling_prob=sample_rate, value_discretization_interval=1e-3)
        total = one.self_compose(steps)
        deltas = np.asarray(total.get_delta_for_epsilon(tangents))
        fewest = partial(_fewest, tangents, deltas)
        return float(total.get_epsilon_for_delta(delta)) if _exceeds(guesses, fewest, significance) else None

    # Noise from where ε is next to nothing, down to where it is beyond what an experiment can reach.
    high, bound = 40 * sample_rate * math.sqrt(steps), 0.0
    low = high
    while (found := refuted(low)) is not None and found < LARGEST:
        high, low, bound = low, low / 2, found
    while high / low > 1 + _NOISE_PRECISION and bound:
        middle = math.sqrt(low * high)
        found = refuted(middle)
        low, high, bound = (middle, high, bound) if found is None else (low, middle, found)
    return min(bound, LARGEST)


def _fewest(epsilons: Floats, deltas: Floats, found: float) -> float:
    """The least false positive rate at which a test with true positive rate ``found`` is (ε, δ)-private for all."""
    rates = np.maximum((found - deltas) * np.exp(-epsilons), 1 - deltas - np.exp(epsilons) * (1 - found))
    return float(np.max(rates, initial=0.0))


def _exceeds(guesses: Guesses, fewest: Callable[[float], float], significance: float) -> bool:
    """Whether the guesses are too good for a trade-off: the paper's recursion from the last right guess down.

    ``right`` and ``wrong`` bound the chances, times the significance, of one guess more being right or wrong among all
    outcomes at least this good.

    Args:
        fewest: from a true positive rate, the least false positive rate that the trade-off allows beside it.
    """
    made, correct = guesses.made, guesses.correct
    if correct == 0:
        return False
    right = significance * correct / guesses.canaries
    wrong = significance * (made - correct) / guesses.canaries
    for index in range(correct - 1, -1, -1):
        least = max(wrong, fewest(right))
        if least == wrong:
            break  # neither changes any more
        right = min(right + index / (made - index) * (least - wrong), 1.0)
        wrong = least
    return right + wrong > made / guesses.canaries


def many_runs_bound(found: int, present: int, mistaken: int, absent: int, delta: float, confidence: float) -> float:
    """ε below which (ε, δ)-differential privacy is refuted by independent runs with one canary each.

    Clopper-Pearson bounds of the true and the false positive rate, half of the allowance each; then
    ε ≥ ln((TPR - δ)/FPR), and the same of the negatives.

    Args:
        found: runs with the canary in which the attack said so, of ``present``.
        mistaken: runs without it in which the attack said it was there, of ``absent``.

    Raises:
        MisuseError: counts that cannot be, or ``delta`` or ``confidence`` out of range.
    """
    significance = significance_of(delta, confidence) / 2
    if not (0 <= found <= present and 0 <= mistaken <= absent):
        raise MisuseError(f"{found} found of {present}, {mistaken} mistaken of {absent}")
    least_found = least_rate(found, present, significance)
    most_mistaken = 1 - least_rate(absent - mistaken, absent, significance)
    ratios = [
        (likely - delta) / rare
        for likely, rare in ((least_found, most_mistaken), (1 - most_mistaken, 1 - least_found))
        if likely > delta
    ]
    return max(math.log(max(ratios, default=1.0)), 0.0)


def gaussian_epsilon(separation: float, delta: float) -> float:
    """The ε at which telling N(0, 1) from N(μ, 1) is exactly (ε, δ)-differentially private (Dong et al. 2019)."""
    if separation <= 0 or gaussian_delta(separation, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(separation, high) > delta:
        low, high = high, 2 * high
    while high - low > _PRECISION / 100:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(separation, middle) > delta else (low, middle)
    return low


def gaussian_delta(separation: float, epsilon: float) -> float:
    """Φ(μ/2 - ε/μ) - e^ε·Φ(-μ/2 - ε/μ), where μ > 0 is ``separation``."""
    from scipy.special import log_ndtr, ndtr

    half, shift = separation / 2, epsilon / separation
    return float(ndtr(half - shift)) - math.exp(epsilon + float(log_ndtr(-half - shift)))


def _refuted_up_to(refuted: Callable[[float], bool]) -> float:
    """The end of the interval from 0 in which all values are refuted, from below.

    It stops at the first value that stands: a true value is exceeded only if it is itself refuted.
    """
    low, high = 0.0, LARGEST
    if not refuted(low):
        return 0.0
    for value in np.geomspace(0.01, LARGEST, _GRID).tolist():
        if not refuted(value):
            high = value
            break
        low = value
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def least_rate(found: int, tried: int, significance: float) -> float:
    """The rate at which ``found`` or more of ``tried`` have the chance ``significance`` (Clopper and Pearson)."""
    from scipy.special import betaincinv

    return float(betaincinv(found, tried - found + 1, significance)) if found else 0.0


def significance_of(delta: float, confidence: float) -> float:
    """How often a true claim may be refuted; raises :class:`MisuseError` if ``delta`` or ``confidence`` is none."""
    if not 0 <= delta < 1:
        raise MisuseError(f"a delta of {delta}; it must be at least 0 and below 1")
    if not 0 < confidence < 1:
        raise MisuseError(f"a confidence of {confidence}; it must be between 0 and 1")
    return 1 - confidence
