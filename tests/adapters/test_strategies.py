import pytest
import torch
from peft import PeftModel

from fedvlm_secure.adapters import AdapterSettings, attach, load_peft, save_peft
from fedvlm_secure.adapters.core import principal_factors
from fedvlm_secure.adapters.strategies import STRATEGIES
from fedvlm_secure.training import TrainSettings, train
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, tiny_vlm

A, B, R = "lora_A", "lora_B", "lora_R"

# Strategy: shared in rounds 1 and 2, trained in rounds 1 and 2.
EXPECTED = {
    "plora": ([{B}, {B}], [{A, B}, {A, B}]),
    "lora": ([{A, B}, {A, B}], [{A, B}, {A, B}]),
    "local": ([set(), set()], [{A, B}, {A, B}]),
    "fedsa": ([{A}, {A}], [{A, B}, {A, B}]),
    "ffa": ([{B}, {B}], [{B}, {B}]),
    "rolora": ([{B}, {A}], [{B}, {A}]),
    "fedsb": ([{R}, {R}], [{R}, {R}]),
    "ditto": ([{A, B}, {A, B}], [{A, B}, {A, B}]),
}


def attached(strategy, **others):
    return attach(tiny_vlm(), AdapterSettings(targets=TEXT_ONLY, rank=4, strategy=strategy, **others))


def factors(names):
    return {name.split(".")[-2] for name in names}


def whole(adapter, names):
    """Whether a set of names holds all tensors of its factors."""
    return {name for name in adapter.names if name.split(".")[-2] in factors(names)} == set(names)


def test_every_strategy_is_expected():
    assert EXPECTED.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("strategy", EXPECTED)
def test_each_strategy_shares_exactly_its_factors_in_turn(strategy):
    adapter = attached(strategy)
    shared, _ = EXPECTED[strategy]
    for round_index in range(1, 6):
        layout = adapter.layout(round_index)
        assert factors(layout.names) == shared[(round_index - 1) % 2]
        assert whole(adapter, layout.names)
        assert list(layout.names) == sorted(layout.names)
    assert factors(adapter.common_layout().names) == shared[0] | shared[1]


@pytest.mark.parametrize("strategy", EXPECTED)
def test_after_a_warm_up_the_turns_begin_anew_and_own_factors_are_personal(strategy):
    cold, adapter = attached(strategy), attached(strategy, warm_up=3)
    for round_index in (1, 2, 3):
        assert factors(adapter.layout(round_index).names) == {A, B} == factors(adapter.trained(round_index))
    for round_index in (1, 2, 3):
        assert adapter.layout(3 + round_index) == cold.layout(round_index)
        assert adapter.trained(3 + round_index).keys() == cold.trained(round_index).keys()
    assert factors(adapter.common_layout().names) == factors(cold.common_layout().names) | {A, B}

    def personal(adapter, round_index):
        return {name for name in adapter.names if adapter.strategy.personal(name, round_index)}

    if strategy == "ditto":
        assert personal(adapter, 0) == personal(adapter, 4) == set(adapter.names)
    else:
        assert not factors(personal(adapter, 3)) & {A, B}
        assert personal(adapter, 4) == personal(cold, 1) == personal(cold, 0)


@pytest.mark.parametrize("strategy", EXPECTED)
@pytest.mark.parametrize("round_index", [1, 2])
def test_training_moves_exactly_what_the_round_trains(strategy, round_index):
    adapter = attached(strategy)
    # Off the start, where B is zero and A's gradient with it.
    adapter.load({name: tensor + 0.01 for name, tensor in adapter.state().items()})
    before = adapter.state()
    train(adapter, FakeSplit(12), TrainSettings(steps=2, batch_size=6), seed=1, round_index=round_index)
    moved = {name for name, tensor in adapter.state().items() if not torch.equal(tensor, before[name])}
    assert factors(moved) == EXPECTED[strategy][1][round_index - 1]
    assert whole(adapter, moved)
    assert all(parameter.requires_grad for parameter in adapter.parameters.values())


def logits(model):
    with torch.no_grad():
        return model(**{k: v for k, v in FakeSplit(3).batch(range(3)).items() if k != "labels"}).logits


@pytest.mark.parametrize("strategy", ["fedsb", "ditto"])
def test_an_exported_adapter_is_plain_lora_with_the_same_logits(strategy, tmp_path):
    adapter = attached(strategy)
    base = logits(adapter.peft_model)
    train(adapter, FakeSplit(12), TrainSettings(steps=3, batch_size=6, learning_rate=0.05), seed=1)
    trained = logits(adapter.peft_model)
    assert (trained - base).abs().max() > 1e-3
    save_peft(adapter.exported(), adapter.settings, tmp_path, base_model="tiny")
    reloaded = logits(PeftModel.from_pretrained(tiny_vlm(), tmp_path).eval())
    assert torch.allclose(reloaded, trained, atol=1e-5)
    # And this project's own loader puts it on a model again.
    saved = load_peft(tmp_path)
    again = attach(tiny_vlm(), saved.settings)
    again.load(saved.state)
    assert torch.allclose(logits(again.peft_model), trained, atol=1e-5)


def test_fedsb_begins_as_the_base_model_and_shares_rank_squared_numbers_a_layer():
    adapter = attached("fedsb")
    assert torch.equal(logits(adapter.peft_model), logits(tiny_vlm()))
    assert adapter.layout(1).size == len(adapter.modules) * 4 * 4


def test_principal_factors_are_the_best_approximation_of_the_weight():
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    found = principal_factors(weight, 3)
    first, second = found["lora_A"].double(), found["lora_B"].double()
    assert torch.allclose(first @ first.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(second.T @ second, torch.eye(3, dtype=torch.float64), atol=1e-6)
    # Between them the weight is diagonal: its three largest singular values.
    core = second.T @ weight.double() @ first.T
    assert torch.allclose(core, torch.diag(torch.linalg.svdvals(weight.double())[:3]), atol=1e-5)


def test_a_rank_above_the_weights_own_is_filled_with_zeros():
    found = principal_factors(torch.eye(3), 5)
    assert found["lora_A"].shape == (5, 3)
    assert found["lora_B"].shape == (3, 5)
    assert not found["lora_A"][3:].any()
    assert not found["lora_B"][:, 3:].any()


def test_a_copy_is_drawn_towards_what_is_shared():
    shared = attached("ditto").state()

    def distance(strength):
        adapter = attached("ditto")
        plan = TrainSettings(steps=20, batch_size=6, learning_rate=1e-2, proximal=strength)
        train(adapter, FakeSplit(12), plan, seed=1, towards={name: tensor + 1 for name, tensor in shared.items()})
        return sum(((tensor - shared[name] - 1) ** 2).sum().item() for name, tensor in adapter.state().items())

    assert distance(10.0) < distance(0.0)
