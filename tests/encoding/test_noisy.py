"""Noise in the encoding: that the norm is bounded whatever happens before, and that the noise is what was planned.

Statistical bounds alarm falsely with a chance of at most 1e-8 each.
"""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedvlm_secure.encoding import noisy
from fedvlm_secure.encoding.codec import Codec, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.noisy import (
    check_noisy,
    largest_squared_norm,
    noise_shares,
    noise_tail,
    noise_variance,
    round_stochastically,
    round_within,
    squared_norm,
)
from fedvlm_secure.errors import MisuseError

FALSE_ALARM = 1e-8
SEED = bytes(range(32))


def layout(update: int, value_bits: int = 20) -> VectorLayout:
    return VectorLayout(update, (Counter("weight", 1),), value_bits, 1)


def codec(update: int, value_bits: int = 20, noise: float = 1.0, shares: int = 3, clip: float = 0.7) -> Codec:
    shape = layout(update, value_bits)
    return Codec(shape, clip, SEED, "stochastic", noise_variance(shape, noise, shares))


def encode(it: Codec, values) -> np.ndarray:
    return it.encode(Update(np.asarray(values, np.float64), {"weight": 1})).integers


def test_the_noise_has_the_planned_deviation_and_nothing_else_is_noised():
    it, size = codec(50_000, noise=1.5, shares=3), 50_000
    values = np.random.default_rng().normal(size=size)
    integers, exact = encode(it, values), encode(replace(it, noise=Fraction(0)), values)
    assert integers[size:].tolist() == [1, 1, 0, 0]
    noise = (integers - exact)[:size] * it.step
    deviation = 1.5 * it.clip_norm / math.sqrt(3)
    squares = float(np.sum((noise / deviation) ** 2))
    assert FALSE_ALARM < stats.chi2.cdf(squares, size) < 1 - FALSE_ALARM
    assert stats.kstest(noise / deviation, "norm").pvalue > FALSE_ALARM
    assert not (encode(it, values) == integers).all()


@pytest.mark.parametrize("value_bits", [2, 4, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000])
def test_a_rounded_vector_is_never_longer_than_the_bound(size, value_bits, monkeypatch):
    """Whatever the values: the guarantee rests on this alone."""
    rounded = []
    monkeypatch.setattr("fedvlm_secure.encoding.codec.add_noise", lambda integers, _: rounded.append(integers.copy()))
    it, generator = codec(size, value_bits), np.random.default_rng()
    bound = largest_squared_norm(it.layout)
    for _ in range(50):
        for values in (generator.normal(size=size) * 1e30, np.eye(size)[0], np.full(size, -1e-3), np.zeros(size)):
            encode(it, values)
    assert len(rounded) == 200
    assert all(sum(int(x) ** 2 for x in each) <= bound for each in rounded)
    assert all(not each.any() for each in rounded[3::4])  # zeros stay zeros: that is the neighbour's vector


def test_rounding_is_repeated_where_once_is_not_enough():
    """Three coordinates that often round up all three, beyond the bound."""
    shape, clip = layout(3, 2), 2 * math.sqrt(3) * 2 / 17
    scaled, integers = np.full(3, clip / math.sqrt(3)), np.empty(3, np.int64)
    bound, over = largest_squared_norm(shape), 0
    for _ in range(2000):
        round_stochastically(scaled, integers)
        over += squared_norm(integers) > bound
        round_within(scaled, shape, integers)
        assert squared_norm(integers) <= bound
    assert 0 < over < 2000 * math.exp(-0.5)


def test_squared_norms_are_exact(monkeypatch):
    monkeypatch.setattr(noisy, "_PART", 7)
    integers = np.full(20, (1 << 23) - 1, np.int64)
    assert squared_norm(integers) == 20 * ((1 << 23) - 1) ** 2
    assert squared_norm(np.full(1 << 10, -(1 << 20), np.int64)) == 1 << 50


def test_conditional_rounding_stays_unbiased_to_a_step_in_long_vectors():
    shape = layout(2000, 8)
    scaled, integers = np.random.default_rng().normal(size=2000), np.empty(2000, np.int64)
    total = np.zeros(2000)
    for _ in range(200):
        round_within(scaled, shape, integers)
        total += integers - scaled
    assert abs(total.mean() / 200) < 6 * 0.5 / math.sqrt(200 * 2000)


def test_the_tail_is_ten_deviations_of_all_clients_together():
    variance = noise_variance(layout(1000), 2.0, 4)
    assert noise_tail(variance, 9) == pytest.approx(10 * math.sqrt(9 * variance), abs=1)
    assert noise_tail(Fraction(0), 9) == 0
    # Over the 2^31 coordinates that a layout may have.
    assert 2 * 2**31 * math.exp(-(10**2) / 2) < 2**-40


@pytest.mark.parametrize("clients", [3, 10, 100])
def test_the_ring_has_room_for_values_and_noise(clients):
    shape = layout(100_000)
    tail = noise_tail(noise_variance(shape, 3.0, clients - 1), clients)
    bits = shape.ring_bits(clients, tail)
    assert clients * (shape.levels + 1) + tail < 1 << (bits - 1)
    assert bits == 8 * math.ceil((1 + math.log2(clients * (shape.levels + 1) + tail)) / 8)


def test_shares_are_those_that_nobody_who_looks_knows():
    assert noise_shares(10, 0) == noise_shares(10, 1) == 9
    assert noise_shares(10, 4) == 6


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf, 1e-300, 1e300])
def test_noise_without_meaning_is_refused(noise):
    with pytest.raises(MisuseError):
        noise_variance(layout(100), noise, 3)


def test_noise_of_nobody_is_refused():
    with pytest.raises(MisuseError, match="min_survivors"):
        noise_variance(layout(100), 1.0, 0)


def test_no_noise_and_nothing_to_noise():
    assert noise_variance(layout(100), 0.0, 3) == noise_variance(layout(0), 1.0, 3) == 0


def test_a_codec_takes_noise_with_stochastic_rounding_and_equal_weights_only():
    it = codec(10)
    with pytest.raises(MisuseError):
        replace(it, rounding="nearest")
    with pytest.raises(MisuseError):
        replace(it, layout=VectorLayout(10, (Counter("weight", 2),), 20, 2))
    with pytest.raises(MisuseError, match="modulus"):
        it.weigh(Update(np.zeros(10), {"weight": 1}))


@pytest.mark.parametrize(
    ("protocol", "shape", "rounding", "said"),
    [
        ("ckks", layout(5), "stochastic", "without a modulus"),
        ("plain", layout(5), "stochastic", "single vectors"),
        ("pairwise", VectorLayout(5, (Counter("weight", 2),), 20, 2), "stochastic", "weight_max"),
        ("pairwise", VectorLayout(5, (Counter("weight", 1), Counter("right", 9)), 20, 1), "stochastic", "no counter"),
        ("bfv", layout(5), "nearest", "rounding"),
    ],
)
def test_rounds_that_cannot_hold_noise_are_refused(protocol, shape, rounding, said):
    check_noisy("pairwise", layout(5), "stochastic")
    check_noisy("bfv", layout(5), "stochastic")
    with pytest.raises(MisuseError, match=said):
        check_noisy(protocol, shape, rounding)
