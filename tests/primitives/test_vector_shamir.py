"""Shares and decoding against their definitions, in Python's integers."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm_secure.primitives import vector_shamir
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import ShareError
from fedvlm_secure.primitives.vector_shamir import LARGEST, PRIME, inner, locate, recover, split, syndromes, weights

entries = st.integers(-LARGEST, LARGEST) | st.sampled_from([-LARGEST, -1, 0, 1, LARGEST])
some_points = st.lists(st.integers(1, PRIME - 1) | st.integers(1, 12), min_size=1, max_size=12, unique=True)


def value_at(coefficients: list[int], point: int) -> int:
    return sum(coefficient * point**power for power, coefficient in enumerate(coefficients)) % PRIME


def test_the_prime_is_one():
    """Lucas and Lehmer's test of 2^31 - 1."""
    s = 4
    for _ in range(29):
        s = (s * s - 2) % PRIME
    assert s == 0


@settings(deadline=None)
@given(st.lists(entries, max_size=5), some_points, st.data())
def test_any_threshold_of_shares_recover(values, points, data):
    threshold = data.draw(st.integers(1, len(points)))
    shares = split(np.array(values, np.int64), threshold, points)
    assert shares.shape == (len(points), len(values))
    chosen = data.draw(st.permutations(range(len(points))))[: data.draw(st.integers(threshold, len(points)))]
    found = recover([points[each] for each in chosen], shares[chosen])
    assert found.dtype == np.int64
    assert found.tolist() == values
    assert not syndromes(points, shares, threshold).any()


def test_a_share_is_the_polynomial_at_its_point(monkeypatch):
    coefficients = np.array([[5, PRIME - 1], [0, PRIME - 2], [7, PRIME - 1]], np.uint32)
    monkeypatch.setattr(vector_shamir, "_uniform", lambda count: coefficients.reshape(-1))
    values, points = [-3, LARGEST], [1, 2, PRIME - 1, 12345678, 99]
    shares = split(np.array(values), 4, points)
    for point, row in zip(points, shares.tolist(), strict=True):
        assert row == [value_at([values[j], *coefficients[:, j].tolist()], point) for j in range(2)]


def test_fewer_shares_than_the_threshold_recover_something_else():
    values = np.arange(-20, 20)
    shares = split(values, 4, range(1, 8))
    for chosen in combinations(range(7), 3):
        points = [each + 1 for each in chosen]
        assert not (recover(points, shares[list(chosen)]) == values).all()  # holds by accident once in 2^1240


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """Two shares of three: for every claimed secret there is exactly one polynomial through them."""
    shares = split(np.array([41]), 3, [3, 8, 9])[:2, 0].tolist()
    for claimed in (0, 41, LARGEST):
        at_zero, (one, other) = claimed, shares
        # f(x) = claimed + b·x + c·x², solved for b and c.
        c = (((other - at_zero) * pow(8, -1, PRIME)) - ((one - at_zero) * pow(3, -1, PRIME))) * pow(5, -1, PRIME)
        b = (one - at_zero) * pow(3, -1, PRIME) - 3 * c
        assert [value_at([claimed, b, c], point) for point in (3, 8)] == shares


def test_coefficients_are_uniform_below_the_prime(monkeypatch):
    """p is drawn again, not reduced; the top bit is cut off."""
    draws = [[PRIME, 7, (1 << 32) - 1, PRIME - 1, 1 << 31], [(1 << 32) - 1, 3], [PRIME - 1]]

    class Stream:
        def __init__(self, key: Secret) -> None:
            assert len(key) == 32

        def fill(self, words: np.ndarray) -> None:
            words[:] = draws.pop(0)

    monkeypatch.setattr(vector_shamir, "MaskStream", Stream)
    assert vector_shamir._uniform(5).tolist() == [PRIME - 1, 7, 3, PRIME - 1, 0]


def test_every_split_draws_anew():
    values = np.zeros(50, np.int64)
    assert (split(values, 2, [1, 2]) != split(values, 2, [1, 2])).any(axis=1).all()
    high = split(np.zeros(20_000, np.int64), 2, [1, 2])[0]
    assert abs(high.mean() / PRIME - 0.5) < 6.5 / np.sqrt(12 * 20_000)


@settings(deadline=None)
@given(st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=6), some_points, st.integers(0, PRIME - 1))
def test_weights_give_the_value_anywhere(coefficients, points, at):
    values = [value_at(coefficients[: len(points)], point) for point in points]
    found = sum(weight * value for weight, value in zip(weights(points, at), values, strict=True)) % PRIME
    assert found == value_at(coefficients[: len(points)], at)


@settings(deadline=None)
@given(st.integers(2, 8), st.data())
def test_shares_add_up(members, data):
    threshold = data.draw(st.integers(1, members))
    vectors = [data.draw(st.lists(st.integers(-1000, 1000), min_size=4, max_size=4)) for _ in range(3)]
    shares = [split(np.array(vector), threshold, range(1, members + 1)).astype(np.uint64) for vector in vectors]
    total = (sum(shares) % np.uint64(PRIME)).astype(np.uint32)
    assert recover(range(1, members + 1), total).tolist() == np.sum(vectors, axis=0).tolist()


