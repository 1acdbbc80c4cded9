"""Where pictures come from, and which part of each source belongs to which split.

Every source answers ``draw(split, rng)`` with a scene. A split owns whole neighbourhoods: blocks of brain
slices, areas of a photograph, ranges of digits, easy-vqa images. None is ever shared between splits, for any
site. Nothing here is copied into this package: the files are read from installed packages.
"""

import csv
import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fedvlm_secure.data.looks import SIZE
from fedvlm_secure.errors import MisuseError

SPLITS = ("train", "validation", "test")
PLANES = ("axial", "coronal", "sagittal")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture before any scanner: float32 [64, 64, 3] in 0..1, where it is from, what is true of it."""

    picture: np.ndarray
    path: str
    truth: str = ""
    tissue: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> bool [64, 64]


class Source(Protocol):
    """A supply of scenes; ``wanted`` asks for a plane, a digit or a shape."""

    def draw(self, split: str, rng: np.random.Generator, wanted: str | None = None) -> Scene:
        """Return one scene of the split."""
        ...


def package_folder(package: str) -> Path:
    """Return an installed package's folder without importing it (importing nilearn alone costs 1.3 s).

    Raises:
        MisuseError: the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MisuseError(
            f"the demo data needs the package {package!r}, which is not installed: pip install 'fedvlm-secure[demo]'"
        )
    return Path(next(iter(spec.submodule_search_locations)))


