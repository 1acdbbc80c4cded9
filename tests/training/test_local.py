import math

import pytest
import torch

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training import TrainingError, TrainSettings, evaluate, make_optimizer, train
from fedvlm_secure.training import local as module
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, fingerprint, tiny_vlm


def fresh(**changes):
    return attach(tiny_vlm(), AdapterSettings(**({"targets": TEXT_ONLY, "rank": 4} | changes)))


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


FEW = TrainSettings(steps=3, batch_size=8, learning_rate=1e-2)


@pytest.mark.parametrize("strategy", ["plora", "lora", "local"])
def test_every_adapter_tensor_moves_and_the_base_does_not(strategy):
    adapter = fresh(strategy=strategy)
    base, before = fingerprint(adapter.peft_model), adapter.state()
    stats = train(adapter, FakeSplit(20), FEW, seed=1)
    assert fingerprint(adapter.peft_model) == base
    assert not any(torch.equal(tensor, before[name]) for name, tensor in adapter.state().items())
    assert (stats.steps, stats.examples) == (3, 24)
    assert stats.seconds > 0


def test_training_learns_and_reports_each_step():
    adapter, split, seen = fresh(), FakeSplit(16), []
    before = evaluate(adapter.peft_model, split)
    settings = TrainSettings(steps=60, batch_size=16, learning_rate=3e-2)
    stats = train(adapter, split, settings, seed=0, on_step=seen.append)
    assert evaluate(adapter.peft_model, split).loss < before.loss / 2
    assert [(info.step, info.steps) for info in seen] == [(step, 60) for step in range(1, 61)]
    assert stats.last_loss == seen[-1].loss
    assert stats.mean_loss == pytest.approx(sum(info.loss for info in seen) / 60)
    # One batch is the whole split: the first loss is what evaluation says.
    assert seen[0].loss == pytest.approx(before.loss, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_seed_decides_everything_and_global_randomness_is_left_alone(dropout):
    states = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        adapter = fresh(dropout=dropout)
        torch.manual_seed(noise)
        expected = torch.rand(3)
        torch.manual_seed(noise)
        train(adapter, FakeSplit(20), FEW, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        states.append(adapter.state())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_dropout_acts_on_the_adapter_in_training_only():
    plain, dropping = fresh(), fresh(dropout=0.5)
    for adapter in (plain, dropping):
        train(adapter, FakeSplit(20), FEW, seed=1)
    assert not same(plain.state(), dropping.state())
    again = evaluate(dropping.peft_model, FakeSplit(20)).loss_sum
    assert evaluate(dropping.peft_model, FakeSplit(20)).loss_sum == again
    base_modes = {name for name, m in dropping.peft_model.named_modules() if m.training and ".lora_" not in name}
    with module.learning(dropping):
        assert not any(m.training for name, m in dropping.peft_model.named_modules() if ".lora_" not in name)
        assert any(m.training and m.p == 0.5 for m in dropping.peft_model.modules() if isinstance(m, torch.nn.Dropout))
    assert base_modes == {n for n, m in dropping.peft_model.named_modules() if m.training and ".lora_" not in n}


def test_two_calls_repeat_exactly_from_the_same_state():
    """What a resumed run relies on: no optimizer state outlives a call."""
    adapter, split = fresh(), FakeSplit(20)
    train(adapter, split, FEW, seed=1)
    middle = adapter.state()
    train(adapter, split, FEW, seed=2)
    resumed = fresh()
    resumed.load(middle)
    train(resumed, split, FEW, seed=2)
    assert same(adapter.state(), resumed.state())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_optimizer_covers_exactly_the_trainable_parameters(kind):
    adapter = fresh()
    settings = TrainSettings(steps=1, learning_rate=1e-3, b_learning_rate_factor=4.0, optimizer=kind)
    optimizer = make_optimizer(adapter, settings)
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in adapter.peft_model.parameters() if p.requires_grad)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in adapter.parameters.items():
        assert rates[id(parameter)] == pytest.approx(4e-3 if "lora_B" in name else 1e-3)


def test_a_parameter_cut_out_of_the_model_is_noticed_and_nothing_is_kept():
    adapter = fresh()
    name = "model.text_model.layers.1.self_attn.v_proj.lora_B.weight"
    layer = adapter.peft_model.get_submodule("base_model.model.model.text_model.layers.1.self_attn.v_proj")
    # The layer now uses a copy: the loss falls, but what we hold and share never moves.
    layer.lora_B["default"].weight = torch.nn.Parameter(adapter.parameters[name].detach().clone())
    before = adapter.state()
    with pytest.raises(TrainingError, match=f"did not change .*{name}"):
        train(adapter, FakeSplit(20), FEW, seed=1)
    assert same(adapter.state(), before)


def test_one_step_moves_b_but_need_not_move_a():
    adapter = fresh()
    before = adapter.state()
    train(adapter, FakeSplit(20), TrainSettings(steps=1, batch_size=8), seed=1)
    after = adapter.state()
    assert all(torch.equal(after[name], before[name]) == ("lora_A" in name) for name in after)


def test_a_frozen_tensor_stays_and_is_checked():
    adapter = fresh()
    for name, parameter in adapter.parameters.items():
        parameter.requires_grad_("lora_B" in name)
    before = adapter.state()
    train(adapter, FakeSplit(20), FEW, seed=1)
    assert all(torch.equal(adapter.state()[name], before[name]) == ("lora_A" in name) for name in before)
    name = next(name for name in before if "lora_A" in name)
    with pytest.raises(TrainingError, match=f"frozen: {name}"):
        module.check_moved(adapter, before | {name: before[name] + 1}, steps=3)


def poisoned(row, value):
    split = FakeSplit(8)
    split.pictures[row] = value
    return split


def test_a_loss_that_is_not_finite_names_the_step_and_changes_nothing():
    adapter = fresh()
    before = adapter.state()
    # Batches of 4 from 8 rows: the bad row comes in one of the first two steps.
    with pytest.raises(TrainingError, match=r"loss of step [12] is nan"):
        train(adapter, poisoned(3, float("nan")), TrainSettings(steps=4, batch_size=4), seed=1)
    assert same(adapter.state(), before)


def test_a_gradient_that_is_not_finite_changes_nothing():
    adapter = fresh()
    before = adapter.state()
    handle = next(iter(adapter.parameters.values())).register_hook(lambda gradient: gradient + float("inf"))
    with pytest.raises(TrainingError, match="gradient of step 1"):
        train(adapter, FakeSplit(8), TrainSettings(steps=4, max_grad_norm=None), seed=1)
    handle.remove()
    assert same(adapter.state(), before)


def test_interrupting_changes_nothing():
    def interrupt(info):
        if info.step == 2:
            raise KeyboardInterrupt

    adapter = fresh()
    before = adapter.state()
    with pytest.raises(KeyboardInterrupt):
        train(adapter, FakeSplit(8), FEW, seed=1, on_step=interrupt)
    assert same(adapter.state(), before)


def test_no_rows_is_refused():
    with pytest.raises(MisuseError, match="no rows"):
        train(fresh(), FakeSplit(0), FEW, seed=1)


def distance(adapter, before):
    return math.sqrt(sum(float(((adapter.state()[n] - before[n]) ** 2).sum()) for n in before if "lora_B" in n))


def test_the_proximal_term_holds_the_shared_part_near_its_start():
    distances = []
    for strength in (0.0, 100.0):
        adapter = fresh()
        before = adapter.state()
        train(adapter, FakeSplit(20), TrainSettings(steps=20, learning_rate=1e-2, proximal=strength), seed=1)
        distances.append(distance(adapter, before))
    assert distances[1] < distances[0] / 3
    # `local` shares nothing, so nothing is held.
    free, held = fresh(strategy="local"), fresh(strategy="local")
    train(free, FakeSplit(20), FEW, seed=1)
    train(held, FakeSplit(20), TrainSettings(steps=3, batch_size=8, learning_rate=1e-2, proximal=100.0), seed=1)
    assert same(free.state(), held.state())


def test_gradients_are_scaled_down_to_the_maximal_norm(monkeypatch):
    norms = []

    class Recorder(torch.optim.SGD):
        def step(self):
            flat = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
            norms.append(float(flat.norm()))
            super().step()

    monkeypatch.setattr(
        module, "make_optimizer", lambda adapter, settings: Recorder(adapter.parameters.values(), lr=1.0)
    )
    train(fresh(), FakeSplit(20), TrainSettings(steps=2, max_grad_norm=0.01), seed=1)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    train(fresh(), FakeSplit(20), TrainSettings(steps=2, max_grad_norm=None), seed=1)
    assert min(norms[2:]) > 0.02


def test_the_schedule_reaches_the_optimizer(monkeypatch):
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self):
            rates.append([group["lr"] for group in self.param_groups])
            super().step()

    def two_rates(adapter, settings):
        parameters = list(adapter.parameters.values())
        return Recorder([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 2.0}])

    monkeypatch.setattr(module, "make_optimizer", two_rates)
    train(fresh(), FakeSplit(20), TrainSettings(steps=4, schedule="linear"), seed=1)
    assert rates == [[1.0, 2.0], [0.75, 1.5], [0.5, 1.0], [0.25, 0.5]]


