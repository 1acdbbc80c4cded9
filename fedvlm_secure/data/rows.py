"""One row: RLAIF-V's schema plus ``site``, and what can be said about rows without a model."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import numpy as np
from PIL import Image

# RLAIF-V keeps everything but the picture as a string, `idx` included.
COLUMNS = ("ds_name", "image", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")
FEATURES = datasets.Features(
    {name: datasets.Image() if name == "image" else datasets.Value("string") for name in (*COLUMNS, "site")}
)


def png(picture: np.ndarray) -> dict[str, Any]:
    """Return a uint8 [height, width, 3] picture as `datasets` stores images: PNG bytes without a path."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def to_split(rows: Iterable[Mapping[str, Any]]) -> datasets.Dataset:
    """Return rows as one split with :data:`FEATURES`."""
    listed = list(rows)
    return datasets.Dataset.from_dict({name: [row[name] for row in listed] for name in FEATURES}, features=FEATURES)


def by_site(split: datasets.Dataset) -> dict[str, datasets.Dataset]:
    """Return the rows of each site, in order of first appearance."""
    places: dict[str, list[int]] = {}
    for place, site in enumerate(split["site"]):
        places.setdefault(site, []).append(place)
    return {site: split.select(chosen) for site, chosen in places.items()}


def question_only_baseline(train: datasets.Dataset, test: datasets.Dataset) -> float:
    """Return the accuracy on ``test`` of the commonest ``train`` answer to each question, pictures unseen.

    A question that ``train`` lacks gets the commonest answer of all. Both splits should hold one site's rows. Ties go
    to the answer that sorts first, so the figure is reproducible.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(train["question"], train["chosen"], strict=True):
        answers[question][answer] += 1
    overall = _commonest(sum(answers.values(), Counter()))
    guess = {question: _commonest(counts) for question, counts in answers.items()}
    right = [
        guess.get(question, overall) == answer
        for question, answer in zip(test["question"], test["chosen"], strict=True)
    ]
    return float(np.mean(right)) if right else float("nan")


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer)) if counts else ""