class Brain:
    """Slices of the MNI152 template (an average of many healthy brains) with its grey and white matter maps."""

    # Slices a block, and how many at each end of a block are used by nobody: 4 mm lie between splits.
    BLOCK, MARGIN = 12, 2
    PATTERN = ("train", "train", "validation", "train", "test")
    # The template is mirror-symmetric, so a left sagittal slice equals a right one: only one half is used.
    RANGES: Mapping[str, tuple[int, int]] = {"sagittal": (100, 160), "coronal": (44, 188), "axial": (36, 144)}
    AXIS: Mapping[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
    CANVAS = 240

    def __init__(self) -> None:
        self._canvases: dict[tuple[str, str, int], Image.Image] = {}
        package_folder("nibabel")
        import nibabel

        folder = package_folder("nilearn") / "datasets" / "data"
        self._volumes: dict[str, np.ndarray] = {}
        for kind in ("t1", "gm", "wm"):
            image: Any = nibabel.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
            self._volumes[kind] = np.asarray(image.dataobj)

    @classmethod
    def slices(cls, plane: str, split: str) -> list[int]:
        """Return the slice numbers of a plane that belong to the split."""
        first, end = cls.RANGES[plane]
        inside = range(cls.MARGIN, cls.BLOCK - cls.MARGIN)
        return [
            number
            for number in range(first, end)
            if (number - first) % cls.BLOCK in inside
            and cls.PATTERN[(number - first) // cls.BLOCK % len(cls.PATTERN)] == split
        ]

    def draw(self, split: str, rng: np.random.Generator, wanted: str | None = None) -> Scene:
        """Return a slice, shifted and scaled a little; rows run from superior or anterior downwards."""
        plane = wanted or str(rng.choice(PLANES))
        number = int(rng.choice(self.slices(plane, split)))
        width = rng.uniform(192, 216)
        left, top = (rng.uniform(0, self.CANVAS - width) for _ in "xy")
        box = (left, top, left + width, top + width)
        t1, grey, white = (self._cut(kind, plane, number, box) for kind in ("t1", "gm", "wm"))
        tissue = {"grey matter": grey > 0.6, "white matter": white > 0.6, "outside": t1 < 0.03}
        picture = np.repeat(t1[..., None], 3, axis=2)
        return Scene(picture, f"nilearn/mni152/{plane}/{number:03d}", plane, tissue)

    def _cut(self, kind: str, plane: str, number: int, box: tuple[float, float, float, float]) -> np.ndarray:
        key = (kind, plane, number)
        if key not in self._canvases:
            self._canvases[key] = self._canvas(*key)
        small = self._canvases[key].resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        return np.asarray(small, np.float32) / 255

    def _canvas(self, kind: str, plane: str, number: int) -> Image.Image:
        # Plain indexing gives a view; np.take would copy the whole volume.
        place: list[slice | int] = [slice(None)] * 3
        place[self.AXIS[plane]] = number
        flat = self._volumes[kind][tuple(place)].T[::-1]
        height, width = flat.shape
        canvas = np.zeros((self.CANVAS, self.CANVAS), np.uint8)
        top, left = (self.CANVAS - height) // 2, (self.CANVAS - width) // 2
        canvas[top : top + height, left : left + width] = flat
        return Image.fromarray(canvas)


class Tiles:
    """Square cut-outs of one large photograph; each split owns a horizontal band of it."""

    def __init__(self, name: str, file: str, bands: Mapping[str, tuple[int, int]], widths: tuple[int, int]) -> None:
        self._name, self._bands, self._widths = name, bands, widths
        self._photograph = Image.open(package_folder("skimage") / "data" / file).convert("RGB")

    def draw(self, split: str, rng: np.random.Generator, wanted: str | None = None) -> Scene:
        """Return a tile, mirrored at random; tiles that are mostly black border are not used."""
        top, bottom = self._bands[split]
        while True:
            width = int(rng.integers(*self._widths))
            x = int(rng.integers(0, self._photograph.width - width))
            y = int(rng.integers(top, bottom - width))
            box = (x, y, x + width, y + width)
            small = self._photograph.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
            picture = np.asarray(small, np.float32) / 255
            if (picture.max(axis=2) > 0.12).mean() > 0.9:
                break
        picture = picture[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        return Scene(picture, f"skimage/{self._name}/x{x:04d}-y{y:04d}-w{width:04d}")


class Digits:
    """scikit-learn's handwritten digits, 8x8, enlarged. The file is ordered by writer, so ranges part writers too."""

    RANGES: Mapping[str, range] = {
        "train": range(1150),
        "validation": range(1150, 1400),
        "test": range(1400, 1797),
    }

    def __init__(self) -> None:
        with gzip.open(package_folder("sklearn") / "datasets" / "data" / "digits.csv.gz", "rt") as lines:
            table = np.array([[float(value) for value in row] for row in csv.reader(lines)])
        self._pictures = (table[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32)
        self._values = table[:, -1].astype(int)

    def draw(self, split: str, rng: np.random.Generator, wanted: str | None = None) -> Scene:
        """Return a digit, white on black, at a random size and place."""
        numbers = np.asarray(self.RANGES[split])
        if wanted is not None:
            numbers = numbers[self._values[numbers] == int(wanted)]
        number = int(rng.choice(numbers))
        side = int(rng.integers(44, SIZE + 1))
        glyph = Image.fromarray(self._pictures[number]).resize((side, side), Image.Resampling.BILINEAR)
        canvas = np.zeros((SIZE, SIZE), np.float32)
        x, y = rng.integers(0, SIZE - side + 1, 2)
        canvas[y : y + side, x : x + side] = np.asarray(glyph)
        picture = np.repeat(canvas[..., None], 3, axis=2)
        return Scene(picture, f"sklearn/digits/{number:04d}", str(self._values[number]))


class Shapes:
    """easy-vqa: one coloured shape on a light ground. Its own test split stays a test split."""

    # Of the 4,000 training images the last 400 are validation.
    VALIDATION_FROM = 3600

    def __init__(self) -> None:
        self._folder = package_folder("easy_vqa") / "data"
        self.questions = {"train": self._read("train"), "test": self._read("test")}
        self._shape = {
            part: {image: answer for _, answer, image in rows if answer in SHAPES}
            for part, rows in self.questions.items()
        }

    def _read(self, part: str) -> list[tuple[str, str, int]]:
        rows = json.loads((self._folder / part / "questions.json").read_text())
        return [(str(question), str(answer), int(image)) for question, answer, image in rows]

    @classmethod
    def split_of(cls, part: str, image: int) -> str:
        """Return the split that an easy-vqa image belongs to."""
        if part == "test":
            return "test"
        return "validation" if image >= cls.VALIDATION_FROM else "train"

    @cache  # noqa: B019  one instance lives for the whole build
    def _of_shape(self, split: str, shape: str | None) -> list[int]:
        part = "test" if split == "test" else "train"
        return [
            image
            for image, name in sorted(self._shape[part].items())
            if self.split_of(part, image) == split and shape in (None, name)
        ]

    @staticmethod
    def path(part: str, image: int) -> str:
        """Return what ``image_path`` says of an easy-vqa image."""
        return f"easy-vqa/{part}/{image:04d}"

    def scene(self, part: str, image: int) -> Scene:
        """Return an easy-vqa image and the name of its shape, where a question tells."""
        with Image.open(self._folder / part / "images" / f"{image}.png") as opened:
            picture = np.asarray(opened.convert("RGB"), np.float32) / 255
        return Scene(picture, self.path(part, image), self._shape[part].get(image, ""))

    def draw(self, split: str, rng: np.random.Generator, wanted: str | None = None) -> Scene:
        """Return a shape picture; ``wanted`` is circle, rectangle or triangle."""
        part = "test" if split == "test" else "train"
        image = int(rng.choice(self._of_shape(split, wanted)))
        return self.scene(part, image)


@cache
def source(modality: str) -> Source:
    """Return the source of a modality, read once: brain MRI, retina, stained tissue, digits or shapes."""
    return _SOURCES[modality]()


def _retina() -> Source:
    bands = {"train": (60, 780), "validation": (820, 1040), "test": (1080, 1360)}
    return Tiles("retina", "retina.jpg", bands, (100, 200))


def _stained_tissue() -> Source:
    bands = {"train": (0, 290), "validation": (300, 396), "test": (406, 512)}
    return Tiles("ihc", "ihc.png", bands, (56, 88))


_SOURCES: Mapping[str, Callable[[], Source]] = {
    "brain MRI": Brain,
    "retina": _retina,
    "stained tissue": _stained_tissue,
    "digits": Digits,
    "shapes": Shapes,
}
