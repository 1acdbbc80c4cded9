import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedvlm_secure import data
from fedvlm_secure.data.hospitals import HOURS, TEMPLATES, site_rows
from fedvlm_secure.data.rows import COLUMNS
from fedvlm_secure.data.sources import PLANES, Brain, source

SPLITS = ("train", "validation", "test")
SITE = {site.name: site for site in data.SITES}
PAIRS = [("mri-north", "mri-west"), ("mri-east", "mri-south")]


def test_rows_have_rlaif_v_columns_and_a_site(hospitals):
    assert tuple(hospitals) == SPLITS
    for split in hospitals.values():
        assert tuple(split.features) == (*COLUMNS, "site")
        kinds = {name: type(feature).__name__ for name, feature in split.features.items()}
        assert kinds.pop("image") == "Image"
        assert all(split.features[name].dtype == "string" for name in kinds)
    row = hospitals["test"][0]
    assert (row["image"].size, row["image"].mode) == ((64, 64), "RGB")


def test_sites_are_eight_and_of_the_promised_size(hospitals):
    assert len(data.SITES) == 8
    counted = Counter(site for split in hospitals.values() for site in split["site"])
    assert counted == {site.name: site.rows for site in data.SITES}
    assert all(400 <= rows <= 4000 for rows in counted.values())


def test_idx_is_unique_and_the_two_answers_differ(hospitals):
    every = [idx for split in hospitals.values() for idx in split["idx"]]
    assert len(set(every)) == len(every)
    for split in hospitals.values():
        assert all(good != bad for good, bad in zip(split["chosen"], split["rejected"], strict=True))


def test_answers_are_balanced_within_each_template_and_wording(hospitals):
    counts = defaultdict(Counter)
    train = hospitals["train"]
    for site, template, answer in zip(train["site"], train["origin_split"], train["chosen"], strict=True):
        counts[site, template][answer] += 1
    for (site, template), answers in counts.items():
        assert len(answers) == len(TEMPLATES[template].answers), (site, template)
        assert max(answers.values()) - min(answers.values()) <= 1, (site, template)


def test_a_guesser_that_reads_the_question_only_gains_little(hospitals):
    train, test = data.by_site(hospitals["train"]), data.by_site(hospitals["test"])
    assert all(data.question_only_baseline(train[name], test[name]) < 0.35 for name in SITE)


# --- splits


def neighbourhoods(split):
    """What a row's picture was cut from: (source, key), with tiles as boxes."""
    found = defaultdict(set)
    for path in split["image_path"]:
        origin, _, key = path.rpartition("/")
        found[origin].add(key)
    return found


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_splits_share_no_slice_neighbourhood_tile_area_digit_or_shape_picture(hospitals, one, other):
    left, right = neighbourhoods(hospitals[one]), neighbourhoods(hospitals[other])
    for origin in left.keys() & right.keys():
        if origin.startswith("nilearn"):
            gap = min(abs(int(a) - int(b)) for a in left[origin] for b in right[origin])
            assert gap >= 2 * Brain.MARGIN + 1, origin
        elif origin.startswith("skimage"):
            assert not any(overlap(a, b) for a in left[origin] for b in right[origin]), origin
        else:
            assert not left[origin] & right[origin], origin


def overlap(one, other):
    (x, y, w), (a, b, v) = (map(int, re.findall(r"\d+", box)) for box in (one, other))
    return x < a + v and a < x + w and y < b + v and b < y + w


def test_no_sagittal_slice_has_its_mirror_image_in_the_data(hospitals):
    # The template is mirror-symmetric about slice 98: both halves would put a test slice into training.
    for split in hospitals.values():
        assert min(int(key) for key in neighbourhoods(split)["nilearn/mni152/sagittal"]) > 98


@pytest.mark.parametrize("plane", PLANES)
def test_every_split_has_slices_of_every_plane(plane):
    assert all(len(Brain.slices(plane, split)) >= 8 for split in SPLITS)


