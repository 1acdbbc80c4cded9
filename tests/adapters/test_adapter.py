import pytest
import torch

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.errors import MisuseError
from tests.adapters.tiny_vlm import TEXT_ONLY, fingerprint, tiny_vlm


def plora(**changes):
    return AdapterSettings(**({"targets": TEXT_ONLY, "rank": 4} | changes))


@pytest.fixture
def adapter():
    return attach(tiny_vlm(), plora())


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_every_hospital_and_newcomer_starts_alike_whatever_the_global_seed():
    torch.manual_seed(1)
    first = attach(tiny_vlm(), plora(seed=7))
    started = first.state()
    torch.manual_seed(2)
    second = attach(tiny_vlm(seed=5), plora(seed=7))
    assert equal(started, second.state())
    # A newcomer joins after others have trained.
    first.load({name: torch.ones_like(tensor) for name, tensor in started.items()})
    assert equal(first.initial_state(), started)


def test_a0_depends_on_the_seed_and_differs_between_modules(adapter):
    other = attach(tiny_vlm(), plora(seed=1)).state()
    state = adapter.state()
    a_names = [name for name in adapter.names if "lora_A" in name]
    assert all(not torch.equal(state[name], other[name]) for name in a_names)
    assert len({state[name].numpy().tobytes() for name in a_names}) == len(a_names)


def test_a0_is_the_same_on_every_machine(adapter):
    """Known answer: a change here breaks every consortium that is running."""
    drawn = adapter.initial_state()["model.text_model.layers.0.self_attn.q_proj.lora_A.weight"][0, :3]
    assert [value.hex() for value in drawn.tolist()] == [
        "-0x1.8717020000000p-4",
        "0x1.19e0880000000p-4",
        "0x1.d1e24a0000000p-6",
    ]


def test_a0_is_spread_like_kaiming_and_b0_is_zero(adapter):
    for name, tensor in adapter.initial_state().items():
        bound = tensor.shape[1] ** -0.5
        if "lora_A" in name:
            assert 0.8 * bound < tensor.abs().max() <= bound
            assert abs(tensor.mean()) < 0.2 * bound
        else:
            assert not tensor.any()


def test_attaching_leaves_global_randomness_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = tiny_vlm()
    torch.manual_seed(3)
    attach(model, plora())
    assert torch.equal(torch.rand(4), expected)


def test_attaching_changes_no_answer_and_detaching_gives_the_base_back():
    model = tiny_vlm()
    base, names = fingerprint(model), list(model.state_dict())
    ids = torch.tensor([[2, 9, 10, 11]])
    before = model(input_ids=ids).logits
    adapter = attach(model, plora())
    assert torch.equal(adapter.peft_model(input_ids=ids).logits, before)
    bare = adapter.detach()
    assert (fingerprint(bare), list(bare.state_dict())) == (base, names)
    attach(bare, plora(rank=2))


def test_only_the_adapter_is_trainable(adapter):
    trainable = {id(p) for p in adapter.peft_model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters.values()}


def test_names_are_canonical_and_sorted(adapter):
    assert list(adapter.names) == sorted(adapter.names)
    assert adapter.names[0] == "model.text_model.layers.0.mlp.down_proj.lora_A.weight"
    assert adapter.modules[0] == "model.text_model.layers.0.mlp.down_proj"


def test_text_targets_match_no_vision_module(adapter):
    assert len(adapter.modules) == 6
    assert not any("vision" in module for module in adapter.modules)


def test_vision_modules_are_hit_only_where_the_pattern_names_them():
    # Short names alone hit the vision tower too: why targets is a whole regex.
    model = tiny_vlm()
    with pytest.raises(MisuseError, match=r"vision_model\.encoder\.layers\.0\.self_attn\.q_proj.*outside"):
        attach(model, plora(targets=r".*\.(q|v|down)_proj"))
    with pytest.raises(MisuseError, match="connector"):
        attach(model, plora(targets=r".*(text_model|vision_model).*\.q_proj|.*\.modality_projection\.proj"))
    asked = attach(model, plora(targets=r".*(text_model|vision_model).*\.q_proj"))
    assert any("vision" in module for module in asked.modules)


def test_tied_modules_are_refused_by_name():
    model = tiny_vlm()
    model.lm_head.weight = model.get_input_embeddings().weight
    with pytest.raises(MisuseError, match="lm_head, which share"):
        attach(model, plora(targets=r".*text_model.*\.q_proj|lm_head"))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (r".*\.(query|value)", "match no module"),
        (r"q_proj", "match no module"),
        (r"all-linear", "match no module"),
        (r".*embed_tokens", "Embedding"),
        (r".*self_attn", "Attention"),
    ],
)
def test_targets_that_miss_are_refused(targets, said):
    model = tiny_vlm()
    names = list(model.state_dict())
    with pytest.raises(MisuseError, match=said):
        attach(model, plora(targets=targets))
    assert list(model.state_dict()) == names


def test_a_second_adapter_on_the_same_model_is_refused():
    model = tiny_vlm()
    attach(model, plora())
    with pytest.raises(MisuseError, match="already"):
        attach(model, plora())


def test_state_is_a_copy_and_loads_back(adapter):
    saved = adapter.state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    adapter.load({name: torch.randn_like(tensor) for name, tensor in saved.items()})
    assert equal(saved, kept)
    adapter.load(saved)
    assert equal(adapter.state(), kept)


def one(state, change):
    name = sorted(state)[-1]
    return state | {name: change(state[name])}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {name: state[name] for name in sorted(state)[:-1]},
        lambda state: state | {"model.elsewhere.lora_A.weight": torch.zeros(1)},
        lambda state: one(state, lambda tensor: tensor.T),
        lambda state: one(state, torch.Tensor.double),
        lambda state: one(state, lambda tensor: tensor * float("nan")),
        lambda state: one(state, lambda tensor: tensor + float("inf")),
    ],
    ids=["missing", "unknown", "shape", "dtype", "nan", "infinite"],
)
def test_bad_state_is_refused_and_changes_nothing(adapter, spoil):
    before = adapter.state()
    with pytest.raises(MisuseError):
        adapter.load(spoil({name: tensor + 1 for name, tensor in before.items()}))
    assert equal(adapter.state(), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"strategy": "plroa"},
        {"seed": -1},
        {"targets": "(unclosed"},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(MisuseError):
        plora(**changes)
