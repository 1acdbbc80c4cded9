import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models import load
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.training import PrivateSettings, TrainingError, TrainSettings, evaluate, train_private
from fedvlm_secure.training import private as module
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, fingerprint, tiny_vlm
from tests.training.dp_reference import FAMILIES, Script, clipped_by_hand, middle_norm, record

UNITS = np.array([5, 5, 1, 3, 3, 3, 2, 0])
ROWS_OF_UNITS = [[7], [2], [6], [3, 4, 5], [0, 1]]  # ascending numbers of units: 0, 1, 2, 3, 5
ONE = TrainSettings(steps=1, batch_size=4, learning_rate=1e-2)
DP = PrivateSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=0.5)


def fresh(**changes):
    return attach(tiny_vlm(), AdapterSettings(**({"targets": TEXT_ONLY, "rank": 4} | changes)))


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_step_is_the_sum_clipped_by_hand(family, monkeypatch):
    steps = record(monkeypatch)
    adapter, split = family.adapter(), family.split()
    limit = middle_norm(adapter, split, ROWS_OF_UNITS[1:])
    expected = clipped_by_hand(adapter, split, ROWS_OF_UNITS[1:], limit)
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=limit, sample_rate=0.5, nominal_batch=2.0)
    stats = train_private(adapter, split, ONE, dp, UNITS, noise=Script([False, True, True, True, True]))
    # Divided by what is public, whoever came and however many units there are.
    assert float((2.0 * steps[0] - expected).norm() / expected.norm()) < 1e-6
    assert (stats.units, stats.examples, stats.zeroed) == (4, 7, 0)
    assert stats.clipped == 2


def test_a_step_on_the_embedded_model_is_the_sum_clipped_by_hand(monkeypatch):
    steps = record(monkeypatch)
    loaded = load("embedded", device="cpu")
    adapter = attach(loaded.model, AdapterSettings(targets=loaded.lora_targets, rank=2))
    generator = torch.Generator().manual_seed(0)
    adapter.load({n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in adapter.state().items()})
    loaded.model.double()
    split = EmbeddedRows()
    limit = middle_norm(adapter, split, [[0, 3], [1], [2]])
    expected = clipped_by_hand(adapter, split, [[0, 3], [1], [2]], limit)
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=limit, sample_rate=1.0)
    train_private(adapter, split, ONE, dp, np.array([0, 1, 2, 0]), noise=Script())
    assert float((steps[0] - expected).norm() / expected.norm()) < 1e-6


class EmbeddedRows(FakeSplit):
    """Pictures of the embedded model's size, 16 tokens each; its image token is number 3, its end of turn 1."""

    def __init__(self):
        super().__init__(4)
        self.pictures = torch.randn(4, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        for prompt, answer in zip(self.prompts, self.answers, strict=True):
            prompt[1:5] = [3] * 16
            answer[-1] = 1


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_how_many_rows_are_in_memory_changes_nothing(batch_size, monkeypatch):
    steps = record(monkeypatch)
    for size in (4, batch_size):
        adapter = FAMILIES[1].adapter()
        train_private(adapter, FakeSplit(8), dataclasses.replace(ONE, batch_size=size), DP, UNITS, noise=Script())
    assert torch.allclose(steps[0], steps[1], atol=1e-6, rtol=0)


def test_a_unit_is_never_split_and_memory_is_bounded(monkeypatch):
    seen = []
    split = FakeSplit(8)
    whole = split.batch
    monkeypatch.setattr(split, "batch", lambda rows: seen.append(list(rows)) or whole(rows))
    monkeypatch.setattr(module, "refuse_coupled", lambda adapter, split: None)
    train_private(fresh(), split, dataclasses.replace(ONE, batch_size=2), DP, UNITS, noise=Script())
    assert seen == [[7, 2], [6], [3, 4, 5], [0, 1]]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(units=st.lists(st.integers(0, 4), min_size=8, max_size=8), limit=st.floats(0.1, 100), data=st.data())
def test_without_one_unit_the_sum_moves_by_the_limit_at_most(units, limit, data):
    adapter, split = FAMILIES[0].adapter(), FakeSplit(8)
    # Pictures far outside of what the model knows give gradients of every size.
    split.pictures = split.pictures * torch.logspace(-2, 4, 8)[:, None, None, None, None]
    groups = module.grouped(np.array(units), 8)
    left_out = data.draw(st.integers(0, len(groups) - 1))
    with module.per_sample_gradients(adapter.peft_model), module.learning(adapter):
        whole = module.clipped_sum(adapter, split, groups, limit, 3).total
        rest = [group for place, group in enumerate(groups) if place != left_out]
        without = module.clipped_sum(adapter, split, rest, limit, 3).total
    assert float((whole - without).norm()) <= limit * (1 + 1e-5)


def test_rows_of_one_unit_count_once_however_many_they_are(monkeypatch):
    """One unit of eight rows moves the sum by the limit, not by eight times that."""
    steps = record(monkeypatch)
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=0.01, sample_rate=1.0)
    train_private(fresh(), FakeSplit(8), ONE, dp, np.zeros(8, np.int64), noise=Script())
    train_private(fresh(), FakeSplit(8), ONE, dp, np.arange(8), noise=Script())
    assert float(steps[0].norm()) == pytest.approx(0.01, rel=1e-5)
    assert 0.01 < float(steps[1].norm()) <= 0.08


