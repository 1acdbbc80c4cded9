"""ε of a run: against a second accountant, against figures known from elsewhere, and on the safe side."""

import json
import math
from dataclasses import replace

import pytest

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.privacy.accounting import (
    ACCOUNTANTS,
    LARGEST_ON_A_GRID,
    SampledGaussian,
    Unprotected,
    calibrate,
    check_delta,
    epsilon,
    event_as_dict,
    event_from_dict,
    noise_multiplier,
)
from fedvlm_secure.privacy.distributed import DistributedGaussian

DELTA = 1e-5


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [
        (0.558, 0.05, 200),
        (4.0, 0.25, 60),
        (8.1, 0.5, 720),
        (2.0, 0.01, 10_000),
        (0.7, 0.001, 1000),
        (20.0, 0.25, 60),
    ],
)
def test_two_accountants_agree_within_one_percent(noise: float, rate: float, steps: int) -> None:
    events = [SampledGaussian(noise, rate, steps)]
    prv, pld, rdp = (epsilon(events, DELTA, name) for name in ("prv", "pld", "rdp"))
    assert prv == pytest.approx(pld, rel=0.01)
    assert rdp >= max(prv, pld) * 0.999


@pytest.mark.parametrize(("rounds", "known"), [(1, 8.0), (10, 18.6), (50, 43.9)])
def test_a_budget_is_not_for_one_round_only(rounds: int, known: float) -> None:
    """Noise that is enough for one round of 20 steps, and what it comes to if every round takes it so."""
    each_round = [SampledGaussian(0.558, 0.05, 20)] * rounds
    assert epsilon(each_round, DELTA) == pytest.approx(known, rel=0.005)
    assert epsilon(each_round, DELTA) == epsilon([SampledGaussian(0.558, 0.05, 20 * rounds)], DELTA)


def test_noise_is_calibrated_over_all_rounds() -> None:
    one, ten = noise_multiplier(8.0, DELTA, 0.05, 20), noise_multiplier(8.0, DELTA, 0.05, 200)
    assert one == pytest.approx(0.558, abs=0.001)
    assert epsilon([SampledGaussian(one, 0.05, 20)] * 10, DELTA) > 18
    assert epsilon([SampledGaussian(ten, 0.05, 20)] * 10, DELTA) <= 8


@pytest.mark.parametrize(
    ("accountant", "target", "rate", "steps"),
    [("prv", 0.5, 0.02, 30), ("prv", 40.0, 0.1, 300), ("pld", 3.0, 0.3, 50), ("rdp", 3.0, 0.3, 50)],
)
def test_calibration_is_safe_and_tight(accountant: str, target: float, rate: float, steps: int) -> None:
    found = noise_multiplier(target, DELTA, rate, steps, accountant)
    assert found == round(found, 4)
    assert target * 0.995 <= epsilon([SampledGaussian(found, rate, steps)], DELTA, accountant) <= target


@pytest.mark.parametrize("target", [1e-3, 1.0, 1000.0])
def test_calibration_without_sampling(target: float) -> None:
    found = noise_multiplier(target, DELTA, 1.0, 100)
    assert target * 0.99 <= epsilon([SampledGaussian(found, 1.0, 100)], DELTA) <= target


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(MisuseError, match="no noise reaches"):
        noise_multiplier(1e-9, DELTA, 1.0, 10**9)
    assert 0.5 <= calibrate(lambda noise: 1 / noise, 2.0) <= 0.5003