@settings(deadline=None)
@given(some_points.filter(lambda points: len(points) > 1), st.data())
def test_a_wrong_share_shows_in_its_column_only(points, data):
    threshold = data.draw(st.integers(1, len(points) - 1))
    shares = split(np.arange(4), threshold, points)
    row, change = data.draw(st.integers(0, len(points) - 1)), data.draw(st.integers(1, PRIME - 1))
    shares[row, 2] = (int(shares[row, 2]) + change) % PRIME
    found = syndromes(points, shares, threshold)
    assert found.shape == (len(points) - threshold, 4)
    assert found.any(axis=0).tolist() == [False, False, True, False]


@settings(max_examples=200, deadline=None)
@given(some_points, st.data())
def test_as_many_wrong_shares_as_can_be_located_are(points, data):
    threshold = data.draw(st.integers(1, len(points)))
    coefficients = data.draw(st.lists(st.integers(0, PRIME - 1), min_size=threshold, max_size=threshold))
    word = [value_at(coefficients, point) for point in points]
    count = data.draw(st.integers(0, (len(points) - threshold) // 2))
    chosen = sorted(data.draw(st.permutations(range(len(points))))[:count])
    for place in chosen:
        word[place] = (word[place] + data.draw(st.integers(1, PRIME - 1))) % PRIME
    assert locate(points, np.array(word, np.uint32), threshold) == tuple(points[place] for place in chosen)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_one_wrong_share_too_many_is_told_or_is_another_word(threshold, capacity, data):
    """With capacity + 1 wrong shares there is mostly no polynomial near, and never one that names just those."""
    size = threshold + 2 * capacity
    word = np.array([7] * size, np.uint32)
    wrong = data.draw(st.permutations(range(size)))[: capacity + 1]
    word[wrong] = data.draw(st.lists(st.integers(8, 9000), min_size=capacity + 1, max_size=capacity + 1))
    try:
        found = locate(range(1, size + 1), word, threshold)
    except ShareError:
        return
    assert len(found) <= capacity
    kept = [point for point in range(1, size + 1) if point not in found]
    assert not syndromes(kept, word[[point - 1 for point in kept], np.newaxis], threshold).any()


def test_an_undecodable_word_is_refused():
    for threshold, word in ((1, [1, 2, 3]), (2, [0, 0, 0, 1, 5]), (1, [1, 1, 2, 2]), (3, [0, 0, 0, 1])):
        with pytest.raises(ShareError, match="more shares are wrong"):
            locate(range(1, len(word) + 1), np.array(word, np.uint32), threshold)
    assert locate(range(1, 4), np.array([9, 8, 9], np.uint32), 1) == (2,)
    assert locate(range(1, 4), np.array([9, 8, 0], np.uint32), 3) == ()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, PRIME - 1)), max_size=50))
def test_inner_products(pairs):
    rho, shares = np.array(pairs, np.uint32).reshape(-1, 2).T
    assert inner(rho, shares) == sum(one * other for one, other in pairs) % PRIME


def test_a_liar_is_found_in_a_random_combination():
    rng = np.random.default_rng(4)
    points, threshold = list(range(1, 14)), 7
    shares = split(rng.integers(-9, 10, 2048), threshold, points)
    shares[4, 100] ^= 1
    shares[11] = rng.integers(0, PRIME, 2048)
    rho = rng.integers(0, PRIME, 2048, dtype=np.uint32)
    word = np.array([inner(rho, row) for row in shares], np.uint32)
    assert locate(points, word, threshold) == (5, 12)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.data())
def test_products_of_matrices_at_the_edges(rows, inside, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    pick = np.array([0, 1, PRIME - 2, PRIME - 1, 1 << 30], np.uint32)
    rng = np.random.default_rng(seed)
    left, right = rng.choice(pick, (rows, inside)), rng.choice(pick, (inside, 3))
    expected = left.astype(object) @ right.astype(object) % PRIME
    assert vector_shamir._product(left, right).tolist() == expected.tolist()
    most = np.full((1, inside), PRIME - 1, np.uint32)
    assert vector_shamir._product(most, most.T).tolist() == [[inside % PRIME]]


@pytest.mark.parametrize("points", [[1, 1], [0, 1], [1, PRIME], [-1, 2]])
def test_bad_points_are_refused(points):
    shares = np.zeros((2, 3), np.uint32)
    for call in (
        lambda: split(np.zeros(3, np.int64), 1, points),
        lambda: weights(points),
        lambda: recover(points, shares),
        lambda: syndromes(points, shares, 1),
        lambda: locate(points, shares[:, 0], 1),
    ):
        with pytest.raises(ValueError, match="points must be distinct"):
            call()


def test_misuse_is_refused():
    shares = np.zeros((3, 2), np.uint32)
    for entry in (LARGEST + 1, -LARGEST - 1, -(2**63)):
        with pytest.raises(ValueError, match="at most"):
            split(np.array([0, entry]), 2, [1, 2, 3])
    for threshold in (0, 4):
        for call in (
            lambda t=threshold: split(np.zeros(1, np.int64), t, [1, 2, 3]),
            lambda t=threshold: syndromes([1, 2, 3], shares, t),
            lambda t=threshold: locate([1, 2, 3], shares[:, 0], t),
        ):
            with pytest.raises(ValueError, match="threshold"):
                call()
    for points in ([1, 2], []):
        with pytest.raises(ValueError, match="rows of shares"):
            recover(points, shares)
    shares[2, 1] = PRIME
    for call in (
        lambda: recover([1, 2, 3], shares),
        lambda: syndromes([1, 2, 3], shares, 1),
        lambda: locate([1, 2, 3], shares[:, 1], 1),
    ):
        with pytest.raises(ShareError, match="no element"):
            call()
