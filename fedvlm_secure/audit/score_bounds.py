"""What the scores of canaries that took part refute, without coins: after Andrew et al. 2023, arXiv 2302.03098.

:func:`cosine_bound`     canaries that are random directions; for any (ε, δ) mechanism
:func:`normal_bound`     scores of any kind; takes them for normal, far into the tail that δ speaks of
:func:`normal_estimate`  Andrew's estimate: no bound, it is as often above the true ε as below
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm_secure.audit.estimators import LARGEST, gaussian_epsilon, least_rate, significance_of
from fedvlm_secure.errors import MisuseError

Floats = NDArray[np.float64]

HEIGHTS = np.arange(1, 25) / 2  # thresholds, in deviations of a direction without a part; the last is beyond e^-64
_PRECISION = 1e-4


def cosine_bound(cosines: ArrayLike, size: int, delta: float, confidence: float) -> float:
    """ε below which (ε, δ)-differential privacy is refuted by canaries that are directions, whatever the mechanism.

    What is released without a canary knows nothing of its direction, which was drawn uniformly: their cosine exceeds t
    with the chance of a sphere's cap (Andrew et al., section 4), however the release was made. That is the rate of
    false positives, exactly. The rate of true ones has a bound by Clopper and Pearson at each of :data:`HEIGHTS`, which
    are fixed beforehand and share the allowance. Then ε ≥ ln((TPR - δ)/FPR), and the same of the negatives.

    The canaries are taken for independent of each other.

    Args:
        cosines: float [k], between each canary's direction and the release that it took part in.
        size: d, of the directions.

    Returns:
        at least 0, at most 64.

    Raises:
        MisuseError: no canary, a cosine that is none, fewer than two dimensions, or ``delta`` or ``confidence`` out of
            range.
    """
    from scipy.special import betainc

    allowance = significance_of(delta, confidence) / len(HEIGHTS)
    found = np.asarray(cosines, np.float64)
    if size < 2 or found.ndim != 1 or not len(found) or not (np.abs(found) <= 1 + 1e-9).all():
        raise MisuseError("canaries in two dimensions or more are needed, and a cosine between -1 and 1 of each")
    best = 0.0
    for height in HEIGHTS[size > HEIGHTS**2].tolist():
        chance = float(betainc((size - 1) / 2, 0.5, 1 - height**2 / size)) / 2
        rate = least_rate(int((found > height / math.sqrt(size)).sum()), len(found), allowance)
        pairs = ((rate - delta, chance), (1 - chance - delta, 1 - rate))
        best = max([best, *(math.log(likely) - math.log(max(rare, 1e-300)) for likely, rare in pairs if likely > 0)])
    return min(best, LARGEST)


def normal_bound(present: ArrayLike, absent: ArrayLike, delta: float, confidence: float) -> float:
    """ε(δ) below which a Gaussian mechanism is refuted by scores that are normal, with one deviation for both groups.

    After Andrew et al. 2023 (2302.03098), with a bound in place of their estimate: half of the allowance goes into the
    deviation (χ²), half into the difference of the means. It rests on the scores being normal, far into the tail that δ
    speaks of; that is for the caller to argue.

    Args:
        present, absent: float [k], [n], scores of canaries that took part and of others that did not; at least two
            each, independent.

    Returns:
        at least 0, at most 64: no experiment says more.

    Raises:
        MisuseError: too few scores, one that is not finite, or ``delta`` or ``confidence`` out of range.
    """
    from scipy.special import chdtri, ndtri

    allowance = significance_of(delta, confidence) / 2
    shift, deviation, freedom = _groups(present, absent)
    count, others = np.size(present), np.size(absent)
    # chdtri is the inverse of the upper tail; what is left of it is the lower.
    largest = deviation * math.sqrt(freedom / float(chdtri(freedom, 1 - allowance)))
    if shift >= LARGEST * largest:
        return LARGEST if shift else 0.0
    separation = shift / largest + float(ndtri(allowance)) * math.sqrt(1 / count + 1 / others)
    return min(gaussian_epsilon(separation, delta), LARGEST)


def normal_estimate(present: ArrayLike, absent: ArrayLike, delta: float) -> float:
    """ε(δ) between the normal distributions fitted to both groups (Andrew et al. 2023): an estimate, never a bound.

    Arguments as of :func:`normal_bound`, and the same limits.
    """
    significance_of(delta, 0.5)
    shift, _, _ = _groups(present, absent)
    ours, theirs = (float(np.std(np.asarray(scores, np.float64), ddof=1)) for scores in (present, absent))
    if min(ours, theirs) * LARGEST <= abs(shift):  # beyond what is told, and what can be computed
        return LARGEST if shift else 0.0

    def exceeds(epsilon: float) -> bool:
        return normal_delta(shift, ours, theirs, epsilon) > delta

    if exceeds(LARGEST):
        return LARGEST
    low, high = 0.0, LARGEST
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return low


def normal_delta(shift: float, ours: float, theirs: float, epsilon: float) -> float:
    """The larger δ(ε) of N(shift, ours²) against N(0, theirs²) and the other way about."""
    return max(_hockey_stick(shift, ours, theirs, epsilon), _hockey_stick(shift, theirs, ours, epsilon))


def _hockey_stick(shift: float, ours: float, theirs: float, epsilon: float) -> float:
    """P(A) - e^ε·Q(A), A being where P = N(shift, ours²) is more than e^ε times as dense as Q = N(0, theirs²).

    The logarithm of the ratio is a quadratic, so A is a half-line, an interval, or all outside one.
    """
    square = 1 / (2 * theirs**2) - 1 / (2 * ours**2)
    slope, rest = shift / ours**2, math.log(theirs / ours) - shift**2 / (2 * ours**2) - epsilon

    def gained(low: float, high: float) -> float:
        return _mass((low - shift) / ours, (high - shift) / ours) - math.exp(epsilon) * _mass(
            low / theirs, high / theirs
        )

    if abs(square) < 1e-9 * slope**2:  # as good as a line
        return gained(-rest / slope, math.inf) if slope > 0 else gained(-math.inf, -rest / slope)
    discriminant = slope**2 - 4 * square * rest
    if discriminant <= 0:
        return 0.0 if square < 0 else 1 - math.exp(epsilon)
    roots = sorted((-slope + sign * math.sqrt(discriminant)) / (2 * square) for sign in (-1, 1))
    if square < 0:
        return gained(roots[0], roots[1])
    return gained(-math.inf, roots[0]) + gained(roots[1], math.inf)


def _mass(low: float, high: float) -> float:
    """Of a standard normal between the two, precise in either tail."""
    from scipy.special import ndtr

    return float(ndtr(high) - ndtr(low)) if high < 0 else float(ndtr(-low) - ndtr(-high))


def _groups(present: ArrayLike, absent: ArrayLike) -> tuple[float, float, int]:
    """The difference of the means, the pooled deviation, and its degrees of freedom."""
    ours, theirs = np.asarray(present, np.float64), np.asarray(absent, np.float64)
    if ours.ndim != 1 or theirs.ndim != 1 or min(len(ours), len(theirs)) < 2:
        raise MisuseError("two scores or more are needed of canaries that took part, and of others that did not")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise MisuseError("a canary's score is not finite")
    freedom = len(ours) + len(theirs) - 2
    squares = float(((ours - ours.mean()) ** 2).sum() + ((theirs - theirs.mean()) ** 2).sum())
    return float(ours.mean() - theirs.mean()), math.sqrt(squares / freedom), freedom