def test_sgd_steps_by_the_gradient_and_nine_tenths_of_the_step_before():
    adapter = fresh()
    optimizer = make_optimizer(adapter, TrainSettings(steps=2, learning_rate=0.5, optimizer="sgd"))
    before = adapter.state()
    for _ in range(2):
        for parameter in adapter.parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for name, parameter in adapter.parameters.items():
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, 0.5 * (1 + 1.9)))


def test_weight_decay_shrinks_only_when_asked():
    optimizer = make_optimizer(fresh(), TrainSettings(steps=1, weight_decay=0.25))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}
    optimizer = make_optimizer(fresh(), TrainSettings(steps=1))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


def test_batches_visit_every_row_once_an_epoch():
    stream = module.batches(10, 3, seed=4)
    epochs = [[next(stream) for _ in range(3)] for _ in range(20)]
    for epoch in epochs:
        rows = [row for batch in epoch for row in batch]
        assert len(set(rows)) == len(rows) == 9
    # The row left out is another one each time, and the order too.
    assert len({frozenset(range(10)) - {row for batch in epoch for row in batch} for epoch in epochs}) > 5
    assert len(next(module.batches(2, 3, seed=4))) == 2


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.854, 0.5, 0.146])],
)
def test_schedules(schedule, rates):
    settings = TrainSettings(steps=4, schedule=schedule)
    assert [settings.scale(step) for step in range(4)] == pytest.approx(rates, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"b_learning_rate_factor": -1.0},
        {"max_grad_norm": 0.0},
        {"weight_decay": -0.1},
        {"proximal": float("inf")},
        {"schedule": "cosin"},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(MisuseError, match=f"training {next(iter(changes))}"):
        TrainSettings(**({"steps": 5} | changes))
