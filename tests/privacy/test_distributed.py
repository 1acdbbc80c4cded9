"""The distributed discrete Gaussian's guarantee: the literature's numbers, closed forms, and an exact small case."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.noisy import largest_squared_norm, noise_variance
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.privacy.distributed import (
    DistributedGaussian,
    noise_multiplier,
    scale_for_bits,
    to_epsilon,
)
from fedvlm_secure.secagg.plan import propose

DELTA = 1e-5
INTEGER_ORDERS = range(2, 129)  # what the reference implementation of the paper accounts with


def in_bits(bits: int) -> DistributedGaussian:
    """The paper's own choice of the step: ten clients, of which all noise counts, z = 1, ten rounds."""
    step = 1 / scale_for_bits(bits, clients=10, dimension=2**20, clip_norm=1.0, noise_multiplier=1.0)
    return DistributedGaussian(1.0, 1.0, 2**20, step, min_survivors=11, max_corrupt=1, answered=10)


def gaussian(noise: float, releases: int, orders) -> float:
    return to_epsilon([releases * order / (2 * noise**2) for order in orders], DELTA, orders)


@pytest.mark.parametrize(("bits", "epsilon"), [(14, 20.75), (16, 19.86), (18, 19.81), (20, 19.80)])
def test_the_reference_implementations_numbers(bits, epsilon):
    assert round(in_bits(bits).epsilon(DELTA, INTEGER_ORDERS), 2) == epsilon


def test_the_central_gaussian_is_approached_from_above():
    assert round(gaussian(1.0, 10, INTEGER_ORDERS), 2) == 19.80
    found = [in_bits(bits).epsilon(DELTA) for bits in (14, 16, 18, 20)]
    assert found == sorted(found, reverse=True)
    central = gaussian(1.0, 10, [1 + 10 ** (exponent / 50) for exponent in range(-100, 301)])
    assert central < found[-1] < central * 1.0001


def test_more_orders_only_ever_tighten():
    for bits in (14, 20):
        assert in_bits(bits).epsilon(DELTA) < in_bits(bits).epsilon(DELTA, INTEGER_ORDERS)


def test_our_step_costs_almost_nothing():
    """At 20 bits a value the sum is as private as with normal noise at one trusted place."""
    layout = VectorLayout(2176, (Counter("weight", 1),), 20, 1)
    plan = planned(layout, noise=2.0)
    found = DistributedGaussian.of(plan, answered=30)
    assert (found.shares, found.dimension, found.noise_multiplier) == (5, 2176, 2.0)
    assert found.epsilon(DELTA) == pytest.approx(gaussian(2.0, 30, INTEGER_ORDERS), rel=0.02)


def planned(layout: VectorLayout, noise: float, **more):
    return propose(
        run=bytes(16),
        round=1,
        attempt=1,
        cohort=tuple("abcdefgh"),
        layout=layout,
        clip_norm=0.3,
        roster=bytes(32),
        model=bytes(32),
        noise_multiplier=noise,
        **{"max_corrupt": 1, "min_survivors": 6} | more,
    )


@pytest.mark.parametrize("value_bits", [4, 12, 20])
def test_the_analysis_is_of_what_the_encoding_does(value_bits):
    """Noise and sensitivity in the encoding's integers are those that the accounting assumes."""
    layout = VectorLayout(1000, (Counter("weight", 1),), value_bits, 1)
    found = DistributedGaussian.of(planned(layout, 1.5))
    assert found.share_deviation**2 == pytest.approx(float(noise_variance(layout, 1.5, 5)), rel=1e-12)
    assert largest_squared_norm(layout) <= found.sensitivities[0] ** 2 * (1 + 1e-12)
    assert found.sensitivities[0] ** 2 < largest_squared_norm(layout) + 1 + 1e-6


def test_colluders_and_dropouts_are_not_counted_on():
    base = in_bits(18)
    assert replace(base, min_survivors=11, max_corrupt=0).shares == 10  # whoever looks knows its own noise
    assert replace(base, min_survivors=11, max_corrupt=3).shares == 8
    few = replace(base, step=1.0 / 3, dimension=4, noise_multiplier=1.0)
    assert replace(few, max_corrupt=10).tau == 0.0 < few.tau  # one discrete Gaussian is one


