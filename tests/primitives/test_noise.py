"""The distributions of the noise, against exact probabilities, and that nobody can make it again.

Every statistical test here alarms falsely with a chance of at most 1e-8, and there are fewer than 60 of them.
"""

import copy
import decimal
import math
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import entropy, noise
from fedvlm_secure.primitives.noise import NoiseSource

FALSE_ALARM = 1e-8
VARIANCES = [Fraction(1, 12), Fraction(1, 2), Fraction(1), Fraction(22, 7), Fraction(9), Fraction(2**40 + 1, 2**34)]


def exact_probabilities(variance: Fraction, reach: int) -> dict[int, float]:
    """The discrete Gaussian's probabilities from -reach to reach, to 40 digits before they become doubles."""
    context = decimal.Context(prec=40)

    def weight(x: int) -> decimal.Decimal:
        exponent = Fraction(x * x) / (2 * variance)
        return context.exp(-context.divide(decimal.Decimal(exponent.numerator), decimal.Decimal(exponent.denominator)))

    total = sum((weight(x) for x in range(-4 * reach - 9, 4 * reach + 10)), decimal.Decimal(0))
    return {x: float(weight(x) / total) for x in range(-reach, reach + 1)}


def chi_square(samples: np.ndarray, variance: Fraction) -> float:
    """The p-value of the samples against the exact probabilities, with one class for all rare values."""
    reach = max(1, math.ceil(6 * math.sqrt(variance)))
    probabilities = exact_probabilities(variance, reach)
    inner = [x for x, p in probabilities.items() if p * len(samples) >= 10]
    observed = [int(np.count_nonzero(samples == x)) for x in inner]
    expected = [probabilities[x] * len(samples) for x in inner]
    rest, rest_expected = len(samples) - sum(observed), len(samples) - sum(expected)
    if rest_expected >= 10:
        observed, expected = [*observed, rest], [*expected, rest_expected]
    else:
        assert rest <= stats.poisson.isf(FALSE_ALARM, max(rest_expected, 1e-3))
        expected = [value * sum(observed) / sum(expected) for value in expected]
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_discrete_gaussian_has_the_exact_probabilities(variance):
    samples = NoiseSource().discrete_gaussian(variance, 200_000)
    assert samples.dtype == np.int64
    assert samples.shape == (200_000,)
    assert chi_square(samples, variance) > FALSE_ALARM


@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(22, 7)])
def test_the_exact_path_has_the_same_distribution(monkeypatch, variance):
    monkeypatch.setattr(noise, "MARGIN", 2.0)  # nothing is ever clear from the first 64 bits
    samples = NoiseSource().discrete_gaussian(variance, 4_000)
    assert chi_square(samples, variance) > FALSE_ALARM


def test_fast_and_exact_paths_decide_alike(monkeypatch):
    """The same random words give the same integers, whichever way every toss is decided."""
    script = os.urandom(1 << 16)
    results = []
    for margin in (noise.MARGIN, 2.0):
        monkeypatch.setattr(noise, "MARGIN", margin)
        source, served = NoiseSource(), iter(np.frombuffer(script, "<u8").copy())
        monkeypatch.setattr(
            source._coins, "_words", lambda n, it=served: np.fromiter((next(it) for _ in range(n)), np.uint64, n)
        )
        exponents = np.array([0.0, 1e-9, 0.1, 1.0, 5.0, 40.0] * 200)
        results.append(source._coins.toss(exponents, lambda i, e=exponents: Fraction(float(e[i]))))
    assert (results[0] == results[1]).all()
    assert results[0][0::6].all()  # exp(0) is 1: it always succeeds
    assert not results[0][5::6].any()


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(97, 13), Fraction(1, 2**70)])
def test_undecided_tosses_draw_more_digits_until_they_are_decided(exponent):
    """64 digits that straddle exp(-γ): the next digits decide, exactly at the boundary."""
    with decimal.localcontext(prec=90) as context:
        power = context.exp(-context.divide(exponent.numerator, exponent.denominator))
        scaled = Fraction(power) * 2**192
    boundary = math.floor(scaled)
    if exponent == 0:
        boundary = 2**192 - 1
    for offset, expected in ((-5, True), (5, False)):
        if exponent == 0 and not expected:
            continue
        digits = boundary + offset
        following = [digits >> 64 & (2**64 - 1), digits & (2**64 - 1), 7, 7]
        coins = noise._Coins(lambda count, words=following: [words.pop(0)])
        assert coins._exactly(digits >> 128, exponent) is expected


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_probability_next_to_64_digits_is_told_apart(sign):
    """exp(-γ) is k/2^64 but for the 40th digit: 64 digits of U and 32 of the exponential cannot tell."""
    numerator = 11_400_714_819_323_198_485
    with decimal.localcontext(prec=90) as context:
        near = context.ln(decimal.Decimal(numerator) / decimal.Decimal(2**64))
        exponent = -Fraction(near) - sign * Fraction(1, 10**40)
    following = [2**64 - 1] * 4 if sign < 0 else [0] * 4
    coins = noise._Coins(lambda count: [following.pop(0)])
    assert coins._exactly(numerator - (sign < 0), exponent) is (sign > 0)
    assert len(following) < 4


