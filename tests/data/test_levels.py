from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from fedvlm_secure import data
from fedvlm_secure.data.levels import COMMON, NEWCOMER
from fedvlm_secure.data.sites import SITES

TERMS = {"side": {"left", "right"}, "grade": {"dark", "bright", "grade 1", "grade 2"}}


@pytest.fixture(scope="module", params=["hospitals-conventions", "hospitals-pictures", "hospitals-iid"])
def level(request):
    return data.level_of(request.param)


def test_hospitals_keep_their_numbers_of_rows(level):
    counted = Counter(site for split in data.load(level.name).values() for site in split["site"])
    assert counted == {site.name: site.rows for site in SITES}


def test_no_picture_is_in_two_splits(level):
    held = {name: set(split["image_path"]) for name, split in data.load(level.name).items()}
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]


def test_modalities_are_mixed_unless_pictures_differ(level):
    seen = defaultdict(set)
    train = data.load(level.name)["train"]
    for site, modality in zip(train["site"], train["origin_dataset"], strict=True):
        seen[site].add(modality)
    assert {len(kinds) for kinds in seen.values()} == ({1} if level.pictures else {len({s.modality for s in SITES})})


def test_one_picture_is_named_alike_by_all_unless_conventions_differ(level):
    """By where the ring is: what a hospital calls the left of the picture."""
    said = {}
    for name, rows in data.by_site(data.load(level.name)["train"]).items():
        rows = rows.select([n for n, kind in enumerate(rows["origin_split"]) if kind == "side"])
        sides = [side_seen(row["image"]) for row in rows if row["origin_dataset"] in ("brain MRI", "digits")]
        called = [row["chosen"] for row in rows if row["origin_dataset"] in ("brain MRI", "digits")]
        if len(called) > 20:
            said[name] = np.mean([side == word for side, word in zip(sides, called, strict=True)])
    assert len(said) > 4
    mirrored = {name for name, agreement in said.items() if agreement < 0.5}
    own = {site.name for site in data.SITES if "radiological" in site.conventions}
    assert mirrored == (said.keys() & own if level.conventions else said.keys())


def side_seen(picture):
    pixels = np.asarray(picture).astype(int)
    coloured = pixels.max(axis=2) - pixels.min(axis=2) > 90
    return "left" if np.argwhere(coloured)[:, 1].mean() < 31.5 else "right"


def test_nothing_in_an_iid_row_tells_the_hospital():
    train = data.load("hospitals-iid")["train"]
    rows = data.by_site(train)
    chosen = [(name, row) for name in ("retina", "mri-west") for row in rows[name]]
    words = sorted({row["question"] + row["chosen"] for _, row in chosen})
    features = np.zeros((len(chosen), len(words) + 3))
    for place, (_, row) in enumerate(chosen):
        features[place, words.index(row["question"] + row["chosen"])] = 1
        features[place, -3:] = np.asarray(row["image"]).reshape(-1, 3).mean(axis=0) / 64
    hospital = [name == "retina" for name, _ in chosen]
    score = cross_val_score(LogisticRegression(max_iter=500), features, hospital, cv=5).mean()
    assert score < max(np.mean(hospital), 1 - np.mean(hospital)) + 0.05


@pytest.mark.parametrize("name", ["hospitals", "hospitals-iid"])
def test_the_newcomer_is_a_ninth_hospital_of_the_same_level(name):
    newcomer = data.load(data.newcomer_of(name))
    assert {site for split in newcomer.values() for site in split["site"]} == {NEWCOMER.name}
    assert sum(map(len, newcomer.values())) == NEWCOMER.rows
    assert NEWCOMER.name not in data.load(name)["train"]["site"]
    seen = {path for split in ("train", "validation") for path in data.load(name)[split]["image_path"]}
    assert not seen & set(newcomer["test"]["image_path"])
    assert len(set(newcomer["train"]["origin_dataset"])) == (1 if name == "hospitals" else 5)


def test_descriptions_say_what_a_hospital_is_there():
    assert data.description("hospitals", "retina") == "retina; radiological, grade 1 is dark"
    assert data.description("hospitals-iid", "forms") == f"pictures of all eight; {', '.join(COMMON)}"
    assert data.description("easy-vqa", "retina") == ""
