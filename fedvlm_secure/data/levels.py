"""How unlike the hospitals are, as data sets: in their pictures, in their conventions, in both or in neither.

All four have the same hospitals with the same numbers of rows. Where pictures are mixed, a hospital's rows are what the
eight hospitals together see and ask, in proportion to their rows. Where there is one convention, all name what is on
the picture alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fedvlm_secure.data.looks import Look
from fedvlm_secure.data.sites import BRAIN_QUESTIONS, SITES, Site

COMMON = ("radiological", "grade 1 is dark")
_NEWCOMER = "-newcomer"


@dataclass(frozen=True, slots=True)
class Level:
    """What differs between hospitals.

    Attributes:
        name: the data set's.
        pictures: modality, scanner and questions are the hospital's own.
        conventions: the answers are in the hospital's own terms.
    """

    name: str
    pictures: bool
    conventions: bool


LEVELS: Mapping[str, Level] = MappingProxyType(
    {
        level.name: level
        for level in (
            Level("hospitals", pictures=True, conventions=True),
            Level("hospitals-conventions", pictures=False, conventions=True),
            Level("hospitals-pictures", pictures=True, conventions=False),
            Level("hospitals-iid", pictures=False, conventions=False),
        )
    }
)

NEWCOMER = Site(
    "mri-new",
    "brain MRI",
    ("neurological", "transverse"),
    Look(contrast=(0.8, 1.0), gain=(0.75, 0.9), noise=(0.02, 0.05)),
    400,
    BRAIN_QUESTIONS,
)
"""A ninth hospital that no run has seen; its scanner's look lies between the others'."""


def level_of(place: object) -> Level | None:
    """How unlike the hospitals of a data set are; None where they are not simulated."""
    return LEVELS.get(place.removesuffix(_NEWCOMER)) if isinstance(place, str) else None


def newcomer_of(data_set: str) -> str:
    """The name of the data set that holds the ninth hospital's rows, made as ``data_set``'s are."""
    return data_set + _NEWCOMER


def sites_of(place: object) -> tuple[Site, ...]:
    """The simulated hospitals of a data set, with the conventions they have there; none for other data sets."""
    level = level_of(place)
    if level is None:
        return ()
    sites = (NEWCOMER,) if str(place).endswith(_NEWCOMER) else SITES
    return sites if level.conventions else tuple(replace(site, conventions=COMMON) for site in sites)


def description(place: object, name: str) -> str:
    """What a simulated hospital is, in a line; empty for others."""
    level = level_of(place)
    for site in sites_of(place):
        if site.name == name:
            pictures = site.modality if level is not None and level.pictures else "pictures of all eight"
            return f"{pictures}; {', '.join(site.conventions)}"
    return ""
