"""What all studies have in common: figures kept cell by cell, and intervals over seeds.

A study's folder holds ``study.json``, what was asked, and one ``cells/NAME.json`` a finished cell; everything else
follows from them. The unit of chance is a seed: a cell's figure is the unweighted mean over its hospitals, and an
interval is Student's t over the seeds (Gosset 1908), so it says nothing about the choice of the test questions.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.files import read_json
from fedvlm_secure.report.headline import SiteRow
from fedvlm_secure.report.reading import Line, number, text

_Cell = TypeVar("_Cell")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval, None for a single seed."""

    mean: float
    half: float | None
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean and the half-width of its 95 % interval by Student's t with ``len(values) - 1`` degrees of freedom."""
    if len(values) < 2:
        return Estimate(fmean(values), None, len(values))
    from scipy.special import stdtrit  # loads in no time, unlike scipy.stats

    quantile = float(stdtrit(len(values) - 1, 0.975))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))


def over_seeds(cells: Iterable[_Cell], figure: Callable[[_Cell], float | None]) -> Estimate | None:
    """The estimate over cells that differ in their seed; None unless there are any and all have the figure."""
    values = [figure(cell) for cell in cells]
    known = [value for value in values if value is not None]
    return estimate(known) if known and len(known) == len(values) else None


def site_figures(row: SiteRow) -> dict[str, Any]:
    """A hospital's row as a cell's file holds it."""
    return {
        "site": row.site,
        "description": row.description,
        "rows": row.rows,
        "question-only": row.question_only,
        "base": row.base,
        "final": row.final,
    }


def object_in(path: Path) -> Line:
    """The JSON object in a study's file; raises :class:`MisuseError` if it holds none."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise MisuseError(f"{path} is damaged: it holds no JSON object")
    return value


def site_of(line: Line) -> SiteRow:
    """What :func:`site_figures` has written."""
    rows = number(line.get("rows"))
    return SiteRow(
        site=text(line.get("site")),
        description=text(line.get("description")),
        rows=None if rows is None else int(rows),
        question_only=number(line.get("question-only")),
        base=number(line.get("base")),
        final=number(line.get("final")),
    )


def field(value: float | None) -> str:
    """A figure in a CSV file; empty if it is not known."""
    return "" if value is None else f"{value:.10g}"
