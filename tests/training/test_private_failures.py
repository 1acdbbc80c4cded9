"""Five ways in which DP-SGD on a vision-language model fails without a word; each of them once."""

import numpy as np
import pytest
import torch

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.training import PrivateSettings, TrainSettings, train_private
from fedvlm_secure.training import private as module
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, tiny_vlm
from tests.training.dp_reference import FAMILIES, Script, clipped_by_hand, record, row_gradient

ONE = TrainSettings(steps=1, batch_size=8)
EVERYBODY = PrivateSettings(noise_multiplier=1.0, max_grad_norm=0.5, sample_rate=1.0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in ("Idefics3 of two tiles, both", "Qwen2-VL, both")])
def test_1_a_picture_of_many_tiles_or_patches_is_clipped_once(family, monkeypatch):
    """Clipped tile by tile, a picture moves the sum by as many times the limit."""
    steps = record(monkeypatch)
    adapter = family.adapter()
    train_private(adapter, family.split(), ONE, EVERYBODY, np.arange(8), noise=Script([row == 1 for row in range(8)]))
    assert float(steps[0].norm()) == pytest.approx(0.5, rel=1e-5)


def test_2_the_length_of_one_answer_does_not_change_what_another_row_adds():
    """The mean over all tokens of a batch makes a row's gradient depend on the other rows' lengths."""
    family = FAMILIES[0]
    adapter, split = family.adapter(), FakeSplit(8)
    wide = 1e6  # nobody is clipped: the sum is that of the rows alone
    alone = row_gradient(adapter, split, 0)
    with module.per_sample_gradients(adapter.peft_model), module.learning(adapter):
        for other in (1, 2, 3):
            pair = [np.array([0]), np.array([other])]
            both = module.clipped_sum(adapter, split, pair, wide, 8).total
            theirs = module.clipped_sum(adapter, split, pair[1:], wide, 8).total
            assert float((both - theirs - alone).norm() / alone.norm()) < 1e-6


@pytest.mark.parametrize("what", ["noise", "units"])
def test_3_the_seed_of_the_experiment_decides_neither_noise_nor_units(what, monkeypatch):
    """Two hospitals with one seed: equal noise would cancel in the difference of their updates."""
    steps = record(monkeypatch)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        adapter = attach(tiny_vlm(), AdapterSettings(targets=TEXT_ONLY, rank=4, seed=0))
        dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=0.5 if what == "units" else 1e-18)
        source = NoiseSource()
        if what == "units":
            drawn.append(source.bernoulli(0.5, 64))  # what the call below would begin with
        train_private(adapter, FakeSplit(8), ONE, dp, np.arange(8), noise=source)
    assert not torch.equal(steps[0], steps[1])
    if what == "units":
        assert not np.array_equal(drawn[0], drawn[1])  # by chance once in 2^64


def test_4_a_call_releases_as_many_times_as_it_has_steps_whatever_was_drawn():
    """What the accountant composes, rounds times steps, is what happens: every step adds its noise, empty or not."""
    adapter, steps = attach(tiny_vlm(), AdapterSettings(targets=TEXT_ONLY, rank=2)), 5
    source = Counting()
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=0.05)
    for _ in range(2):
        train_private(adapter, FakeSplit(8), TrainSettings(steps=steps), dp, np.arange(8), noise=source)
    size = sum(parameter.numel() for parameter in adapter.parameters.values())
    assert source.normals == [size] * 2 * steps
    assert source.tosses == [(0.05, 8)] * 2 * steps


class Counting(NoiseSource):
    def __init__(self):
        super().__init__()
        self.normals, self.tosses = [], []

    def normal(self, size):
        self.normals.append(size)
        return super().normal(size)

    def bernoulli(self, probability, size):
        self.tosses.append((probability, size))
        return super().bernoulli(probability, size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("units", [list(range(8)), [0, 1, 2, 3, 3, 4, 5, 6]])
def test_5_a_row_that_is_not_finite_is_left_out_and_nobody_else_is(value, units, monkeypatch):
    """One such row would make every weight NaN; dropping the whole batch would let it silence the others."""
    steps = record(monkeypatch)
    adapter, split = FAMILIES[1].adapter(), FakeSplit(8)
    split.pictures[3] = value
    groups = module.grouped(np.array(units), 8)
    finite = bool(torch.isfinite(row_gradient(adapter, split, 3)).all())
    assert finite == (value == 1e30)  # huge, yet a gradient like any other once it is clipped
    sound = [group.tolist() for group in groups if finite or 3 not in group]
    expected = clipped_by_hand(adapter, split, sound, 0.5)
    stats = train_private(adapter, split, ONE, EVERYBODY, np.array(units), noise=Script())
    assert float((steps[0] - expected).norm() / expected.norm()) < 1e-6
    assert stats.zeroed == (0 if finite else 1)
    assert np.isfinite(stats.mean_loss)
    assert all(torch.isfinite(tensor).all() for tensor in adapter.state().values())