def test_every_answered_attempt_is_charged():
    assert replace(in_bits(18), answered=0).epsilon(DELTA) == 0.0
    assert replace(in_bits(18), answered=11).epsilon(DELTA) > in_bits(18).epsilon(DELTA)
    assert replace(in_bits(18), answered=20).rdp(3.0) == pytest.approx(2 * in_bits(18).rdp(3.0))


@pytest.mark.parametrize(
    ("dimension", "clip", "noise", "order", "least"),
    [(4, 6.0, 0.25, 50.0, 0), (1000, 0.5, 3.0, 1.1, 1), (1000, 0.5, 3.0, 90.0, 0)],
)
def test_coarse_steps_cost_what_the_formula_says(dimension, clip, noise, order, least):
    """By hand, two shares. The third bound is never below the second: it matters where Δ₁ is not known."""
    found = DistributedGaussian(noise, clip, dimension, 1.0, min_survivors=3, max_corrupt=1)
    spread, root = noise * clip, math.sqrt(dimension)
    tau = 10 * math.exp(-2 * math.pi**2 * (spread**2 / 2) * (1 / 2))
    two = math.sqrt(min((clip + root) ** 2, clip**2 + dimension / 4 + clip + root / 2))
    one = min(root * two, two**2)
    bounds = [
        order * two**2 / (2 * spread**2) + tau * dimension,
        order / 2 * (two**2 / spread**2 + 2 * one * tau / spread + tau**2 * dimension),
        order / 2 * (two / spread + root * tau) ** 2,
    ]
    assert bounds.index(min(bounds)) == least
    assert found.rdp(order) == pytest.approx(min(bounds), rel=1e-12)


@pytest.mark.parametrize(("deviation", "shares", "shift"), [(0.6, 1, 1), (0.45, 2, 1), (0.5, 3, 2), (1.3, 3, 4)])
def test_the_bound_holds_for_sums_computed_exactly(deviation, shares, shift):
    """One coordinate: the Rényi divergence between the sum of the noise and the same sum moved by the sensitivity."""
    reach = 80
    values = np.arange(-reach, reach + 1)
    one = np.exp(-(values.astype(np.float128) ** 2) / (2 * deviation**2))
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    centre = len(total) // 2
    window = slice(centre - 12, centre + 13)  # beyond, both are below 1e-18
    moved = np.roll(total, shift)[window]
    found = DistributedGaussian(
        noise_multiplier=deviation * math.sqrt(shares) / shift,
        clip_norm=float(shift),
        dimension=1,
        step=1.0,
        min_survivors=shares + 1,
        max_corrupt=1,
    )
    assert found.sensitivities[0] >= shift
    for order in (1.5, 2.0, 4.0):
        divergence = math.log(float(np.sum(moved**order * total[window] ** (1 - order)))) / (order - 1)
        assert divergence <= found.rdp(order)


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_calibrated_noise_meets_the_target_and_not_much_less_would(target):
    like = replace(in_bits(16), answered=30)
    found = noise_multiplier(target, DELTA, like)
    assert replace(like, noise_multiplier=found).epsilon(DELTA) <= target
    assert replace(like, noise_multiplier=found - 1e-4).epsilon(DELTA) > target


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.inf},
        {"clip_norm": -1.0},
        {"step": math.nan},
        {"dimension": 0},
        {"answered": -1},
        {"max_corrupt": -1},
        {"max_corrupt": 11},
    ],
)
def test_mechanisms_without_meaning_are_refused(change):
    with pytest.raises(MisuseError):
        replace(in_bits(18), **change)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_out_of_range_is_refused(delta):
    with pytest.raises(MisuseError):
        in_bits(18).epsilon(delta)


def test_targets_out_of_reach_are_refused():
    for target in (0.0, math.inf):
        with pytest.raises(MisuseError):
            noise_multiplier(target, DELTA, in_bits(18))
    with pytest.raises(MisuseError, match="no noise"):
        noise_multiplier(1e-9, DELTA, replace(in_bits(18), answered=10**9))
    with pytest.raises(MisuseError):
        scale_for_bits(2, clients=10, dimension=8, clip_norm=1.0, noise_multiplier=1.0)


def test_fractions_hold_the_variance_without_rounding():
    layout = VectorLayout(9, (Counter("weight", 1),), 5, 1)
    assert noise_variance(layout, 0.5, 3) == Fraction(1, 4) * Fraction(9 * 16**2 * 4, 289) / 3
