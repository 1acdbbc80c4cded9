import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm_secure.encoding.codec import RANGE_DEVIATIONS, Codec, GarbageSumError, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.encoding.rotation import rotate, unrotate
from fedvlm_secure.errors import MisuseError

SEED = bytes(range(32))
FALSE_ALARM = 1e-6


def codec(update=100, value_bits=20, weight_max=500, clip=1.0, rounding="stochastic", counters=()) -> Codec:
    return Codec(
        VectorLayout(update, (Counter("weight", weight_max), *counters), value_bits, weight_max), clip, SEED, rounding
    )


def vector(size: int, norm: float = 1.0, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(size)
    return values * (norm / np.linalg.norm(values))


def encode(it: Codec, values: np.ndarray, weight: int = 1, **counters: int) -> np.ndarray:
    return it.encode(Update(values, {"weight": weight, **counters})).integers


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 500), st.sampled_from(["nearest", "stochastic"]), st.integers(0, 99))
def test_quantisation_error_is_bounded(size, weight, rounding, seed):
    """Each coordinate moves by at most one integer (half of one to the nearest) after weighting."""
    it, values = codec(size, rounding=rounding), vector(size, 0.9, seed)
    integers = encode(it, values, weight)
    exact = rotate(values, SEED) / it.step * weight
    assert np.abs(integers[:size] - exact).max() <= (0.5 if rounding == "nearest" else 1.0) + 1e-6
    assert integers[size:].tolist() == [weight, 1, 0, 0]
    decoded = it.decode(integers)
    assert np.linalg.norm(decoded.mean - values) <= math.sqrt(size) * it.step / weight
    assert (decoded.participants, decoded.counters) == (1, {"weight": weight})


def test_stochastic_rounding_is_unbiased():
    """The mean of R roundings differs from the exact value by more than Hoeffding's bound with odds below 1e-6."""
    size, repeats = 64, 4000
    it = codec(size, value_bits=4)
    values = vector(size, 0.5)
    exact = rotate(values, SEED) / it.step * 3
    mean = sum(encode(it, values, 3)[:size] for _ in range(repeats)) / repeats
    bound = math.sqrt(math.log(2 * size / FALSE_ALARM) / (2 * repeats))
    assert np.abs(mean - exact).max() < bound
    assert bound < 0.06
    # The same sample would catch rounding down, and rounding to the nearest.
    assert np.abs(np.floor(exact) - exact).max() > bound
    assert np.abs(np.rint(exact) - exact).max() > bound


def test_nearest_rounding_is_reproducible_and_stochastic_is_not():
    values = vector(100)
    assert (encode(codec(rounding="nearest"), values) == encode(codec(rounding="nearest"), values)).all()
    assert (encode(codec(), values, 7) != encode(codec(), values, 7)).any()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("weight", [2, 300, 499])
def test_the_weight_is_no_common_divisor(rounding, weight):
    integers = encode(codec(1000, rounding=rounding), vector(1000), weight)
    assert np.gcd.reduce(integers[:1000]) == 1
    assert np.unique(integers[:1000] % weight).size > 1


def test_clipping():
    it, values = codec(rounding="nearest"), vector(100, 5.0)
    encoded = it.encode(Update(values, {"weight": 1}))
    assert (encoded.clipped, encoded.saturated) == (True, 0)
    np.testing.assert_allclose(np.linalg.norm(it.decode(encoded.integers).mean), 1.0, rtol=1e-4)
    within = it.encode(Update(vector(100, 1.0 - 1e-9), {"weight": 1}))
    assert not within.clipped
    np.testing.assert_array_equal(encoded.integers, within.integers)


def test_saturations_are_counted():
    """A vector that the rotation turns into one large coordinate leaves the range; chance does not make one."""
    size, it = 4096, codec(4096)
    spike = np.zeros(size)
    spike[[5, 9]] = 1.0 / math.sqrt(2)
    encoded = it.encode(Update(unrotate(spike, SEED), {"weight": 500}))
    assert encoded.saturated == 2
    assert np.abs(encoded.integers[:size]).max() == it.layout.levels * 500
    assert RANGE_DEVIATIONS / math.sqrt(size) < 1 / math.sqrt(2)
    assert it.encode(Update(vector(size), {"weight": 500})).saturated == 0


