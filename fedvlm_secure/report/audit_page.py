"""The page of an audit of any kind: a verdict, facts, and sections of bars, charts and tables.

A kind of audit puts a :class:`Page` together out of what it found; :func:`write` makes one self-contained file of it.
All strings may be a stranger's: they are escaped, and what hides or turns text around is made visible. No outcome is
told by colour alone: each has a sign and a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fedvlm_secure import files
from fedvlm_secure.report import formats, templates
from fedvlm_secure.report.reading import text

GOOD, BAD, OPEN = "good", "bad", "open"  # tones


@dataclass(frozen=True, slots=True)
class Mark:
    """An outcome: a sign and a word, and whether that is good, bad, or neither."""

    sign: str
    word: str
    tone: str = OPEN


@dataclass(frozen=True, slots=True)
class Said:
    """A line of text in a cell; ``tone`` is a tone, ``"muted"``, ``"strong"`` or nothing."""

    text: str
    tone: str = ""


Cell = Mark | tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """How many there are of each outcome, as one bar with a legend; outcomes that are not there are left out."""

    label: str
    parts: tuple[tuple[Mark, int], ...]

    @property
    def known(self) -> tuple[tuple[Mark, int], ...]:
        """The parts that are there."""
        return tuple((mark, count) for mark, count in self.parts if count > 0)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as wide as ``columns``. The first cell heads its row; on a phone every row becomes a card."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; whatever is empty is left out.

    Attributes:
        notes: paragraphs under the heading.
        charts: inline SVG, such as :mod:`fedvlm_secure.report.audit_charts` draws.
    """

    heading: str
    notes: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    charts: tuple[Markup, ...] = ()
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """An audit.

    Attributes:
        mark: the verdict as an outcome; ``verdict`` is the sentence.
        said: paragraphs under the verdict: what it means, and what not.
        facts: small facts, name and value.
    """

    title: str
    mark: Mark
    verdict: str
    said: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def render(page: Page) -> str:
    """The whole page as HTML; equal pages give equal text."""
    return templates.render("audit.html.j2", (formats.count, text), {"page": page})


def write(page: Page, target: Path) -> None:
    """Write the page to ``target``, whole or not at all."""
    files.write(target, render(page).encode())


def cell(*lines: str, tone: str = "") -> tuple[Said, ...]:
    """A cell of lines of one tone; empty lines are left out."""
    return tuple(Said(line, tone) for line in lines if line)


def shortened(names: Sequence[str], most: int = 40) -> str:
    """Names in a line, the first ``most`` of them."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
