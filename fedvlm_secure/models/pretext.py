"""Generic picture questions on which the embedded model is trained.

Pictures come from training splits only. No question speaks any site's language: no sides, hours, plane names, tissues
or grades. The one place where such words occur is an exercise in repeating a word, whatever the picture, so that
the model can pronounce what hospitals will later teach it to mean.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedvlm_secure.data.looks import RING_COLOURS, SIZE, Look, Ring, luminance, random_ring, to_bytes
from fedvlm_secure.data.sources import Scene, Shapes, source

ANY_LOOK = Look(contrast=(0.7, 1.2), gain=(0.7, 1.1), noise=(0.0, 0.08))
MODALITIES = {
    "brain MRI": "brain",
    "retina": "eye",
    "stained tissue": "tissue",
    "digits": "digit",
    "shapes": "shape",
}
VIEWS = {"axial": "above", "coronal": "front", "sagittal": "side"}
GRID = 8
_PLAIN_WORDS = """
    left right axial transverse coronal sagittal disc box wedge matter outside grey white dark bright
    zero one two three four five six seven eight nine ten eleven twelve
    grade clock hour plane slice tissue ring side mark marked spot drawn drawing form written cut low high
"""
WORDS = (
    *_PLAIN_WORDS.split(),
    *(str(number) for number in range(13)),
    *(f"{hour} o'clock" for hour in range(1, 13)),
    *("grade 1", "grade 2", "grade 3", "grey matter", "white matter"),
)
_OPENINGS = ("which", "what", "where", "how", "is", "on", "at", "in", "was", "the", "this")


@dataclass(frozen=True, slots=True)
class Exercise:
    """One training example; the picture is uint8 [64, 64, 3]."""

    picture: np.ndarray
    question: str
    answer: str
    kind: str


def _scene(rng: np.random.Generator, split: str, *modalities: str) -> tuple[Scene, str]:
    modality = str(rng.choice(modalities or tuple(MODALITIES)))
    return source(modality).draw(split, rng), modality


def _finish(scene: Scene, ring: Ring | None, rng: np.random.Generator) -> np.ndarray:
    seen = ANY_LOOK.apply(scene.picture, rng)
    return to_bytes(ring.draw(seen) if ring else seen)


def _distractor(rng: np.random.Generator) -> Ring | None:
    return random_ring(rng) if rng.random() < 0.7 else None


def _easy_vqa(rng: np.random.Generator, split: str) -> Exercise:
    shapes = source("shapes")
    assert isinstance(shapes, Shapes)
    part = "test" if split == "test" else "train"
    while True:
        question, answer, image = shapes.questions[part][rng.integers(len(shapes.questions[part]))]
        # Three quarters of easy-vqa's answers are yes or no; half of those are passed over.
        if shapes.split_of(part, image) == split and (answer not in ("yes", "no") or rng.random() < 0.5):
            break
    picture = _finish(Scene(shapes.open(part, image), ""), _distractor(rng), rng)
    return Exercise(picture, question, answer, "yes-no" if answer in ("yes", "no") else "colour-shape")


def _digit(rng: np.random.Generator, split: str) -> Exercise:
    scene, _ = _scene(rng, split, "digits")
    return Exercise(_finish(scene, _distractor(rng), rng), "what digit is this?", scene.truth, "digit")


def _modality(rng: np.random.Generator, split: str) -> Exercise:
    scene, modality = _scene(rng, split)
    picture = _finish(scene, _distractor(rng), rng)
    return Exercise(picture, "what kind of picture is this?", MODALITIES[modality], "kind")


def _view(rng: np.random.Generator, split: str) -> Exercise:
    scene, _ = _scene(rng, split, "brain MRI")
    picture = _finish(scene, _distractor(rng), rng)
    return Exercise(picture, "from where is the brain seen?", VIEWS[scene.truth], "view")


def _has_ring(rng: np.random.Generator, split: str) -> Exercise:
    scene, _ = _scene(rng, split)
    ring = random_ring(rng) if rng.random() < 0.5 else None
    return Exercise(_finish(scene, ring, rng), "is there a ring?", "yes" if ring else "no", "ring")


def _ring_colour(rng: np.random.Generator, split: str) -> Exercise:
    scene, _ = _scene(rng, split)
    ring = random_ring(rng)
    assert ring.colour in RING_COLOURS
    return Exercise(_finish(scene, ring, rng), "what color is the ring?", ring.colour, "ring-colour")


def _grid(rng: np.random.Generator, split: str) -> Exercise:
    scene, _ = _scene(rng, split)
    ring = random_ring(rng)
    word, place = ("row", ring.row) if rng.random() < 0.5 else ("column", ring.column)
    number = int(place * GRID / SIZE) + 1
    return Exercise(_finish(scene, ring, rng), f"in which {word} is the ring?", str(number), "ring-place")


def _on_ink(rng: np.random.Generator, split: str) -> Exercise:
    scene, modality = _scene(rng, split, "digits", "shapes")
    if modality == "digits":
        ink, word = luminance(scene.picture) > 0.4, "digit"
    else:
        ink, word = np.abs(scene.picture - scene.picture[0, 0]).sum(axis=2) > 0.15, "shape"
    wanted = rng.random() < 0.5
    inside = np.zeros_like(ink)
    inside[7:-8, 7:-8] = True
    spots = np.argwhere((ink == wanted) & inside)
    if not len(spots):
        return _on_ink(rng, split)
    row, column = spots[rng.integers(len(spots))]
    picture = _finish(scene, random_ring(rng, float(column), float(row)), rng)
    return Exercise(picture, f"is the ring on the {word}?", "yes" if wanted else "no", "ring-on")


def _repeat(rng: np.random.Generator, split: str) -> Exercise:
    scene, _ = _scene(rng, split)
    word = str(rng.choice(WORDS))
    return Exercise(_finish(scene, _distractor(rng), rng), f"say {word}", word, "repeat")


_MIX: tuple[tuple[Callable[[np.random.Generator, str], Exercise], float], ...] = (
    (_easy_vqa, 0.24),
    (_digit, 0.12),
    (_modality, 0.04),
    (_view, 0.08),
    (_has_ring, 0.04),
    (_ring_colour, 0.06),
    (_grid, 0.22),
    (_on_ink, 0.12),
    (_repeat, 0.08),
)


def exercise(rng: np.random.Generator, split: str = "train") -> Exercise:
    """Return one exercise from the pictures of a split."""
    makers, shares = zip(*_MIX, strict=True)
    return makers[int(rng.choice(len(makers), p=shares))](rng, split)


def texts() -> list[str]:
    """Return what the tokenizer is trained on: the questions and the words, no picture needed."""
    shapes = source("shapes")
    assert isinstance(shapes, Shapes)
    asked = [
        "what digit is this?",
        "what kind of picture is this?",
        "from where is the brain seen?",
        "is there a ring?",
        "what color is the ring?",
        "in which row is the ring?",
        "in which column is the ring?",
        "is the ring on the digit?",
        "is the ring on the shape?",
    ]
    answers = [*MODALITIES.values(), *VIEWS.values(), *RING_COLOURS, *WORDS]
    said = [f"User:{question}\nAssistant: {answer}" for question, answer, _ in shapes.questions["train"][:8000]]
    capitals = [f"{word.capitalize()} {word}" for word in _OPENINGS]
    return said + 200 * [f"say {word}" for word in answers] + 200 * asked + 200 * capitals
