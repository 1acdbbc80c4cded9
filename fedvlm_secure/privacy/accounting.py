"""How much privacy a sequence of releases spends, and how much noise keeps a run within a target.

A release is a plain value that says what was drawn and how much noise was added, so that it can be put into a ledger
and composed again later, at another δ or by another accountant. Every ε here is an upper bound. Accountants:

``prv``  privacy random variables, Gopi, Lee and Wutschitz, arXiv 2106.02848 (Opacus), its upper bound;
``pld``  privacy loss distributions, connect-the-dots, for both directions of add-or-remove-one (dp-accounting);
``rdp``  Rényi differential privacy, Mironov, arXiv 1702.07476 (dp-accounting); the loosest, never fails.

Sums noised by clients (:class:`fedvlm_secure.privacy.distributed.DistributedGaussian`) have no other account than
Rényi's, nor has anything composed with them.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.privacy.distributed import ORDERS, DistributedGaussian, to_epsilon

Accountant = Literal["prv", "rdp", "pld"]
ACCOUNTANTS: tuple[str, ...] = get_args(Accountant)

# Beyond this ε the grids of the two numerical accountants take minutes and gigabytes; the closed bounds do not.
LARGEST_ON_A_GRID = 100.0
LARGEST_NOISE_MULTIPLIER = 1e6
# Below these δ the rounding of the grids' floating-point sums, some 1e-16 a step, is no longer far beneath δ.
_LEAST_DELTA, _ROUNDING = 1e-8, 1e-12
_SMALLEST_NOISE_MULTIPLIER = 1e-2
_WHOLE_ORDERS = [*range(2, 64), *range(64, 512, 16), 1024]  # Rényi's bound of sampling is exact at whole orders only
_DECIMALS = 4  # of a calibrated noise multiplier: every hospital finds the same number, and can write it down


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Steps of DP-SGD: every unit takes part in a step with probability ``sample_rate``, independently (Poisson).

    Neighbours: one unit more or less. The sum of the units' gradients, each of L2 norm at most C, gets normal noise of
    standard deviation ``noise_multiplier`` x C (Abadi et al., arXiv 1607.00133).

    Raises:
        MisuseError: no such mechanism: noise not positive and finite, rate outside (0, 1], or no step.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not 0 < self.sample_rate <= 1:
            raise MisuseError(f"a sample rate of {self.sample_rate} is no probability; give one above 0, at most 1")
        _check_steps(self.steps)


@dataclass(frozen=True, slots=True)
class Unprotected:
    """A release without differential privacy: its ε is infinite, and no limit holds it."""


Event = SampledGaussian | DistributedGaussian | Unprotected


_KINDS: dict[str, type[Event]] = {
    "sampled-gaussian": SampledGaussian,
    "distributed-gaussian": DistributedGaussian,
    "unprotected": Unprotected,
}


def event_as_dict(event: Event) -> dict[str, Any]:
    """The event as plain values, as in a ledger: its kind, and what it was made of."""
    kind = next(name for name, known in _KINDS.items() if isinstance(event, known))
    return {"kind": kind} | {name.replace("_", "-"): value for name, value in asdict(event).items()}


def event_from_dict(values: Mapping[str, Any]) -> Event:
    """What :func:`event_as_dict` made; raises :class:`MisuseError` if this version knows no such event."""
    own = {name.replace("-", "_"): value for name, value in values.items() if name != "kind"}
    try:
        return _KINDS[values["kind"]](**own)
    except (KeyError, TypeError):
        raise MisuseError(f"{dict(values)!r} is no release that this version can account for") from None


def epsilon(events: Iterable[Event], delta: float, accountant: str = "prv", *, amplification: bool = True) -> float:
    """An upper bound of ε, at ``delta``, of everything in ``events`` together.

    Where all units take part in all steps, the composition is one Gaussian mechanism and ε is exact (Balle and Wang,
    arXiv 1805.06530, theorem 8), whatever the accountant. Above :data:`LARGEST_ON_A_GRID`, ``prv`` and ``pld`` give
    the smaller of that bound and Rényi's, which hold there too.

    Args:
        delta: between 0 and 1.
        amplification: count on the sampling. Without, ε is what remains if it is known who took part in every step.

    Returns:
        ε >= 0; infinite with an unprotected release, 0 without any.

    Raises:
        MisuseError: δ is not between 0 and 1, or the accountant is unknown.
    """
    _check_delta(delta)
    if accountant not in ACCOUNTANTS:
        raise MisuseError(f"accountant {accountant!r} is not known; choices: {', '.join(ACCOUNTANTS)}")
    listed = list(events)
    if any(isinstance(event, Unprotected) for event in listed):
        return math.inf
    sampled = [event for event in listed if isinstance(event, SampledGaussian)]
    if not amplification:
        sampled = [replace(event, sample_rate=1.0) for event in sampled]
    noised = [event for event in listed if isinstance(event, DistributedGaussian)]
    if noised:
        return _with_sums(_merged(sampled), noised, delta)
    return _sampled(tuple(_merged(sampled)), delta, accountant) if sampled else 0.0


def noise_multiplier(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, accountant: str = "prv"
) -> float:
    """The noise that keeps ``steps`` steps, those of all rounds together, within ``target_epsilon``.

    A budget for one round, spent anew in each, would be exceeded by the second; so give rounds x steps a round here.

    Returns:
        The noise multiplier, rounded up to four decimals: its ε is at most the target.

    Raises:
        MisuseError: the target is not positive and finite, or out of reach of any useful noise; or as :func:`epsilon`.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise MisuseError(f"a target epsilon of {target_epsilon} is no budget; give a positive number")
    event = SampledGaussian(1.0, sample_rate, steps)
    start = min(max(4 * sample_rate * math.sqrt(steps) / target_epsilon, 0.5), 1e4)
    return calibrate(
        lambda sigma: epsilon([replace(event, noise_multiplier=sigma)], delta, accountant), target_epsilon, start
    )


