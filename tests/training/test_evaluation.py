import pytest
import torch

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.data import EncodedSplit
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training import (
    TrainSettings,
    answer_logits,
    evaluate,
    precompute_image_features,
    sample_losses,
    train,
)
from tests.adapters.tiny_vlm import END, TEXT_ONLY, FakeSplit, tiny_vlm


def adapted(targets=TEXT_ONLY):
    return attach(tiny_vlm(), AdapterSettings(targets=targets, rank=4))


@pytest.fixture(scope="module")
def half_trained():
    """Right on some rows and wrong on others."""
    adapter, split = adapted(), FakeSplit(16)
    train(adapter, split, TrainSettings(steps=25, batch_size=16, learning_rate=2e-2), seed=0)
    return adapter, split


def written(model, split, row):
    """What greedy generation writes, end token included."""
    prompt = torch.tensor([split.prompts[row]])
    whole = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=split.pictures[[row]],
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=END,
    )
    return whole[0, prompt.shape[1] :].tolist()


def test_a_row_is_correct_exactly_when_greedy_generation_writes_its_answer(half_trained):
    adapter, split = half_trained
    verdicts = []
    for row in range(len(split)):
        one = FakeSplit(0)
        one.pictures, one.prompts, one.answers = split.pictures[[row]], [split.prompts[row]], [split.answers[row]]
        verdict = evaluate(adapter.peft_model, one).correct
        assert verdict == (written(adapter.peft_model, split, row) == split.answers[row])
        verdicts.append(verdict)
    assert 0 < sum(verdicts) < len(split)
    assert evaluate(adapter.peft_model, split).correct == sum(verdicts)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 100])
def test_counters_do_not_depend_on_the_batch_size(half_trained, batch_size):
    adapter, split = half_trained
    with torch.no_grad():
        expected = sample_losses(*answer_logits(adapter.peft_model, split.batch(range(16)))).sum().item()
    result = evaluate(adapter.peft_model, split, batch_size=batch_size)
    assert (result.correct, result.asked) == (evaluate(adapter.peft_model, split).correct, 16)
    assert result.loss_sum == pytest.approx(expected, rel=1e-5)
    assert (result.accuracy, result.loss) == (result.correct / 16, result.loss_sum / 16)


def test_evaluation_leaves_modes_and_weights_alone(half_trained):
    adapter, split = half_trained
    model, before = adapter.peft_model, adapter.state()
    model.train()
    model.get_submodule("base_model.model.lm_head").eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, split)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state().items())
    assert all(p.grad is None or not p.grad.is_inference() for p in model.parameters())


def test_nothing_to_ask_is_refused(half_trained):
    adapter, split = half_trained
    with pytest.raises(MisuseError, match="no rows"):
        evaluate(adapter.peft_model, FakeSplit(0))
    with pytest.raises(MisuseError, match="batch_size"):
        evaluate(adapter.peft_model, split, batch_size=0)


def test_features_give_the_answers_that_pictures_give():
    adapter, split = adapted(), FakeSplit(16)
    cached = precompute_image_features(adapter.peft_model, split, batch_size=16)
    assert cached is not split
    assert "pixel_values" not in cached.batch([0])
    for rows in ([0, 1, 2], [5], list(range(16))):
        expected, _ = answer_logits(adapter.peft_model, split.batch(rows))
        actual, _ = answer_logits(adapter.peft_model, cached.batch(rows))
        assert torch.allclose(actual, expected, atol=1e-5)
    # They are this picture's features, and pictures matter.
    others, _ = answer_logits(adapter.peft_model, FakeSplitWithPictures(split).batch([0, 1, 2]))
    expected, _ = answer_logits(adapter.peft_model, split.batch([0, 1, 2]))
    assert not torch.allclose(others, expected, atol=1e-3)


class WithoutFeatures(torch.nn.Module):
    """Can look at pictures, but its forward takes nothing in their place."""

    def __init__(self):
        super().__init__()
        self.model = tiny_vlm().requires_grad_(False)
        self.get_image_features = self.model.get_image_features

    def forward(self, input_ids, attention_mask, pixel_values, use_cache):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)


class FakeSplitWithPictures(FakeSplit):
    """The same text under other pictures."""

    def __init__(self, split):
        super().__init__(len(split))
        self.pictures = split.pictures.flip(0)


def test_an_encoded_split_lets_go_of_its_pictures():
    adapter, split = adapted(), EncodedSplit(FakeSplit(8).batch(range(8)))
    cached = precompute_image_features(adapter.peft_model, split)
    assert "pixel_values" in split.tensors
    assert "pixel_values" not in cached.split.tensors
    assert evaluate(adapter.peft_model, cached).loss == pytest.approx(
        evaluate(adapter.peft_model, split).loss, rel=1e-5
    )


def test_training_on_features_is_training_on_pictures():
    results = []
    for prepare in (lambda model, split: split, precompute_image_features):
        adapter, split = adapted(), FakeSplit(16)
        train(adapter, prepare(adapter.peft_model, split), TrainSettings(steps=5, batch_size=8), seed=3)
        results.append(adapter.state())
    for name, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][name], atol=1e-4)


@pytest.mark.parametrize("part", [r".*vision_model.*q_proj", r".*connector.*\.proj"])
def test_pictures_are_kept_where_an_adapter_sees_them(part):
    adapter, split = adapted(targets=part), FakeSplit(4)
    assert precompute_image_features(adapter.peft_model, split) is split


def test_pictures_are_kept_where_the_model_takes_no_features():
    model, split = tiny_vlm(), FakeSplit(4)
    assert precompute_image_features(model.model.text_model, split) is split
    assert precompute_image_features(WithoutFeatures(), split) is split


def test_no_rows_have_no_features():
    split = FakeSplit(0)
    assert precompute_image_features(adapted().peft_model, split) is split


def test_pictures_are_kept_where_features_would_change_the_answers(monkeypatch):
    adapter, split = adapted(), FakeSplit(4)
    base = adapter.peft_model.get_base_model()
    honest = base.get_image_features

    def shifted(shift):
        return lambda pixel_values: honest(pixel_values=pixel_values + shift)

    monkeypatch.setattr(base, "get_image_features", shifted(0.0))
    assert precompute_image_features(adapter.peft_model, split) is not split
    monkeypatch.setattr(base, "get_image_features", shifted(1.0))
    assert precompute_image_features(adapter.peft_model, split) is split