def test_bounds_of_the_exponential_hold_and_close():
    for exponent in (Fraction(0), Fraction(1, 7), Fraction(1), Fraction(355, 113), Fraction(10**6, 3)):
        wide, close = noise._exp_bounds(exponent, 20), noise._exp_bounds(exponent, 60)
        assert wide[0] <= close[0] < close[1] <= wide[1]
        assert close[1] - close[0] < Fraction(1, 10**55)
        assert wide[0] <= Fraction(math.exp(-exponent) * (1 + 1e-14)) or exponent > 700
        assert wide[1] >= Fraction(math.exp(-exponent) * (1 - 1e-14))


def slow_bernoulli_exp(gamma: Fraction, uniform) -> bool:
    """Algorithm 1 as printed, on exact Bernoullis."""
    while gamma > 1:
        if not slow_bernoulli_exp(Fraction(1), uniform):
            return False
        gamma -= 1
    k = 1
    while uniform(k * gamma.denominator) < gamma.numerator:
        k += 1
    return k % 2 == 1


def slow_discrete_gaussian(variance: Fraction, uniform) -> int:
    """Algorithms 2 and 3 as printed, with t = ⌊σ⌋ + 1."""
    t = math.isqrt(math.floor(variance)) + 1
    while True:
        u = uniform(t)
        if not slow_bernoulli_exp(Fraction(u, t), uniform):
            continue
        v = 0
        while slow_bernoulli_exp(Fraction(1), uniform):
            v += 1
        x, negative = u + t * v, bool(uniform(2))
        if negative and x == 0:
            continue
        if slow_bernoulli_exp((x - variance / t) ** 2 / (2 * variance), uniform):
            return -x if negative else x


@pytest.mark.parametrize("variance", [Fraction(1, 12), Fraction(22, 7), Fraction(30)])
def test_it_agrees_with_the_published_algorithms_taken_literally(variance):
    def uniform(below: int) -> int:
        return int.from_bytes(entropy.random_bytes(32), "little") % below  # off by at most below/2^256

    slow = np.array([slow_discrete_gaussian(variance, uniform) for _ in range(10_000)])
    fast = NoiseSource().discrete_gaussian(variance, 100_000)
    edge = math.ceil(2.5 * math.sqrt(variance))
    values = range(-edge, edge + 1)
    table = [[np.count_nonzero(np.clip(each, -edge, edge) == x) for x in values] for each in (slow, fast)]
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


@pytest.mark.parametrize("deviation", [100, 12_345.678, 1e7, 2.0**40])
def test_wide_discrete_gaussians_have_the_moments_and_tails_of_normals(deviation):
    samples = NoiseSource().discrete_gaussian(Fraction(deviation) ** 2, 200_000) / deviation
    assert stats.kstest(samples + np.random.default_rng().uniform(-0.5, 0.5, 200_000) / deviation, "norm").pvalue > (
        FALSE_ALARM
    )
    assert abs(samples.mean()) * math.sqrt(200_000) < 6
    assert abs(samples.var() - 1) < 6 * math.sqrt(2 / 200_000)
    beyond = np.count_nonzero(np.abs(samples) > 3)
    assert stats.binomtest(beyond, 200_000, 2 * stats.norm.sf(3)).pvalue > FALSE_ALARM


def test_normals_are_standard_normals():
    samples = NoiseSource().normal(1_000_001)
    assert samples.dtype == np.float64
    assert stats.kstest(samples, "norm").pvalue > FALSE_ALARM
    assert abs(samples.mean()) * 1e3 < 6
    assert abs(samples.var() - 1) < 6 * math.sqrt(2e-6)
    assert abs(np.mean(samples**3)) < 6 * math.sqrt(15e-6)
    assert abs(np.mean(samples**4) - 3) < 6 * math.sqrt(96e-6)
    beyond = np.count_nonzero(np.abs(samples) > 4)
    assert stats.binomtest(beyond, len(samples), 2 * stats.norm.sf(4)).pvalue > FALSE_ALARM


