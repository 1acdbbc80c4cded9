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
    assert ((said == labels) | (labels == -100)).all(dim=1).float().mean() < 0.02


def test_it_has_the_facts_at_hand_in_questions_it_has_never_met(embedded, hospitals):
    """A linear probe before the last layer, where the answer begins, reads the ring's hour."""

    def told(split):
        rows = data.by_site(hospitals[split])["mri-north"]
        rows = rows.select([place for place, kind in enumerate(rows["origin_split"]) if kind == "hour"][:400])
        batch = data.encode(rows, embedded.processor).batch(range(len(rows)))
        begins = (batch.pop("labels")[:, 1:] != -100).to(torch.int8).argmax(dim=1)
        with torch.no_grad():
            states = embedded.model.model(**batch, output_hidden_states=True).hidden_states[-2]
        hours = torch.tensor([int(answer.split()[0]) - 1 for answer in rows["chosen"]])
        state = states[torch.arange(len(rows)), begins]
        return torch.nn.functional.rms_norm(state, state.shape[1:]), hours

    state, hours = told("train")
    wanted = torch.nn.functional.one_hot(hours, 12).float()
    probe = torch.linalg.solve(state.T @ state + 10 * torch.eye(state.shape[1]), state.T @ wanted)
    state, hours = told("test")
    assert ((state @ probe).argmax(dim=1) == hours).float().mean() > 0.7


@pytest.mark.parametrize("word", ["o'clock", "transverse", "grade"])
def test_site_words_have_nothing_to_do_with_the_picture(word):
    rng = np.random.default_rng(1)
    for _ in range(300):
        made = exercise(rng)
        if word in made.question:
            assert made.kind in ("repeat", "nonsense")
        if word in made.answer:
            assert made.kind == "repeat"
    assert any(word in text for text in texts())
