import pytest
import torch
from PIL import Image

from fedvlm_secure import data
from fedvlm_secure.data.collate import IGNORED
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models.architecture import IMAGE_TOKENS, new_processor, new_tokenizer

TEXTS = ["User:Which plane is this?\nAssistant: coronal", "User:On which side is the ring?\nAssistant: left"]


@pytest.fixture(scope="module")
def processor():
    return new_processor(new_tokenizer(TEXTS, 300))


def row(question="Which plane is this?", answer="coronal", size=(64, 64), mode="RGB"):
    return {"question": question, "chosen": answer, "image": Image.new(mode, size, 77)}


def said(processor, labels):
    return processor.tokenizer.decode(labels[labels != IGNORED])


def test_only_the_answer_and_its_end_of_turn_are_learnt(processor):
    batch = data.Collator(processor)([row(), row("On which side is the ring?", "left")])
    assert [said(processor, labels) for labels in batch["labels"]] == [
        " coronal<end_of_utterance>",
        " left<end_of_utterance>",
    ]
    known = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][known], batch["input_ids"][known])


def test_padding_is_on_the_right_and_never_learnt(processor):
    batch = data.Collator(processor)([row(), row("?" * 40, "x")])
    short = batch["attention_mask"][0]
    assert short.tolist() == sorted(short.tolist(), reverse=True)
    assert short.sum() < len(short)
    assert (batch["labels"][short.new_zeros(()) == batch["attention_mask"]] == IGNORED).all()


def test_a_row_has_exactly_one_picture(processor):
    batch = data.Collator(processor)([row(), row(size=(100, 100), mode="L")])
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image_token).sum(dim=1).tolist() == [IMAGE_TOKENS] * 2
    assert batch["pixel_values"].shape == (2, 1, 3, 64, 64)
    assert batch["pixel_values"].dtype == torch.float32
    assert "pixel_attention_mask" not in batch


class Padded:
    """A processor that pads a batch's second picture, as those for larger models do."""

    def __init__(self, processor):
        self.tokenizer, self.apply_chat_template, self._whole = (
            processor.tokenizer,
            processor.apply_chat_template,
            processor,
        )

    def __call__(self, **inputs):
        batch = self._whole(**inputs)
        batch["pixel_attention_mask"][1, :, 32:] = 0
        return batch


def test_a_picture_that_does_not_fill_its_frame_keeps_its_mask(processor):
    batch = data.Collator(Padded(processor))([row(), row()])
    assert batch["pixel_attention_mask"].flatten(1).all(dim=1).tolist() == [True, False]


def test_accents_survive_the_tokenizer(processor):
    batch = data.Collator(processor)([row(answer="côté gauche, 左")])
    assert said(processor, batch["labels"][0]) == " côté gauche, 左<end_of_utterance>"


def test_a_row_that_is_too_long_is_refused_not_cut(processor):
    with pytest.raises(MisuseError, match="max_length = 40"):
        data.Collator(processor, max_length=40)([row("why " * 50)])


def test_an_encoded_split_gives_what_the_collator_gives(processor, hospitals):
    split = hospitals["validation"].select(range(300))
    encoded = data.encode(split, processor)
    assert len(encoded) == 300
    picked = [7, 299, 0]
    batch, expected = encoded.batch(picked), data.Collator(processor)([split[place] for place in picked])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


class Typed(Padded):
    """A processor that says of each token whether it belongs to the prompt, as PaliGemma's does."""

    def __call__(self, **inputs):
        batch = self._whole(**inputs)
        batch["token_type_ids"] = batch["attention_mask"] * 3
        return batch


def test_token_types_stay_with_their_tokens(processor, hospitals):
    split = hospitals["validation"].select(range(300))
    batch = data.encode(split, Typed(processor)).batch([7, 299, 0])
    assert torch.equal(batch["token_type_ids"], batch["attention_mask"] * 3)


def test_an_empty_split_is_refused(processor, hospitals):
    with pytest.raises(MisuseError, match="no rows"):
        data.encode(hospitals["test"].select([]), processor)
