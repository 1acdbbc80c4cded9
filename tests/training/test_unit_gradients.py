"""Gradients kept as factors say what the same gradients say when they are written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvlm_secure.training.unit_gradients import Dense, Outer, gradients_of

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def outer(sizes: tuple[int, int, int, int], seed: int) -> Outer:
    units, tokens, width, height = sizes
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(units, tokens, width, generator=generator)
    return Outer(inputs, torch.randn(units, tokens, height, generator=generator))


@given(SIZES, st.integers(0, 1000))
def test_norms_and_sums_are_those_of_the_products(sizes, seed):
    factored = outer(sizes, seed)
    rows = torch.einsum("uto,uti->uoi", factored.outputs, factored.inputs).flatten(1)
    factors = torch.rand(len(rows), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for gradients in (factored, Dense(rows)):
        torch.testing.assert_close(gradients.dense(), rows)
        torch.testing.assert_close(gradients.norms(), rows.double().norm(dim=1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients.sum(factors), factors.float() @ rows, rtol=1e-4, atol=1e-5)


@given(SIZES, st.integers(0, 1000), st.data())
def test_rows_of_a_unit_are_added_up(sizes, seed, data):
    factored = outer(sizes, seed)
    steps = data.draw(st.lists(st.booleans(), min_size=sizes[0] - 1, max_size=sizes[0] - 1))
    groups = torch.tensor([0, *steps]).cumsum(0)
    count = int(groups[-1]) + 1
    rows = factored.dense()
    expected = torch.stack([rows[groups == group].sum(0) for group in range(count)])
    for gradients in (factored, Dense(rows)):
        torch.testing.assert_close(gradients.grouped(groups, count).dense(), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_survives_tokens_that_nearly_cancel():
    inputs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    outputs = torch.tensor([[[1000.0], [-1000.0 + 2**-10]]])
    assert float(Outer(inputs, outputs).norms()) == pytest.approx(2**-10, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_has_no_finite_norm_and_is_left_out_of_sums(bad):
    for gradients in (outer((3, 2, 4, 4), 1), Dense(outer((3, 2, 4, 4), 1).dense())):
        for tensor in vars(gradients).values():
            tensor[1].fill_(bad)
        assert gradients.norms().isfinite().tolist() == [True, False, True]
        assert gradients.sum(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)).isfinite().all()


def test_factors_are_kept_only_where_they_are_smaller():
    few, many = torch.zeros(2, 3, 64), torch.zeros(2, 40, 64)
    assert isinstance(gradients_of(few, torch.zeros(2, 3, 64)), Outer)
    assert gradients_of(many, torch.zeros(2, 40, 64)) is None
    assert gradients_of(torch.zeros(6, 64), torch.zeros(6, 64)) is None
