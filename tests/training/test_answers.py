import pytest
import torch

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training import answer_logits, sample_losses
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, tiny_vlm


def test_logits_and_targets_are_those_of_the_answer_tokens():
    model, split = tiny_vlm(), FakeSplit(6)
    batch = split.batch(range(6))
    whole = model(**batch).logits
    logits, targets = answer_logits(model, batch)
    for row, answer in enumerate(split.answers):
        start = len(split.prompts[row]) - 1
        assert targets[row].tolist() == answer + [-100] * (targets.shape[1] - len(answer))
        expected = whole[row, start : start + len(answer)]
        assert torch.allclose(logits[row, : len(answer)], expected, atol=1e-5)


def test_a_model_that_always_gives_all_logits_works_as_well():
    class Old(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, pixel_values, use_cache):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)

    model, batch = tiny_vlm(), FakeSplit(6).batch(range(6))
    for left, right in zip(answer_logits(Old(model), batch), answer_logits(model, batch), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_a_row_loss_is_the_mean_over_its_own_answer_tokens():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.25, 0.25, 0.5], [1.0, 1.0, 1.0]]]))
    targets = torch.tensor([[0, 2], [1, -100]])
    expected = -torch.log(torch.tensor([0.5 * 0.8, 0.25])) / torch.tensor([2, 1])
    assert torch.allclose(sample_losses(logits, targets), expected)


def test_no_row_changes_the_gradient_of_another():
    """Token-mean losses fail here: row 0's share of the gradient would depend on the other answers' lengths."""
    adapter = attach(tiny_vlm(), AdapterSettings(targets=TEXT_ONLY, rank=2))
    split = FakeSplit(6)
    assert len({len(answer) for answer in split.answers}) == 3

    def gradient_of_first(rows):
        losses = sample_losses(*answer_logits(adapter.peft_model, split.batch(rows)))
        # The batch loss is the mean over rows; the others' losses are cut out of the graph.
        whole = torch.cat([losses[:1], losses[1:].detach()]).mean() * len(rows)
        return torch.autograd.grad(whole, [p for n, p in adapter.parameters.items() if "lora_B" in n])

    for others in ([1, 2], [4, 5], [3, 3]):
        pairs = zip(gradient_of_first([0]), gradient_of_first([0, *others]), strict=True)
        assert all(torch.allclose(alone, together, atol=1e-5) for alone, together in pairs)


def test_a_row_without_answer_is_refused():
    batch = FakeSplit(3).batch(range(3))
    batch["labels"][1] = -100
    with pytest.raises(MisuseError, match="no answer"):
        answer_logits(tiny_vlm(), batch)