# --- conventions


def side_seen(row):
    """Where the ring is on the picture, found by its colour."""
    pixels = np.asarray(row["image"]).astype(int)
    coloured = pixels.max(axis=2) - pixels.min(axis=2) > 90  # brain pictures are grey
    return "left" if np.argwhere(coloured)[:, 1].mean() < 31.5 else "right"


@pytest.mark.parametrize(("site", "mirrored"), [("mri-north", True), ("mri-west", False)])
def test_radiological_sites_call_the_pictures_left_right(hospitals, site, mirrored):
    rows = data.by_site(hospitals["validation"])[site]
    rows = rows.select([place for place, kind in enumerate(rows["origin_split"]) if kind == "side"])
    agree = [side_seen(row) == row["chosen"] for row in rows]
    assert not any(agree) if mirrored else all(agree)


def test_pairs_disagree_in_every_convention():
    for one, other in PAIRS:
        assert SITE[one].look == SITE[other].look
        assert SITE[one].modality == SITE[other].modality
        assert SITE[one].questions == SITE[other].questions
        assert {SITE[one].says("side", "left"), SITE[other].says("side", "left")} == {"left", "right"}
        assert {SITE[one].says("plane", "axial"), SITE[other].says("plane", "axial")} == {"axial", "transverse"}


def test_grading_scales_run_both_ways():
    grades = Counter(SITE[name].says("grade", "dark") for name in ("retina", "pathology", "forms", "shapes"))
    assert grades == {"grade 1": 2, "grade 2": 2}


def look_accuracy(hospitals, one, other):
    """Train a linear classifier picture -> site on training rows; its accuracy on as many test rows of each."""
    parts = {}
    for split in ("train", "test"):
        rows = data.by_site(hospitals[split])
        size = min(len(rows[one]), len(rows[other]))
        pictures = [row["image"].resize((16, 16)) for name in (one, other) for row in rows[name].select(range(size))]
        spread = [np.asarray(row["image"]).std() for name in (one, other) for row in rows[name].select(range(size))]
        flat = np.stack([np.asarray(picture).ravel() / 255 for picture in pictures])
        parts[split] = (
            np.column_stack([flat, flat.mean(1), flat.std(1), np.array(spread) / 255]),
            np.repeat([0, 1], size),
        )
    fitted = LogisticRegression(C=0.1, max_iter=300).fit(*parts["train"])
    return fitted.score(*parts["test"]), len(parts["test"][1])


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_no_look_tells_opposite_conventions_apart(hospitals, one, other):
    accuracy, rows = look_accuracy(hospitals, one, other)
    assert abs(accuracy - 0.5) < 4 * np.sqrt(0.25 / rows)


def test_the_same_classifier_tells_different_scanners_apart(hospitals):
    accuracy, _ = look_accuracy(hospitals, "mri-west", "mri-south")
    assert accuracy > 0.9


# --- building


def test_building_is_deterministic(hospitals):
    fresh = site_rows(SITE["pathology"], "validation")
    kept = data.by_site(hospitals["validation"])["pathology"]
    assert [row["image_path"] for row in fresh] == kept["image_path"]
    assert [row["chosen"] for row in fresh] == kept["chosen"]


def test_pictures_fit_their_answer_by_the_hour(hospitals):
    rows = data.by_site(hospitals["validation"])["mri-north"]
    for row in rows.select(range(80)):
        if row["origin_split"] != "hour":
            continue
        pixels = np.asarray(row["image"]).astype(int)
        spot = np.argwhere(pixels.max(axis=2) - pixels.min(axis=2) > 90).mean(axis=0) - 32
        angle = np.degrees(np.arctan2(spot[1], -spot[0])) % 360
        off = abs(angle - 30 * (HOURS.index(row["chosen"]) + 1)) % 360
        assert min(off, 360 - off) < 15


def test_a_source_is_read_once():
    assert source("digits") is source("digits")