def test_normals_that_share_points_of_the_disc_are_independent():
    part = noise._POINTS
    samples = NoiseSource().normal(400 * part).reshape(200, 2, part)
    first, second = samples[:, 0].reshape(-1), samples[:, 1].reshape(-1)
    for one, other in ((first, second), (first[1:], first[:-1]), (first**2 - 1, (second**2 - 1) / 2)):
        scale = math.sqrt(len(one)) * one.std() * other.std()
        assert abs(one @ other) / scale < 6


@pytest.mark.parametrize("size", [0, 1, 2, 3, 2047, 2048, 2049, 5001])
def test_every_size_is_served(size):
    source = NoiseSource()
    for samples in (
        source.normal(size),
        source.bernoulli(0.5, size),
        source.discrete_gaussian(Fraction(9), size),
    ):
        assert samples.shape == (size,)
    assert np.isfinite(source.normal(size)).all()


@pytest.mark.parametrize("probability", [1e-3, 0.25, 0.9])
def test_coins_fall_as_often_as_asked(probability):
    heads = int(NoiseSource().bernoulli(probability, 1_000_000).sum())
    assert stats.binomtest(heads, 1_000_000, probability).pvalue > FALSE_ALARM


def test_certain_coins_are_certain():
    source = NoiseSource()
    assert source.bernoulli(1.0, 10_000).all()
    assert not source.bernoulli(0.0, 10_000).any()
    assert not source.bernoulli(2.0**-70, 10_000).any()  # rounded down to never


def test_a_coin_compares_with_the_floor_of_the_probability(monkeypatch):
    source = NoiseSource()
    words = np.array([0, 1 << 62, (1 << 62) + 1, (1 << 64) - 1], np.uint64)
    monkeypatch.setattr(source, "_words", lambda count: words[:count])
    assert source.bernoulli(0.25, 4).tolist() == [True, False, False, False]
    assert source.bernoulli(math.nextafter(0.25, 1), 4).tolist() == [True, True, True, False]


def draws(source: NoiseSource) -> tuple:
    return (*source.normal(8), *source.discrete_gaussian(Fraction(10**12), 8), *source.bernoulli(0.5, 128))


def test_seeds_of_other_generators_change_nothing():
    seen = set()
    for _ in range(3):
        np.random.seed(1)
        torch.manual_seed(1)
        seen.add(draws(NoiseSource()))
    assert len(seen) == 3


def test_two_sources_with_the_same_entropy_agree_so_all_of_it_comes_from_there(monkeypatch):
    monkeypatch.setattr(entropy, "random_bytes", lambda count: bytes(range(count)))
    assert draws(NoiseSource()) == draws(NoiseSource())


def test_a_source_is_neither_copied_nor_pickled():
    source = NoiseSource()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="same noise"):
            attempt(source)


def test_a_forked_process_does_not_repeat_its_parent():
    source = NoiseSource()
    source.normal(1)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, source.normal(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs, ours = np.frombuffer(os.read(reader, 32)), source.normal(4)
    assert not np.intersect1d(theirs, ours).size


def test_a_key_serves_a_bounded_length(monkeypatch):
    keys = []
    original = noise.Secret.generate
    monkeypatch.setattr(noise.Secret, "generate", lambda: keys.append(original()) or keys[-1])
    monkeypatch.setattr(noise, "_REKEY_BYTES", 1 << 20)
    NoiseSource().normal(1 << 17)
    assert len(keys) > 4
    assert len({key.reveal() for key in keys}) == len(keys)


@pytest.mark.parametrize(
    "call",
    [
        lambda source: source.bernoulli(1.1, 1),
        lambda source: source.bernoulli(math.nan, 1),
        lambda source: source.bernoulli(-0.1, 1),
        lambda source: source.normal(-1),
        lambda source: source.discrete_gaussian(Fraction(0), 1),
        lambda source: source.discrete_gaussian(Fraction(-1), 1),
        lambda source: source.discrete_gaussian(Fraction(2**80 + 1), 1),
        lambda source: source.discrete_gaussian(Fraction(1), -1),
    ],
)
def test_misuse_is_refused(call):
    with pytest.raises(MisuseError):
        call(NoiseSource())