def test_noise_reaches_every_trainable_tensor_with_the_stated_deviation(monkeypatch):
    steps = record(monkeypatch)
    adapter = fresh()
    dp = PrivateSettings(noise_multiplier=3.0, max_grad_norm=0.5, sample_rate=0.25, nominal_batch=2.0)
    # Nobody is drawn: the step is noise alone, 3 · 0.5 / 2 times a standard normal.
    train_private(adapter, FakeSplit(8), ONE, dp, np.arange(8), noise=Script([False] * 8, noise=1.0))
    assert len(steps[0]) == sum(parameter.numel() for parameter in adapter.parameters.values())
    assert torch.allclose(steps[0], torch.full_like(steps[0], 0.75))


def test_real_noise_has_the_stated_deviation(monkeypatch):
    steps = record(monkeypatch)
    adapter, dp = fresh(rank=8), PrivateSettings(noise_multiplier=3.0, max_grad_norm=0.5, sample_rate=1e-18)
    train_private(adapter, FakeSplit(8), dataclasses.replace(ONE, steps=3), dp, np.arange(8), noise=NoiseSource())
    drawn = torch.cat(steps) / 1.5
    count = len(drawn)
    # Six deviations of mean and variance each: false alarms below 1e-8.
    assert abs(float(drawn.mean())) < 6 / math.sqrt(count)
    assert abs(float(drawn.var()) - 1) < 6 * math.sqrt(2 / count)
    assert not torch.equal(steps[0], steps[1])


def test_an_empty_batch_is_a_step_of_noise_and_counts():
    adapter, seen = fresh(), []
    before = adapter.state()
    stats = train_private(
        adapter,
        FakeSplit(8),
        dataclasses.replace(ONE, steps=3),
        DP,
        UNITS,
        noise=Script([False] * 5, [False] * 5, [False] * 5, noise=1.0),
        on_step=seen.append,
    )
    assert (stats.steps, stats.empty, stats.units, stats.examples) == (3, 3, 0, 0)
    assert [info.step for info in seen] == [1, 2, 3]
    assert math.isnan(seen[0].loss)
    assert math.isnan(stats.mean_loss)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in adapter.state().items())


def test_units_are_tossed_for_anew_in_every_step_and_rows_follow_their_unit(monkeypatch):
    script = Script([True, False, False, False, False], [False, False, False, True, True])
    monkeypatch.setattr(module, "refuse_coupled", lambda adapter, split: None)
    split, seen = FakeSplit(8), []
    whole = split.batch
    monkeypatch.setattr(split, "batch", lambda rows: seen.append(list(rows)) or whole(rows))
    train_private(fresh(), split, TrainSettings(steps=2), DP, UNITS, noise=script)
    assert script.asked == [(0.5, 5)] * 2
    assert seen == [[7], [3, 4, 5, 0, 1]]


def test_real_sampling_draws_each_unit_at_the_stated_rate():
    steps, units, rate = 40, 60, 0.3
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=rate)
    stats = train_private(fresh(), FakeSplit(60), TrainSettings(steps=steps), dp, np.arange(units), noise=NoiseSource())
    draws = steps * units
    assert abs(stats.units - rate * draws) < 6 * math.sqrt(draws * rate * (1 - rate))


def test_every_tensor_moves_in_the_first_step_and_the_base_does_not():
    adapter = fresh()
    base, before = fingerprint(adapter.peft_model), adapter.state()
    train_private(adapter, FakeSplit(8), ONE, DP, UNITS, noise=NoiseSource())
    assert fingerprint(adapter.peft_model) == base
    assert not any(torch.equal(tensor, before[name]) for name, tensor in adapter.state().items())


def test_training_learns_under_little_noise():
    adapter, split = fresh(), FakeSplit(16)
    before = evaluate(adapter.peft_model, split).loss
    dp = PrivateSettings(noise_multiplier=0.05, max_grad_norm=1.0, sample_rate=0.9)
    plan = TrainSettings(steps=40, batch_size=16, learning_rate=3e-2)
    train_private(adapter, split, plan, dp, np.arange(16), noise=NoiseSource())
    assert evaluate(adapter.peft_model, split).loss < before * 0.7


def test_a_frozen_tensor_gets_neither_gradient_nor_noise():
    adapter = fresh()
    for name, parameter in adapter.parameters.items():
        parameter.requires_grad_("lora_B" in name)
    before = adapter.state()
    train_private(adapter, FakeSplit(8), ONE, DP, UNITS, noise=NoiseSource())
    assert all(torch.equal(adapter.state()[name], before[name]) == ("lora_A" in name) for name in before)


