"""The table per hospital: what the federation was worth to each of them. The one home of this computation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report.reading import Line, SiteRecord, load_sites, mapping, number, text


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One hospital's accuracies on its own test split, from 0 to 1; None where not measured (yet).

    Attributes:
        description: what a simulated hospital is; empty for any other.
        rows: training rows.
        question_only: always the most frequent training answer to the question, without looking at the picture.
        base: the model before any federated round.
        final: the model after the last round, with the hospital's personal part.
    """

    site: str
    description: str
    rows: int | None
    question_only: float | None
    base: float | None
    final: float | None

    @property
    def gain(self) -> float | None:
        """``final`` minus the better of the two others; None unless all three are known."""
        if self.final is None or self.base is None or self.question_only is None:
            return None
        return self.final - max(self.base, self.question_only)


def table(run: Path) -> list[SiteRow]:
    """One row a hospital, by name.

    Raises:
        MisuseError: no hospital has recorded anything in ``run``, or a file is damaged.
    """
    sites = load_sites(Path(run))
    if not sites:
        raise MisuseError(f"{run} holds no hospital's figures: sites/*/summary.json is missing")
    return [site_row(site) for site in sites]


def site_row(site: SiteRecord) -> SiteRow:
    """A hospital's row; without a summary, as in an unfinished run, from its metrics."""
    rows = number(mapping(site.summary, "rows").get("train"))
    return SiteRow(
        site=site.name,
        description=text(site.summary.get("description")),
        rows=None if rows is None else int(rows),
        question_only=number(site.summary.get("question-only")),
        base=_first(number(site.summary.get("base")), _accuracy(site.stage("base", "test"))),
        final=_first(number(site.summary.get("final")), _accuracy(site.stage("final", "test"))),
    )


def beats_both(rows: Iterable[SiteRow]) -> int:
    """At how many hospitals the last model beats both the question-only guesser and the base model."""
    return sum(row.gain is not None and row.gain > 0 for row in rows)


def mean(values: Sequence[float | None]) -> float | None:
    """The unweighted mean over the hospitals; None unless every one has a value, so that columns stay comparable."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _accuracy(lines: Sequence[Line]) -> float | None:
    return number(lines[-1].get("accuracy")) if lines else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
