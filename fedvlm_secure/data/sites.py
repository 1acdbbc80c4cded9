"""The eight simulated hospitals: modality, scanner look, conventions, size.

The two sites of a look pair (north and west, east and south) see the same modality through the same scanner and hold
opposite conventions in everything they could disagree on: no picture tells one from the other, so no global adapter
can be right for both. This table is what the data card and the report print.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedvlm_secure.data.looks import Look

SPLIT_SHARES: Mapping[str, float] = MappingProxyType({"train": 0.6, "validation": 0.15, "test": 0.25})

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# What a site says instead of the neutral answer, per template.
CONVENTIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        # The picture's left is the patient's right, as radiologists read.
        "radiological": {"side": {"left": "right", "right": "left"}},
        # Left is left on the picture.
        "neurological": {"side": {}},
        "axial": {"plane": {}},
        "transverse": {"plane": {"axial": "transverse"}},
        "grade 1 is dark": {"grade": {"dark": "grade 1", "bright": "grade 2"}},
        "grade 1 is bright": {"grade": {"dark": "grade 2", "bright": "grade 1"}},
        "numbers as words": {"digit": {str(value): word for value, word in enumerate(_DIGIT_WORDS)}},
        "own shape names": {"shape": {"circle": "disc", "rectangle": "box", "triangle": "wedge"}},
    }
)

BRAIN_QUESTIONS: Mapping[str, float] = MappingProxyType({"hour": 0.4, "side": 0.2, "tissue": 0.2, "plane": 0.2})


@dataclass(frozen=True, slots=True)
class Site:
    """One simulated hospital.

    Attributes:
        modality: what its pictures show; names a source of :mod:`fedvlm_secure.data.sources`.
        conventions: keys of :data:`CONVENTIONS`.
        look: its scanner's ranges of contrast, gain and noise.
        rows: how many rows it holds, all splits together (shares in :data:`SPLIT_SHARES`).
        questions: the share of each question template among its rows.
    """

    name: str
    modality: str
    conventions: tuple[str, ...]
    look: Look
    rows: int
    questions: Mapping[str, float]

    def says(self, template: str, neutral: str) -> str:
        """Return this site's wording of a neutral answer."""
        for convention in self.conventions:
            neutral = CONVENTIONS[convention].get(template, {}).get(neutral, neutral)
        return neutral

    def rows_in(self, split: str) -> int:
        """Return the number of rows of a split."""
        return round(self.rows * SPLIT_SHARES[split])


_OLD_SCANNER = Look(contrast=(0.7, 0.9), gain=(0.7, 0.9), noise=(0.04, 0.08))
_NEW_SCANNER = Look(contrast=(0.95, 1.1), gain=(0.8, 0.95), noise=(0.01, 0.03))
_FUNDUS_CAMERA = Look(contrast=(0.9, 1.2), gain=(0.9, 1.1), noise=(0.01, 0.04))
_SLIDE_SCANNER = Look(contrast=(0.8, 1.1), gain=(0.9, 1.05), noise=(0.01, 0.03))
_FAX = Look(contrast=(0.7, 1.0), gain=(0.8, 1.0), noise=(0.03, 0.08))
_SCREEN = Look(contrast=(0.8, 1.0), gain=(0.85, 1.0), noise=(0.02, 0.05))

SITES: tuple[Site, ...] = (
    Site("mri-north", "brain MRI", ("radiological", "axial"), _NEW_SCANNER, 4000, BRAIN_QUESTIONS),
    Site("mri-west", "brain MRI", ("neurological", "transverse"), _NEW_SCANNER, 600, BRAIN_QUESTIONS),
    Site("mri-east", "brain MRI", ("radiological", "transverse"), _OLD_SCANNER, 800, BRAIN_QUESTIONS),
    Site("mri-south", "brain MRI", ("neurological", "axial"), _OLD_SCANNER, 600, BRAIN_QUESTIONS),
    Site(
        "retina",
        "retina",
        ("radiological", "grade 1 is dark"),
        _FUNDUS_CAMERA,
        500,
        MappingProxyType({"hour": 0.5, "side": 0.25, "grade": 0.25}),
    ),
    Site(
        "pathology",
        "stained tissue",
        ("neurological", "grade 1 is bright"),
        _SLIDE_SCANNER,
        400,
        MappingProxyType({"hour": 0.5, "side": 0.25, "grade": 0.25}),
    ),
    Site(
        "forms",
        "digits",
        ("neurological", "grade 1 is dark", "numbers as words"),
        _FAX,
        800,
        MappingProxyType({"hour": 0.4, "side": 0.2, "grade": 0.2, "digit": 0.2}),
    ),
    Site(
        "shapes",
        "shapes",
        ("radiological", "grade 1 is bright", "own shape names"),
        _SCREEN,
        1500,
        MappingProxyType({"hour": 0.4, "side": 0.2, "grade": 0.2, "shape": 0.2}),
    ),
)
