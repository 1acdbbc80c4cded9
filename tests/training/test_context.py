"""Rows that were run up to the last layer once give the same answers, losses and gradients as rows that were not."""

import numpy as np
import pytest
import torch

from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.training import TrainSettings, evaluate, private, train
from fedvlm_secure.training.answers import answer_logits, sample_losses
from fedvlm_secure.training.context import ContextSplit
from fedvlm_secure.training.features import FeatureSplit, precompute
from fedvlm_secure.training.local import learning
from fedvlm_secure.training.unit_gradients import Outer
from tests.adapters.tiny_vlm import FakeSplit, tiny_vlm
from tests.training.dp_reference import clipped_by_hand, middle_norm

LAST = r".*text_model\.layers\.1\.(?:.*\.)?(?:q|o|gate|up|down)_proj"


def adapted(targets: str = LAST, rank: int = 2) -> Adapter:
    adapter = attach(tiny_vlm(), AdapterSettings(targets=targets, rank=rank))
    generator = torch.Generator().manual_seed(3)
    adapter.load({name: torch.randn(t.shape, generator=generator) * 0.3 for name, t in adapter.state().items()})
    return adapter


def test_answers_and_gradients_are_those_of_the_whole_model() -> None:
    adapter, split = adapted(), FakeSplit(23)
    cached = precompute(adapter.peft_model, split, batch_size=5)
    assert isinstance(cached, ContextSplit)
    assert len(cached) == len(split)
    gradients = []
    for rows in (split, cached):
        logits, targets = answer_logits(adapter.peft_model, rows.batch([4, 22, 0, 13]))
        sample_losses(logits, targets).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in adapter.parameters.items() if p.grad is not None})
        adapter.peft_model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys() == adapter.parameters.keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
    assert evaluate(adapter.peft_model, split).correct == evaluate(adapter.peft_model, cached).correct


def test_training_on_either_moves_alike() -> None:
    adapter, split = adapted(), FakeSplit(16)
    before, ends = adapter.state(), []
    for rows in (split, precompute(adapter.peft_model, split)):
        adapter.load(before)
        train(adapter, rows, TrainSettings(steps=4, batch_size=8), seed=5)
        ends.append(adapter.state())
    for name in before:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-5)


def test_a_high_rank_is_clipped_without_writing_its_gradients_out(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, split, units = adapted(rank=32), FakeSplit(6), [[0, 3, 4], [1], [2, 5]]
    limit = middle_norm(adapter, split, units)
    cached = precompute(adapter.peft_model, split)
    with private.per_sample_gradients(adapter.peft_model), learning(adapter):
        monkeypatch.setattr(Outer, "dense", lambda _: pytest.fail("written out"))
        total = private.clipped_sum(adapter, cached, [np.array(unit) for unit in units], limit, 8).total
    expected = clipped_by_hand(adapter, split, units, limit)
    assert float((total - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(
    "targets", [r".*text_model\.layers\.\d\.(?:.*\.)?q_proj", r".*text_model\.layers\.1\.(?:.*\.)?(?:q|k)_proj"]
)
def test_not_where_something_below_is_trained(targets: str) -> None:
    assert isinstance(precompute(adapted(targets).peft_model, FakeSplit(4)), FeatureSplit)


def test_not_where_it_would_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedvlm_secure.training.features._MOST_BYTES", 100)
    assert isinstance(precompute(adapted().peft_model, FakeSplit(4)), FeatureSplit)
