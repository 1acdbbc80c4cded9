"""Generic picture questions on which the embedded model is trained.

Pictures come from training splits only. No question speaks any site's language: no sides, hours, plane names, tissues
or grades. Such words occur in two places, where they have nothing to do with the picture: in an exercise in repeating
a word, so that the model can pronounce what hospitals will later teach it to mean, and in questions that make no sense.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from fedvlm_secure.data.looks import RING_COLOURS, SIZE, Look, Ring, luminance, random_ring, to_bytes
from fedvlm_secure.data.sources import PLANES, SHAPES, Scene, Shapes, source

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


# What both towers are asked directly, with so many classes each; see `pretrain.ReadOut`.
HEADS = {"modality": 5, "truth": 16, "color": 8, "ring": 2, "ring-color": 4, "row": GRID, "column": GRID, "inside": 8}
UNKNOWN = -1
_TRUTHS = (*PLANES, *(str(value) for value in range(10)), *SHAPES)
_COLORS = ("red", "green", "blue", "yellow", "teal", "brown", "black", "gray")


@dataclass(frozen=True, slots=True)
class Exercise:
    """One training example.

    Attributes:
        picture: uint8 [64, 64, 3].
        kind: what the question is about, for accuracy by kind.
        facts: class per key of :data:`HEADS`, :data:`UNKNOWN` where there is none; int64 [8].
    """

    picture: np.ndarray
    question: str
    answer: str
    kind: str
    facts: np.ndarray


class Desk:
    """One exercise in the making: picks a scene, lays a ring on it, keeps the facts."""

    def __init__(self, rng: np.random.Generator, split: str) -> None:
        self.rng, self.split = rng, split
        self.modality = ""

    def scene(self, *modalities: str) -> Scene:
        """Pick a scene of one of the modalities (default: any)."""
        self.modality = str(self.rng.choice(modalities or tuple(MODALITIES)))
        return source(self.modality).draw(self.split, self.rng)

    def distractor(self) -> Ring | None:
        """Pick a ring that the question does not ask about, or none."""
        return random_ring(self.rng) if self.rng.random() < 0.7 else None

    def done(self, scene: Scene, ring: Ring | None, question: str, answer: str, kind: str) -> Exercise:
        """Apply a random look, draw the ring, write the facts down."""
        seen = ANY_LOOK.apply(scene.picture, self.rng)
        facts = dict.fromkeys(HEADS, UNKNOWN)
        facts["modality"] = list(MODALITIES).index(self.modality)
        if scene.truth in _TRUTHS:
            facts["truth"] = _TRUTHS.index(scene.truth)
        if self.modality == "shapes":
            facts["color"] = _colors().get(scene.path, UNKNOWN)
        facts["ring"] = int(ring is not None)
        if ring is not None:
            facts["ring-color"] = list(RING_COLOURS).index(ring.colour)
            facts["row"], facts["column"] = (int(place * GRID / SIZE) for place in (ring.row, ring.column))
            rows, columns = (slice(int(place) - 2, int(place) + 4) for place in (ring.row, ring.column))
            facts["inside"] = min(7, int(8 * luminance(seen[rows, columns]).mean()))
        picture = to_bytes(ring.draw(seen) if ring else seen)
        return Exercise(picture, question, answer, kind, np.array(list(facts.values())))


@cache
def _colors() -> dict[str, int]:
    """The colour class of each easy-vqa picture, by path, from its own questions."""
    shapes = source("shapes")
    assert isinstance(shapes, Shapes)
    return {
        shapes.path(part, image): _COLORS.index(answer)
        for part, rows in shapes.questions.items()
        for _, answer, image in rows
        if answer in _COLORS
    }


def _easy_vqa(desk: Desk) -> Exercise:
    shapes = source("shapes")
    assert isinstance(shapes, Shapes)
    part = "test" if desk.split == "test" else "train"
    while True:
        question, answer, image = shapes.questions[part][desk.rng.integers(len(shapes.questions[part]))]
        # Three quarters of easy-vqa's answers are yes or no; half of those are passed over.
        if shapes.split_of(part, image) == desk.split and (answer not in ("yes", "no") or desk.rng.random() < 0.5):
            break
    desk.modality = "shapes"
    kind = "yes-no" if answer in ("yes", "no") else "colour-shape"
    return desk.done(shapes.scene(part, image), desk.distractor(), question, answer, kind)


def _digit(desk: Desk) -> Exercise:
    scene = desk.scene("digits")
    return desk.done(scene, desk.distractor(), "what digit is this?", scene.truth, "digit")


def _modality(desk: Desk) -> Exercise:
    scene = desk.scene()
    return desk.done(scene, desk.distractor(), "what kind of picture is this?", MODALITIES[desk.modality], "kind")


def _view(desk: Desk) -> Exercise:
    scene = desk.scene("brain MRI")
    return desk.done(scene, desk.distractor(), "from where is the brain seen?", VIEWS[scene.truth], "view")


def _has_ring(desk: Desk) -> Exercise:
    ring = random_ring(desk.rng) if desk.rng.random() < 0.5 else None
    return desk.done(desk.scene(), ring, "is there a ring?", "yes" if ring else "no", "ring")


def _ring_colour(desk: Desk) -> Exercise:
    ring = random_ring(desk.rng)
    return desk.done(desk.scene(), ring, "what color is the ring?", ring.colour, "ring-colour")


def _grid(desk: Desk) -> Exercise:
    ring = random_ring(desk.rng)
    word, place = ("row", ring.row) if desk.rng.random() < 0.5 else ("column", ring.column)
    number = int(place * GRID / SIZE) + 1
    return desk.done(desk.scene(), ring, f"in which {word} is the ring?", str(number), "ring-place")


def _on_ink(desk: Desk) -> Exercise:
    scene = desk.scene("digits", "shapes")
    if desk.modality == "digits":
        ink, word = luminance(scene.picture) > 0.4, "digit"
    else:
        ink, word = np.abs(scene.picture - scene.picture[0, 0]).sum(axis=2) > 0.15, "shape"
    wanted = desk.rng.random() < 0.5
    inside = np.zeros_like(ink)
    inside[7:-8, 7:-8] = True
    spots = np.argwhere((ink == wanted) & inside)
    if not len(spots):
        return _on_ink(desk)
    row, column = spots[desk.rng.integers(len(spots))]
    ring = random_ring(desk.rng, float(column), float(row))
    return desk.done(scene, ring, f"is the ring on the {word}?", "yes" if wanted else "no", "ring-on")


def _repeat(desk: Desk) -> Exercise:
    word = str(desk.rng.choice(WORDS))
    return desk.done(desk.scene(), desk.distractor(), f"say {word}", word, "repeat")


def _nonsense(desk: Desk) -> Exercise:
    """Ask what nobody understands: the model learns to look whatever the words, and names the kind of picture."""
    scene = desk.scene()
    words = " ".join(desk.rng.choice((*_OPENINGS, *WORDS), size=desk.rng.integers(3, 8)))
    return desk.done(scene, desk.distractor(), f"{words}?", MODALITIES[desk.modality], "nonsense")


_MIX: tuple[tuple[Callable[[Desk], Exercise], float], ...] = (
    (_easy_vqa, 0.18),
    (_digit, 0.09),
    (_modality, 0.03),
    (_view, 0.06),
    (_has_ring, 0.03),
    (_ring_colour, 0.05),
    (_grid, 0.16),
    (_on_ink, 0.09),
    (_repeat, 0.08),
    (_nonsense, 0.23),
)


def exercise(rng: np.random.Generator, split: str = "train") -> Exercise:
    """Return one exercise from the pictures of a split."""
    makers, shares = zip(*_MIX, strict=True)
    return makers[int(rng.choice(len(makers), p=shares))](Desk(rng, split))


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
