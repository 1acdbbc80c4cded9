"""`easy-vqa` as a small second data set: its own questions, dealt to a few sites at random (IID)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedvlm_secure.data.hospitals import seeded
from fedvlm_secure.data.looks import to_bytes
from fedvlm_secure.data.rows import png
from fedvlm_secure.data.sources import SHAPES, Shapes, source

SITES = ("reader-1", "reader-2", "reader-3", "reader-4")
ROWS: Mapping[str, int] = {"train": 3200, "validation": 400, "test": 800}


def build() -> Mapping[str, list[dict[str, Any]]]:
    """Return the rows of every split: equally many of each kind of answer, one question a row."""
    shapes = source("shapes")
    assert isinstance(shapes, Shapes)
    return {split: _split_rows(shapes, split, count) for split, count in ROWS.items()}


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes-no"
    return "shape" if answer in SHAPES else "colour"


def _split_rows(shapes: Shapes, split: str, count: int) -> list[dict[str, Any]]:
    rng = seeded("easy-vqa", split)
    part = "test" if split == "test" else "train"
    pool: dict[str, list[tuple[str, str, int]]] = {"yes-no": [], "shape": [], "colour": []}
    for question, answer, image in shapes.questions[part]:
        if shapes.split_of(part, image) == split:
            pool[_kind(answer)].append((question, answer, image))
    rows = []
    for number in range(count):
        kind = list(pool)[number % len(pool)]
        question, answer, image = pool[kind][rng.integers(len(pool[kind]))]
        scene = shapes.scene(part, image)
        others = sorted({other for _, other, _ in pool[kind]} - {answer})
        rows.append(
            {
                "ds_name": "easy-vqa",
                "image": png(to_bytes(scene.picture)),
                "question": question,
                "chosen": answer,
                "rejected": str(rng.choice(others)),
                "origin_dataset": "easy-vqa",
                "origin_split": kind,
                "idx": f"{split}-{number:04d}",
                "image_path": scene.path,
            }
        )
    dealt = np.resize(SITES, count)
    rng.shuffle(dealt)
    return [row | {"site": str(site)} for row, site in zip(rows, dealt, strict=True)]