@pytest.mark.parametrize(("value_bits", "weight_max", "clients"), [(20, 4096, 100), (2, 1, 3), (24, (1 << 32) - 1, 9)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_of_extremes_never_wraps(value_bits, weight_max, clients, sign):
    size, top = 2048, 1 << (value_bits - 1)
    counters = (Counter("loss", weight_max * top),)
    it = codec(size, value_bits, weight_max, counters=counters)
    extreme = np.zeros(size)
    extreme[7] = sign
    integers = encode(it, unrotate(extreme, SEED), weight_max, loss=weight_max * top)
    assert integers[7] == sign * top * weight_max
    ring = Ring(it.layout.ring_bits(clients))
    total = ring.zeros(it.layout.size)
    for _ in range(clients):
        total += ring.from_signed(integers)
    # The rounding of another coordinate may add one, which the headroom has room for.
    assert [int(value) for value in ring.to_signed(total)] == [clients * int(value) for value in integers]
    decoded = it.decode(ring.to_signed(total))
    assert decoded.counters == {"weight": clients * weight_max, "loss": clients * weight_max * top}


def test_rounding_up_at_the_edge_stays_within_the_headroom():
    """Beyond 2^53 an integer plus a fraction rounds in float64; one more is allowed for and no more happens."""
    it = codec(1, 24, (1 << 32) - 1, clip=1.0)
    for sign in (1.0, -1.0):
        scaled = np.full(1000, sign * it.layout.levels * it.layout.weight_max)
        integers = np.empty(1000, np.int64)
        it._round(scaled, integers)
        assert np.abs(integers).max() <= it.layout.levels * it.layout.weight_max + 1


@pytest.mark.parametrize(
    "values",
    [
        np.full(100, np.nan),
        np.r_[np.zeros(99), np.inf],
        np.r_[np.zeros(99), -np.inf].astype(np.float32),
        np.zeros(99),
        np.zeros(101, np.float32),
        np.zeros((100, 1)),
        np.zeros((1, 100)),
        np.zeros(100, np.float16),
        np.zeros(100, np.int64),
        np.zeros(100, np.complex128),
        np.zeros(100, object),
        np.zeros(100, ">f4"),
        np.full(100, 1e200),  # finite, its norm is not
        np.float64(3.0),
    ],
)
def test_bad_values_are_refused_and_left_alone(values):
    before = np.array(values, copy=True)
    with pytest.raises(MisuseError):
        codec().encode(Update(values, {"weight": 1}))
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize(
    "counters",
    [{"weight": weight} for weight in (0, -1, 501, 1.0, True, "1", None, np.float64(3), 1 << 70)]
    + [{}, {"loss": 1}, {"weight": 1, "loss": 1}],
)
def test_bad_counters_are_refused(counters):
    with pytest.raises(MisuseError):
        codec().encode(Update(vector(100), counters))


def test_input_is_not_changed_and_numpy_integers_count():
    values = vector(100, 9.0).astype(np.float32)
    before = values.copy()
    integers = codec().encode(Update(values, {"weight": np.int64(3)})).integers
    np.testing.assert_array_equal(values, before)
    assert integers[100] == 3


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf])
def test_bad_clip_norms_are_refused(clip):
    with pytest.raises(MisuseError):
        codec(clip=clip)
    with pytest.raises(MisuseError):
        codec(rounding="up")


def test_an_empty_update_still_counts():
    it = codec(0, counters=(Counter("right", 10),))
    integers = encode(it, np.zeros(0, np.float32), 5, right=3)
    assert integers.tolist() == [5, 3, 1, 0, 0]
    decoded = it.decode(integers * 2)
    assert (len(decoded.mean), decoded.participants, decoded.counters) == (0, 2, {"weight": 10, "right": 6})


@pytest.mark.parametrize(("place", "value"), [(-1, 1), (-2, -1), (-3, 0), (-3, -2), (-4, 501), (-4, -1), (-4, 0)])
def test_garbage_sums_are_noticed(place, value):
    it = codec()
    integers = encode(it, vector(100), 7)
    integers[place] = value
    with pytest.raises(GarbageSumError):
        it.decode(integers)
