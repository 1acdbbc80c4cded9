"""A₀ from public rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.adapters.bases import BASES_FILE, load_bases, public_bases, save_bases, whitened
from fedvlm_secure.errors import MisuseError
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, tiny_vlm

DOWN = "model.text_model.layers.1.mlp.down_proj"


def spread(seed: int, rows: int, width: int) -> torch.Tensor:
    """Rows with a mean and directions of very different loudness."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, width)) * 2.0 ** -np.arange(width) @ rng.normal(size=(width, width))
    return torch.from_numpy(mixed + rng.normal(size=width))


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_whitened_coordinates_are_uncorrelated_and_as_loud_as_the_ridge_allows(seed: int, width: int) -> None:
    rows = spread(seed, 50, width)
    moment = rows.T @ rows / len(rows)
    basis = whitened(moment, width).double()
    seen = basis @ moment @ basis.T
    values = torch.linalg.eigvalsh(moment).flip(0)
    expected = torch.diag(values / (values + 1e-3 * values[1]))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_lower_rank_is_the_beginning_of_a_higher_one(seed: int, rank: int) -> None:
    rows = spread(seed, 50, 6)
    moment = rows.T @ rows / len(rows)
    torch.testing.assert_close(whitened(moment, rank), whitened(moment, 6)[:rank])


def test_an_input_that_never_varies_gives_finite_bases() -> None:
    assert torch.isfinite(whitened(torch.zeros(4, 4), 4)).all()


def test_a_row_s_sign_does_not_depend_on_the_solver() -> None:
    basis = whitened(torch.diag(torch.tensor([4.0, 1.0])), 2)
    assert (basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_moments_are_those_of_the_chosen_tokens_over_all_passes() -> None:
    model, batch = tiny_vlm(), FakeSplit(4).batch(range(4))
    halves = [{name: tensor[half] for name, tensor in batch.items()} for half in (slice(0, 2), slice(2, 4))]
    found = public_bases(model, [DOWN], halves, rank=8)
    given_to_layer: list[torch.Tensor] = []
    model.get_submodule(DOWN).register_forward_pre_hook(lambda _, x: given_to_layer.append(x[0]))
    labels = batch.pop("labels")
    with torch.no_grad():
        model(**batch)
    # The token at place t is said where t - 1 is read.
    rows = given_to_layer[0][:, :-1][labels[:, 1:] != -100].double()
    torch.testing.assert_close(found[DOWN], whitened(rows.T @ rows / len(rows), 8))


def test_rows_without_answers_give_no_bases() -> None:
    batch = FakeSplit(2).batch(range(2))
    with pytest.raises(MisuseError, match="at least one row"):
        public_bases(tiny_vlm(), [DOWN], [batch | {"labels": torch.full_like(batch["labels"], -100)}], rank=2)


def test_public_init_takes_as_many_rows_as_the_rank_and_gives_them_to_newcomers() -> None:
    basis = torch.randn(8, 48, generator=torch.Generator().manual_seed(1))
    adapter = attach(tiny_vlm(), AdapterSettings(targets=DOWN, rank=3, init="public"), {DOWN: basis})
    assert torch.equal(adapter.parameters[f"{DOWN}.lora_A.weight"], basis[:3])
    assert not adapter.parameters[f"{DOWN}.lora_B.weight"].any()
    with torch.no_grad():
        adapter.parameters[f"{DOWN}.lora_A.weight"].zero_()
    assert torch.equal(adapter.initial_state()[f"{DOWN}.lora_A.weight"], basis[:3])
    assert basis.any()  # not handed out itself


def test_public_init_without_a_basis_says_which_module_lacks_one() -> None:
    with pytest.raises(MisuseError, match="this model has none"):
        attach(tiny_vlm(), AdapterSettings(targets=DOWN, init="public"))
    with pytest.raises(MisuseError, match=r"needs a public basis for .*, and there are some for .*down_proj"):
        attach(tiny_vlm(), AdapterSettings(targets=TEXT_ONLY, init="public"), {DOWN: torch.zeros(8, 48)})
    with pytest.raises(MisuseError, match="rank must be at most 8"):
        attach(tiny_vlm(), AdapterSettings(targets=DOWN, rank=9, init="public"), {DOWN: torch.zeros(8, 48)})


def test_bases_survive_the_file_and_a_folder_without_one_has_none(tmp_path) -> None:
    assert load_bases(tmp_path) == {}
    bases = {DOWN: torch.tensor([[1.0, -0.5], [0.25, 3.0]])}
    save_bases(tmp_path, bases)
    assert torch.equal(load_bases(tmp_path)[DOWN], bases[DOWN])


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((2, 2), torch.nan)])
def test_bases_that_are_no_finite_matrix_are_refused(tmp_path, bad: torch.Tensor) -> None:
    save_file({DOWN: bad}, tmp_path / BASES_FILE)
    with pytest.raises(MisuseError, match="not a matrix of finite numbers"):
        load_bases(tmp_path)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path) -> None:
    (tmp_path / BASES_FILE).write_bytes(b"not safetensors")
    with pytest.raises(MisuseError, match="cannot be read"):
        load_bases(tmp_path)