def test_a_tensor_that_the_optimizer_moves_besides_is_refused(monkeypatch):
    adapter = fresh()
    stray = torch.nn.Parameter(torch.zeros(3))
    monkeypatch.setattr(
        module.local, "make_optimizer", lambda adapter, _: torch.optim.SGD([*adapter.parameters.values(), stray], lr=1)
    )
    with pytest.raises(TrainingError, match="escape"):
        train_private(adapter, FakeSplit(8), ONE, DP, UNITS, noise=Script())


def test_a_tensor_that_no_longer_is_in_the_model_is_named():
    adapter = fresh()
    name = "model.text_model.layers.1.self_attn.v_proj.lora_B.weight"
    layer = adapter.peft_model.get_submodule("base_model.model.model.text_model.layers.1.self_attn.v_proj")
    layer.lora_B["default"].weight = torch.nn.Parameter(adapter.parameters[name].detach().clone())
    before = adapter.state()
    with pytest.raises(TrainingError, match="escape"):
        train_private(adapter, FakeSplit(8), ONE, DP, UNITS, noise=Script())
    layer.lora_B["default"].weight.requires_grad_(False)
    with pytest.raises(TrainingError, match="escape"):
        train_private(adapter, FakeSplit(8), ONE, DP, UNITS, noise=Script())
    assert same(adapter.state(), before)


def test_the_proximal_term_and_the_schedule_are_what_they_are_without_noise(monkeypatch):
    steps = record(monkeypatch)
    adapter = fresh()
    shared = adapter.layout(0).names
    moved = {}

    def shift(info):
        if info.step == 1:
            moved.update(adapter.state())

    before = adapter.state()
    plan = TrainSettings(steps=2, proximal=2.0, schedule="linear")
    nobody = Script([False] * 5, [False] * 5, noise=1.0)
    train_private(adapter, FakeSplit(8), plan, DP, UNITS, noise=nobody, on_step=shift)
    noise = steps[0][0]
    pull = [2.0 * (moved[n] - before[n]) if n in shared else torch.zeros_like(before[n]) for n in adapter.names]
    assert torch.allclose(steps[1] - noise, torch.cat([p.flatten() for p in pull]).double(), atol=1e-6)
    first, second = moved, adapter.state()
    own = next(name for name in adapter.names if name not in shared)
    # The same gradient, noise alone, at half the rate.
    assert torch.allclose(second[own] - first[own], (first[own] - before[own]) / 2, rtol=1e-2)


@pytest.mark.parametrize("when", ["step", "noise"])
def test_interrupting_changes_nothing_and_leaves_no_hook(when):
    adapter, split = fresh(), FakeSplit(8)
    before = adapter.state()

    def interrupt(*_):
        raise KeyboardInterrupt

    noise = Script(noise=1.0)
    if when == "noise":
        noise.normal = interrupt
    with pytest.raises(KeyboardInterrupt):
        train_private(adapter, split, ONE, DP, UNITS, noise=noise, on_step=interrupt)
    assert same(adapter.state(), before)
    for module_ in adapter.peft_model.modules():
        assert len(module_._forward_hooks) == len(module_._backward_hooks) == 0
        assert not hasattr(module_, "activations")
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in adapter.peft_model.parameters())
    train_private(adapter, split, ONE, DP, UNITS, noise=NoiseSource())


def test_weights_that_run_away_are_refused():
    adapter = fresh()
    before = adapter.state()
    with pytest.raises(TrainingError, match="learning-rate"):
        train_private(
            adapter,
            FakeSplit(8),
            TrainSettings(steps=3, learning_rate=1e38, weight_decay=1e10),
            DP,
            UNITS,
            noise=NoiseSource(),
        )
    assert same(adapter.state(), before)


def test_dropout_differs_from_call_to_call_and_global_randomness_is_left_alone(monkeypatch):
    steps = record(monkeypatch)
    for _ in range(2):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        adapter = fresh(dropout=0.5)
        train_private(adapter, FakeSplit(8), ONE, DP, UNITS, noise=Script())
        assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(steps[0], steps[1])


@pytest.mark.parametrize(
    "units", [np.arange(7), np.zeros((8, 1), np.int64), np.arange(8) / 2, np.array(["a"] * 8)], ids=str
)
def test_units_that_do_not_fit_the_rows_are_refused(units):
    with pytest.raises(MisuseError, match="8 rows"):
        train_private(fresh(), FakeSplit(8), ONE, DP, units, noise=Script())


def test_no_rows_is_refused():
    with pytest.raises(MisuseError, match="no rows"):
        train_private(fresh(), FakeSplit(0), ONE, DP, np.zeros(0, np.int64), noise=Script())


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"max_grad_norm": float("inf")},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
    ],
)
def test_settings_that_mean_no_privacy_are_refused(changes):
    with pytest.raises(MisuseError, match=next(iter(changes))):
        dataclasses.replace(DP, **changes)


def test_how_much_louder_the_noise_is():
    dp = PrivateSettings(noise_multiplier=2.0, max_grad_norm=7.0, sample_rate=0.1)
    assert dp.noise_to_signal(trainable=10_000, units=1_000) == pytest.approx(2.0 * 100 / 100)