def calibrate(spent: Callable[[float], float], target_epsilon: float, start: float = 1.0) -> float:
    """The least noise multiplier, up to four decimals, with ``spent(noise) <= target_epsilon``.

    Args:
        spent: ε at a noise multiplier, falling.
        start: a guess.

    Raises:
        MisuseError: more than :data:`LARGEST_NOISE_MULTIPLIER` would be needed.
    """
    found = math.ceil(_least(spent, target_epsilon, start) * 10**_DECIMALS) / 10**_DECIMALS
    while spent(found) > target_epsilon:  # a numerical accountant may wobble in its last digits
        found = round(found + 10**-_DECIMALS, _DECIMALS)
    return found


def check_delta(delta: float, units: int) -> None:
    """Refuse a δ that a hospital with ``units`` units must not accept.

    With δ = 1/units, publishing one unit in the clear would pass; a tenth of that is the most that means anything. δ is
    common to all hospitals: one chosen for a hospital would tell its size.

    Raises:
        MisuseError: δ is above 1 / (10 x units), or none.
    """
    _check_delta(delta)
    if units < 1:
        raise MisuseError("there is no unit to protect; give the data set rows")
    if delta * 10 * units > 1:
        raise MisuseError(
            f"privacy.target-delta = {delta:g} is above 1/(10 x {units} units) of this data set; agree with all "
            "hospitals on a smaller one"
        )


def _check_noise(noise: float) -> None:
    if not (math.isfinite(noise) and 0 < noise <= LARGEST_NOISE_MULTIPLIER):
        raise MisuseError(f"a noise multiplier of {noise} protects nothing; give one above 0, at most 1e6")


def _check_steps(steps: int) -> None:
    if not (isinstance(steps, int) and 1 <= steps <= 1 << 40):
        raise MisuseError(f"{steps} steps cannot be accounted for; give a whole number of at least 1")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise MisuseError(f"delta = {delta} is no probability of failure; give one between 0 and 1, such as 1e-5")


