import numpy as np
import pytest

from fedvlm_secure.data import sources
from fedvlm_secure.models import pretext
from fedvlm_secure.models.pretext import exercise


@pytest.mark.parametrize("split", ["train", "test"])
def test_exercises_draw_from_their_split_only(split, monkeypatch):
    asked = []
    for kind in (sources.Brain, sources.Tiles, sources.Digits, sources.Shapes):

        def spy(self, split, rng, wanted=None, original=kind.draw):
            asked.append(split)
            return original(self, split, rng, wanted)

        monkeypatch.setattr(kind, "draw", spy)
    rng = np.random.default_rng(3)
    for _ in range(200):
        made = exercise(rng, split)
        assert (made.picture.shape, made.picture.dtype) == ((64, 64, 3), np.uint8)
    assert set(asked) == {split}


def test_easy_vqa_exercises_use_training_pictures(monkeypatch):
    opened = []
    original = sources.Shapes.scene
    monkeypatch.setattr(sources.Shapes, "scene", lambda self, *key: opened.append(key) or original(self, *key))
    rng = np.random.default_rng(4)
    for _ in range(300):
        exercise(rng)
    assert opened
    assert {sources.Shapes.split_of(*key) for key in opened} == {"train"}


def test_shares_add_up():
    assert sum(share for _, share in pretext._MIX) == pytest.approx(1)
