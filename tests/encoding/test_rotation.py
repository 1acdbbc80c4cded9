import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm_secure.encoding.rotation import rotate, unrotate

SEED = bytes(range(32))
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 97, 127, 128, 129, 255, 257, 1000, 8191, 8192, 16383, 20_011]


def vector(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


@pytest.mark.parametrize("size", SIZES)
def test_isometry_and_inverse(size):
    values = vector(size, size)
    before = values.copy()
    rotated = rotate(values, SEED)
    np.testing.assert_array_equal(values, before)
    assert rotated.shape == values.shape
    assert rotated.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(values), rtol=1e-13)
    np.testing.assert_allclose(unrotate(rotated, SEED), values, rtol=0, atol=1e-13 * max(np.linalg.norm(values), 1))


@settings(deadline=None)
@given(st.integers(1, 300), st.binary(min_size=32, max_size=32), st.integers(0, 1000))
def test_linear_and_orthogonal(size, seed, number):
    one, other = vector(size, number), vector(size, number + 1)
    both = rotate(2 * one - 3 * other, seed)
    np.testing.assert_allclose(both, 2 * rotate(one, seed) - 3 * rotate(other, seed), atol=1e-11)
    np.testing.assert_allclose(rotate(one, seed) @ rotate(other, seed), one @ other, atol=1e-11)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 33, 64])
def test_the_matrix_is_orthogonal_and_its_window_is_hadamards(size):
    matrix = np.stack([rotate(unit, SEED) for unit in np.eye(size)])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)
    if size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(matrix), size**-0.5)


@pytest.mark.parametrize("size", [1000, 1023, 1024, 1025])
def test_one_large_coordinate_is_spread(size):
    for place in (0, size // 2, size - 1):
        spike = np.zeros(size)
        spike[place] = 1.0
        assert np.abs(rotate(spike, SEED)).max() < 6 / np.sqrt(size)


def test_seeds_differ():
    values = vector(500, 0)
    assert not np.allclose(rotate(values, SEED), rotate(values, bytes(32)))
