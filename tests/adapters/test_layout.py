import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedvlm_secure.adapters import AdapterSettings, SharedLayout, attach
from fedvlm_secure.errors import MisuseError
from tests.adapters.tiny_vlm import TEXT_ONLY, tiny_vlm


def layout_of(strategy):
    return attach(tiny_vlm(), AdapterSettings(targets=TEXT_ONLY, rank=4, strategy=strategy))


@pytest.mark.parametrize(
    ("strategy", "factors"), [("plora", {"lora_B"}), ("lora", {"lora_A", "lora_B"}), ("local", set())]
)
def test_each_strategy_shares_exactly_its_factors(strategy, factors):
    adapter = layout_of(strategy)
    for round_index in (0, 1, 7):
        layout = adapter.layout(round_index)
        assert layout.names == tuple(name for name in adapter.names if name.split(".")[-2] in factors)
        assert layout.size == sum(adapter.parameters[name].numel() for name in layout.names)


def test_local_shares_nothing():
    adapter = layout_of("local")
    layout = adapter.layout(0)
    assert layout.size == 0
    assert layout.flatten(adapter.state()).shape == (0,)
    assert layout.unflatten(np.zeros(0, np.float32)) == {}


def test_the_personal_part_stays_when_the_shared_part_is_replaced():
    adapter = layout_of("plora")
    layout, mine = adapter.layout(0), adapter.state()
    vector = np.arange(layout.size, dtype=np.float32)
    adapter.load(mine | layout.unflatten(vector))
    after = adapter.state()
    assert np.array_equal(layout.flatten(after), vector)
    assert all(torch.equal(after[name], mine[name]) for name in adapter.names if "lora_A" in name)


shapes = st.lists(npst.array_shapes(min_dims=1, max_dims=3, max_side=5), max_size=6)


@given(data=st.data(), shapes=shapes)
@settings(max_examples=60, deadline=None)
def test_vector_and_state_are_inverse_bit_for_bit(data, shapes):
    layout = SharedLayout(tuple((f"t{i}", shape) for i, shape in enumerate(shapes)))
    assert layout.size == sum(math.prod(shape) for shape in shapes)
    # Any bits: negative zero, denormals and NaN payloads included.
    bits = data.draw(npst.arrays(np.uint32, layout.size))
    vector = bits.view(np.float32)
    state = layout.unflatten(vector)
    assert [tuple(state[name].shape) for name in layout.names] == shapes
    assert np.array_equal(layout.flatten(state).view(np.uint32), bits)


def test_the_order_is_row_major_one_tensor_after_the_other():
    layout = SharedLayout((("a", (2, 2)), ("b", (3,))))
    state = layout.unflatten(np.arange(7, dtype=np.float32))
    assert state["a"].tolist() == [[0, 1], [2, 3]]
    assert state["b"].tolist() == [4, 5, 6]


def test_vector_and_state_share_no_memory():
    layout = SharedLayout((("a", (3,)),))
    vector = np.zeros(3, np.float32)
    state = layout.unflatten(vector)
    state["a"] += 1
    flat = layout.flatten(state)
    state["a"] += 1
    assert (vector.tolist(), flat.tolist()) == ([0, 0, 0], [1, 1, 1])


def test_digest_is_known_and_binds_names_shapes_and_order():
    layout = SharedLayout((("a", (2, 3)), ("b", (4,))))
    described = b'fedvlm-secure shared layout 1\n[["a",[2,3]],["b",[4]]]'
    assert layout.digest() == hashlib.sha256(described).digest()
    others = [
        SharedLayout((("b", (4,)), ("a", (2, 3)))),
        SharedLayout((("a", (3, 2)), ("b", (4,)))),
        SharedLayout((("a", (2, 3)), ("c", (4,)))),
        SharedLayout((("a", (2, 3)),)),
        SharedLayout(()),
    ]
    assert len({layout.digest(), *(other.digest() for other in others)}) == 6


@pytest.mark.parametrize(
    "state",
    [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(2, 2, dtype=torch.float64)}, {"a": torch.zeros(2, 2).half()}],
    ids=["missing", "shape", "float64", "float16"],
)
def test_flatten_refuses_a_state_of_another_layout(state):
    with pytest.raises(MisuseError, match="tensor a "):
        SharedLayout((("a", (2, 2)),)).flatten(state)


@pytest.mark.parametrize("vector", [np.zeros(3, np.float32), np.zeros(4), np.zeros((2, 2), np.float32)])
def test_unflatten_refuses_another_vector(vector):
    with pytest.raises(MisuseError, match="float32 of shape"):
        SharedLayout((("a", (2, 2)),)).unflatten(vector)