def test_without_sampling_epsilon_is_the_gaussian_mechanisms() -> None:
    """δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), μ = √steps / noise."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    for noise, steps in [(1.0, 1), (4.0, 10), (0.7, 3)]:
        mu = math.sqrt(steps) / noise
        for accountant in ACCOUNTANTS:
            found = epsilon([SampledGaussian(noise, 1.0, steps)], DELTA, accountant)
            reached = phi(mu / 2 - found / mu) - math.exp(found) * phi(-mu / 2 - found / mu)
            assert reached == pytest.approx(DELTA, rel=1e-6)
            assert reached <= DELTA


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_more_of_anything_spends_more(accountant: str) -> None:
    def spent(noise: float = 2.0, rate: float = 0.1, steps: int = 60, delta: float = DELTA) -> float:
        return epsilon([SampledGaussian(noise, rate, steps)], delta, accountant)

    middle = spent()
    assert spent(noise=2.4) < middle < spent(noise=1.6)
    assert spent(rate=0.08) < middle < spent(steps=70)
    assert spent(delta=1e-4) < middle
    assert middle < epsilon([SampledGaussian(2.0, 0.1, 60)], DELTA, accountant, amplification=False)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_different_releases_compose(accountant: str) -> None:
    first, second = SampledGaussian(2.0, 0.1, 60), SampledGaussian(3.0, 0.4, 10)
    both = epsilon([first, second], DELTA, accountant)
    assert both == epsilon([second, first], DELTA, accountant)
    assert both > max(epsilon([first], DELTA, accountant), epsilon([second], DELTA, accountant))
    assert both < sum(epsilon([each], DELTA / 2, accountant) for each in (first, second))
    assert both == pytest.approx(epsilon([first, second], DELTA, "pld"), rel=0.01 if accountant == "prv" else 0.3)
    apart = [SampledGaussian(2.0, 0.1, 20), second, SampledGaussian(2.0, 0.1, 40)]
    assert both == epsilon(apart, DELTA, accountant)


def test_sums_noised_by_clients_compose_with_everything() -> None:
    """Their steps being tiny, they are Gaussian mechanisms nearly; and three attempts are thrice one."""
    sums = DistributedGaussian(4.0, 0.1, 1024, 1e-8, min_survivors=5, max_corrupt=1, answered=3)
    alone = epsilon([sums], DELTA)
    assert alone == sums.epsilon(DELTA) == epsilon([replace(sums, answered=1)] * 3, DELTA)
    gaussian = epsilon([SampledGaussian(4.0, 1.0, 3)], DELTA)
    assert gaussian <= alone <= gaussian * 1.1
    whole = epsilon([sums, SampledGaussian(4.0, 1.0, 4)], DELTA)
    assert (
        epsilon([SampledGaussian(4.0, 1.0, 7)], DELTA) <= whole <= epsilon([SampledGaussian(4.0, 1.0, 7)], DELTA) * 1.1
    )
    sampled = epsilon([sums, SampledGaussian(4.0, 0.1, 4)], DELTA)
    assert alone < sampled < whole
    assert epsilon([sums, SampledGaussian(4.0, 0.1, 4)], DELTA, amplification=False) == pytest.approx(whole)
    assert epsilon([sums, Unprotected()], DELTA) == math.inf


def test_events_are_plain_values_and_back() -> None:
    sums = DistributedGaussian(1.0, 0.1, 2176, 1e-6 / 3, min_survivors=5, max_corrupt=1, answered=3)
    for event in (SampledGaussian(0.1 + 0.2, 1 / 3, 7), sums, Unprotected()):
        assert event_from_dict(json.loads(json.dumps(event_as_dict(event)))) == event
    known = event_as_dict(SampledGaussian(1.0, 0.5, 7))
    assert known == {"kind": "sampled-gaussian", "noise-multiplier": 1.0, "sample-rate": 0.5, "steps": 7}
    for damage in (
        {"kind": "laplace"},
        {"kind": "unprotected", "steps": 1},
        {"steps": 1},
        {**known, "sample-rate": 2.0},
    ):
        with pytest.raises(MisuseError):
            event_from_dict(damage)


def test_a_large_epsilon_is_still_a_bound() -> None:
    """Beyond what the grids of the numerical accountants hold."""
    for events in ([SampledGaussian(0.3, 0.05, 1000)], [SampledGaussian(0.01, 0.5, 10_000)]):
        values = {epsilon(events, DELTA, name) for name in ACCOUNTANTS}
        assert len(values) == 1
        assert LARGEST_ON_A_GRID < values.pop() <= epsilon(events, DELTA, amplification=False)


def test_nothing_and_everything() -> None:
    assert epsilon([], DELTA) == 0
    assert epsilon([Unprotected()], DELTA) == math.inf
    assert epsilon([SampledGaussian(1.0, 0.1, 60), Unprotected()], DELTA, amplification=False) == math.inf


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 0.1, 1),
        (-1.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (math.inf, 0.1, 1),
        (1e7, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.01, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, 0),
        (1.0, 0.1, 1.5),
    ],
)
def test_no_such_mechanism(values: tuple[float, float, int]) -> None:
    with pytest.raises(MisuseError):
        SampledGaussian(*values)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_no_such_delta(delta: float) -> None:
    for refused in (
        lambda: epsilon([SampledGaussian(1.0, 0.1, 1)], delta),
        lambda: epsilon([], delta),
        lambda: noise_multiplier(1.0, delta, 0.1, 1),
        lambda: check_delta(delta, 10),
    ):
        with pytest.raises(MisuseError, match="delta"):
            refused()


def test_no_such_accountant_and_no_such_target() -> None:
    with pytest.raises(MisuseError, match="prv, rdp, pld"):
        epsilon([], DELTA, "gdp")
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(MisuseError, match="target"):
            noise_multiplier(target, DELTA, 0.1, 1)


def test_delta_is_at_most_a_tenth_of_a_unit() -> None:
    check_delta(1e-5, 10_000)
    with pytest.raises(MisuseError, match="smaller"):
        check_delta(1e-5, 10_001)
    with pytest.raises(MisuseError, match="no unit"):
        check_delta(1e-5, 0)