def _merged(events: Sequence[SampledGaussian]) -> list[SampledGaussian]:
    """Equal steps counted together: rounds of one run cost one mechanism, not one each."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return [SampledGaussian(noise, rate, count) for (noise, rate), count in sorted(steps.items())]


@lru_cache(maxsize=256)  # hospitals of one simulation have spent the same
def _sampled(mechanisms: tuple[SampledGaussian, ...], delta: float, accountant: str) -> float:
    exact = _gaussian(mechanisms, delta)
    if all(each.sample_rate == 1 for each in mechanisms):
        return exact
    bound = min(_rdp(mechanisms, delta), exact)  # to be drawn only sometimes is never worse than always
    steps = sum(each.steps for each in mechanisms)
    if accountant == "rdp" or bound > LARGEST_ON_A_GRID or delta < max(_LEAST_DELTA, steps * _ROUNDING):
        return bound
    return min(bound, _prv(mechanisms, delta, bound) if accountant == "prv" else _pld(mechanisms, delta))


def _with_sums(mechanisms: Sequence[SampledGaussian], noised: Sequence[DistributedGaussian], delta: float) -> float:
    """Sums noised by clients are known by their Rényi divergence, which adds up, order by order."""
    if not mechanisms:
        orders: Sequence[float] = ORDERS
        return to_epsilon([sum(event.rdp(order) for event in noised) for order in orders], delta, orders)
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = _WHOLE_ORDERS
    total = np.array([sum(event.rdp(order) for event in noised) for order in orders])
    for each in mechanisms:
        total += compute_rdp(
            q=each.sample_rate, noise_multiplier=each.noise_multiplier, steps=each.steps, orders=orders
        )
    return to_epsilon(total.tolist(), delta, orders)


def _gaussian(mechanisms: Sequence[SampledGaussian], delta: float) -> float:
    """ε if all units took part in every step: precisions add up, and one Gaussian mechanism is left."""
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    precision = math.fsum(each.steps / each.noise_multiplier**2 for each in mechanisms)
    return float(get_epsilon_gaussian(precision**-0.5, delta)) * (1 + 1e-9)  # its root is found to 1e-12


def _rdp(mechanisms: Sequence[SampledGaussian], delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _quiet():
        for each in mechanisms:
            accountant.compose(
                PoissonSampledDpEvent(each.sample_rate, GaussianDpEvent(each.noise_multiplier)), each.steps
            )
        return float(accountant.get_epsilon(delta))


def _prv(mechanisms: Sequence[SampledGaussian], delta: float, bound: float) -> float:
    """The upper bound is the estimate plus the error allowed: a five-hundredth of ε, or it would drown small ones."""
    from opacus.accountants.prv import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(each.noise_multiplier, each.sample_rate, each.steps) for each in mechanisms]
    error = min(max(bound / 500, 2e-4), 0.05)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders that its own first look would rather have had
        return max(0.0, float(accountant.get_epsilon(delta, eps_error=error)))


def _pld(mechanisms: Sequence[SampledGaussian], delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = pld.identity()
    for each in mechanisms:
        one = pld.from_gaussian_mechanism(each.noise_multiplier, sampling_prob=each.sample_rate)
        total = total.compose(one.self_compose(each.steps))
    return float(total.get_epsilon_for_delta(delta))


def _least(spent: Callable[[float], float], target: float, start: float) -> float:
    """Between a noise that is enough and one that is not, ever closer; what it returns is enough."""
    enough: tuple[float, float] | None = None  # noise and its ε
    short: tuple[float, float] | None = None
    guess = start
    while True:
        found = spent(guess)
        if found <= target:
            enough = guess, found
        else:
            short = guess, found
        if enough and (enough[1] >= target * (1 - 5e-4) or enough[0] < _SMALLEST_NOISE_MULTIPLIER):
            return enough[0]
        if enough and short:
            if enough[0] - short[0] <= max(1e-4 * enough[0], 10**-_DECIMALS / 2):
                return enough[0]
            guess = _between(short, enough, target)
        else:  # ε falls about as the noise grows: step beyond where that would meet the target
            guess *= min(max(1.05 * found / target, 1.05), 8.0) if short else max(found / target / 1.05, 1 / 8)
            if guess > LARGEST_NOISE_MULTIPLIER:
                raise MisuseError(
                    f"no noise reaches epsilon = {target:g} over so many steps; allow more, or train less"
                )


def _between(short: tuple[float, float], enough: tuple[float, float], target: float) -> float:
    """Where a power law through both ends meets the target, or a little less: ε nearly is one, and each look is slow.

    Kept off both ends, or one of them might creep towards the solution for ever.
    """
    width = math.log(enough[0] / short[0])
    share = 0.5
    if math.isfinite(short[1]) and enough[1] > 0:
        share = math.log(short[1] / (target * (1 - 2e-4))) / math.log(short[1] / enough[1])
    return short[0] * math.exp(width * min(max(share, 0.02), 0.98))


@contextmanager
def _quiet() -> Iterator[None]:
    """The library logs a warning for every order that it leaves out, which only ever makes the bound larger."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
