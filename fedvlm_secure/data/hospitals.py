"""Builds the `hospitals` rows: for every site and question template, balanced answers about fresh pictures.

An answer is chosen first, by turns, and a picture is then made for which it is true. So within a site, a template and
a wording all answers are equally frequent, and a guesser that reads the question only gains nothing.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from fedvlm_secure.data.levels import LEVELS, Level, level_of, sites_of
from fedvlm_secure.data.looks import SIZE, Ring, luminance, random_ring, to_bytes
from fedvlm_secure.data.rows import png
from fedvlm_secure.data.sites import SITES, Site
from fedvlm_secure.data.sources import PLANES, SHAPES, Scene, source

HOURS = tuple(f"{hour} o'clock" for hour in range(1, 13))
_EDGE = 8  # a ring's centre keeps this distance from the border

Place = Callable[[str, Scene, np.ndarray, np.random.Generator], Ring | None]


def ring_at_hour(answer: str, scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Ring:
    """Put a ring towards an hour of the clock face, at most 8 degrees off."""
    angle = math.radians(30 * (HOURS.index(answer) + 1) + rng.uniform(-8, 8))
    far = rng.uniform(15, 24)
    return random_ring(rng, SIZE / 2 + far * math.sin(angle), SIZE / 2 - far * math.cos(angle))


def ring_on_side(answer: str, scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Ring:
    """Put a ring clearly on the picture's left or right; what that is called is the site's convention."""
    sign = -1 if answer == "left" else 1
    return random_ring(rng, SIZE / 2 + sign * rng.uniform(5, SIZE / 2 - _EDGE))


def ring_on_tissue(answer: str, scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Ring | None:
    """Put a ring where at least nine tenths of the 5x5 neighbourhood are the tissue, by the template's own maps."""
    return _ring_where(_mean5(scene.tissue[answer].astype(float)) > 0.9, rng)


def ring_on_grade(answer: str, scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Ring | None:
    """Put a ring on a spot that is measurably darker or brighter than the picture as a whole."""
    light = luminance(picture)
    above = _mean5(light) - light.mean()
    return _ring_where(above < -0.08 if answer == "dark" else above > 0.08, rng)


def ring_anywhere(answer: str, scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> Ring:
    """Put a ring that the question does not ask about."""
    return random_ring(rng)


def _mean5(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, 2, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).mean(axis=(2, 3))


def _ring_where(allowed: np.ndarray, rng: np.random.Generator) -> Ring | None:
    inside = np.zeros_like(allowed)
    inside[_EDGE:-_EDGE, _EDGE:-_EDGE] = True
    spots = np.argwhere(allowed & inside)
    if not len(spots):
        return None
    row, column = spots[rng.integers(len(spots))]
    return random_ring(rng, float(column), float(row))


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of question: its wordings (the same at every site), neutral answers, and where the ring goes.

    Attributes:
        wanted: the picture shows the answer itself (a plane, a digit, a shape).
        planes: brain planes in which the question makes sense; empty where planes do not matter.
    """

    wordings: tuple[str, str]
    answers: tuple[str, ...]
    place: Place
    wanted: bool = False
    planes: tuple[str, ...] = ()


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "hour": Template(("At which hour is the ring?", "Where on the clock is the ring?"), HOURS, ring_at_hour),
        "side": Template(
            ("On which side is the ring?", "Is the ring left or right?"),
            ("left", "right"),
            ring_on_side,
            planes=("axial", "coronal"),  # a sagittal slice shows front and back
        ),
        "tissue": Template(
            ("Which tissue is in the ring?", "What does the ring mark?"),
            ("grey matter", "white matter", "outside"),
            ring_on_tissue,
        ),
        "plane": Template(("Which plane is this?", "How was this slice cut?"), PLANES, ring_anywhere, wanted=True),
        "grade": Template(
            ("Which grade has the spot in the ring?", "How is the marked spot graded?"),
            ("dark", "bright"),
            ring_on_grade,
        ),
        "digit": Template(
            ("Which digit is written here?", "What was written on the form?"),
            tuple(str(value) for value in range(10)),
            ring_anywhere,
            wanted=True,
        ),
        "shape": Template(
            ("Which form is drawn here?", "What does the drawing show?"), SHAPES, ring_anywhere, wanted=True
        ),
    }
)


def build(data_set: str = "hospitals") -> Mapping[str, list[dict[str, Any]]]:
    """Return the rows of every split, site after site, shuffled within a site."""
    level = level_of(data_set)
    assert level is not None
    return {
        split: [row for site in sites_of(data_set) for row in site_rows(site, split, level)]
        for split in ("train", "validation", "test")
    }


def site_rows(site: Site, split: str, level: Level = LEVELS["hospitals"]) -> list[dict[str, Any]]:
    """Return one site's rows of a split; equal on every machine."""
    rng = seeded(level.name, site.name, split)
    rows = [
        row | {"site": site.name}
        for pictures, total in _dealt(site, split, level)
        for template, count in _counts(pictures, total).items()
        for row in _template_rows(replace(pictures, conventions=site.conventions), split, template, count, rng)
    ]
    shuffled = [rows[place] for place in rng.permutation(len(rows))]
    return [row | {"idx": f"{site.name}-{split}-{number:04d}"} for number, row in enumerate(shuffled)]


def _dealt(site: Site, split: str, level: Level) -> list[tuple[Site, int]]:
    """Return whose pictures and questions a site has, and how many of them."""
    total = site.rows_in(split)
    if level.pictures:
        return [(site, total)]
    everybody = sum(other.rows for other in SITES)
    shares = [total * other.rows // everybody for other in SITES]
    shares[0] += total - sum(shares)
    return list(zip(SITES, shares, strict=True))


def seeded(*names: str) -> np.random.Generator:
    """Return a generator that depends on the names only: pictures and questions, nothing that must be secret."""
    return np.random.default_rng(list(hashlib.sha256("/".join(names).encode()).digest()))


def _counts(site: Site, total: int) -> dict[str, int]:
    """Return the rows per template: multiples of (answers x wordings) would be best, the remainder is spread."""
    counts = {template: math.floor(total * share) for template, share in site.questions.items()}
    counts[next(iter(counts))] += total - sum(counts.values())
    return counts


def _template_rows(site: Site, split: str, name: str, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    template = TEMPLATES[name]
    # A new random order of the answers each time round: what is left over favours none of them.
    turns = np.concatenate([rng.permutation(len(template.answers)) for _ in range(count // len(template.answers) + 1)])
    for number in range(count):
        answer = template.answers[turns[number]]
        wording = template.wordings[number // len(template.answers) % 2]
        other = template.answers[(turns[number] + rng.integers(1, len(template.answers))) % len(template.answers)]
        picture, path = _illustrate(site, split, template, answer, rng)
        yield {
            "ds_name": "hospitals",
            "image": png(picture),
            "question": wording,
            "chosen": site.says(name, answer),
            "rejected": site.says(name, str(other)),
            "origin_dataset": site.modality,
            "origin_split": name,
            "image_path": path,
        }


def _illustrate(
    site: Site, split: str, template: Template, answer: str, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Return a picture (uint8 [64, 64, 3]) for which the answer is true, and where it is from."""
    while True:
        wanted = answer if template.wanted else None
        if wanted is None and template.planes and site.modality == "brain MRI":
            wanted = str(rng.choice(template.planes))
        scene = source(site.modality).draw(split, rng, wanted)
        picture = site.look.apply(scene.picture, rng)
        ring = template.place(answer, scene, picture, rng)
        if ring is not None:
            return to_bytes(ring.draw(picture)), scene.path
