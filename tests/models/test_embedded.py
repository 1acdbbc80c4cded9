"""What the embedded model can and cannot do on pictures it was not trained on."""

import numpy as np
import pytest
import torch

from fedvlm_secure import data, models
from fedvlm_secure.models.pretext import exercise, texts
from fedvlm_secure.models.pretrain import Pool, accuracy


def test_it_sees(embedded):
    rng = np.random.default_rng(99)
    figures = accuracy(embedded.model, Pool([exercise(rng, "test") for _ in range(400)], embedded.processor))
    embedded.model.eval()
    assert figures["all"] > 0.7


def test_its_generated_answer_is_the_likeliest_one(embedded, easy_vqa):
    split = easy_vqa["test"].select(range(12))
    encoded = data.encode(split, embedded.processor)
    batch = encoded.batch(range(12))
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        said = embedded.model(**batch).logits[:, :-1].argmax(dim=-1)
    exact = ((said == labels) | (labels == -100)).all(dim=1).tolist()
    answers = [models.answer(embedded, None, row["image"], row["question"]) for row in split]
    assert exact == [answer == row["chosen"] for answer, row in zip(answers, split, strict=True)]


def test_it_lacks_what_hospitals_teach(embedded, hospitals):
    test = hospitals["test"].select(range(0, len(hospitals["test"]), 10))
    with torch.no_grad():
        batch = data.encode(test, embedded.processor).batch(range(len(test)))
        labels = batch.pop("labels")[:, 1:]
        said = embedded.model(**batch).logits[:, :-1].argmax(dim=-1)
    assert ((said == labels) | (labels == -100)).all(dim=1).float().mean() < 0.25


@pytest.mark.parametrize("word", ["o'clock", "transverse", "grade"])
def test_site_words_occur_in_the_repeating_exercise_only(word):
    rng = np.random.default_rng(1)
    for _ in range(300):
        made = exercise(rng)
        assert word not in made.question + made.answer or made.kind == "repeat"
    assert any(word in text for text in texts())
