"""A comparison's results: ``comparison.csv``, ``.svg`` and the page ``.html``, all from the study's folder alone."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedvlm_secure import data, files
from fedvlm_secure.report import comparison, comparison_charts, formats, templates
from fedvlm_secure.report.budget_charts import document
from fedvlm_secure.report.comparison import Cell, Study
from fedvlm_secure.report.formats import UNKNOWN
from fedvlm_secure.report.reading import text
from fedvlm_secure.report.study import Estimate

SMALL = 600
"""Training rows below which a hospital counts as small in the table of strategies."""
REFERENCE, LOCAL = "lora", "local"


def write(folder: Path) -> Path:
    """Write ``comparison.csv``, ``.svg`` and ``.html``; return the page. Equal studies give equal bytes.

    Raises:
        MisuseError: the folder holds no comparison, or a file of it is damaged.
    """
    study = comparison.load(folder)
    here = Path(__file__).parent
    drawing = comparison_charts.figure(study)
    files.write(folder / "comparison.csv", comparison.table(study).encode())
    files.write(folder / "comparison.svg", document(drawing, here / "report.css").encode())
    shown = (formats.percent, formats.count, formats.seconds, formats.size, formats.estimate, formats.estimate_points)
    page = templates.render("comparison.html.j2", (*shown, lead), {**_context(study), "figure": drawing})
    files.write(folder / "comparison.html", page.encode())
    return folder / "comparison.html"


def rows(study: Study, level: str) -> Iterator[dict[str, Any]]:
    """A data set's table: a row a strategy that has finished cells."""
    small = study.of_sites(lambda row: (row.rows or SMALL) < SMALL)
    for strategy in study.strategies:
        group = study.group(level, strategy)
        if not group:
            continue

        def figure(show: Callable[[Cell], float | None], strategy: str = strategy) -> Estimate | None:
            return study.estimate(level, strategy, show)

        first = next(iter(group.values()))
        yield {
            "strategy": strategy,
            "accuracy": study.accuracy(level, strategy),
            "lead": None if strategy == REFERENCE else study.lead(level, strategy, REFERENCE),
            "worst": figure(lambda cell: cell.worst),
            "small": small.accuracy(level, strategy),
            "zero_shot": figure(lambda cell: cell.newcomer.zero_shot if cell.newcomer else None),
            "trained": figure(lambda cell: cell.newcomer.trained if cell.newcomer else None),
            "parameters": first.shared_parameters,
            "upload": figure(lambda cell: cell.upload),
            "seconds": figure(lambda cell: cell.seconds),
            "tuned": first.tuned,
        }


def lead(value: Estimate | None) -> str:
    """A relative difference and its interval, such as ``+24.5 ± 1.3 %``."""
    points = formats.estimate_points(value)
    return points if value is None else f"{points}\u202f%"


def _context(study: Study) -> dict[str, Any]:
    seeds = sorted({cell.seed for cell in study.cells})
    newcomers = [cell.newcomer for cell in study.cells if cell.newcomer is not None]
    return {
        "study": study,
        "seeds": seeds,
        "reference": REFERENCE,
        "small": SMALL,
        "levels": [_level(study, level) for level in study.levels],
        "newcomer": newcomers[0] if newcomers else None,
        "tuning": list(_tuning(study)),
        "protocols": sorted({cell.protocol for cell in study.cells if cell.protocol}),
        "insecure": sorted({line for cell in study.cells for line in cell.insecure}),
        "simulated": any(data.level_of(level) is not None for level in study.levels),
        "versions": sorted({(text(k), text(v)) for cell in study.cells for k, v in cell.versions.items()}),
        "rounds": tomllib.loads(study.settings).get("rounds", UNKNOWN),
    }


def _level(study: Study, level: str) -> dict[str, Any]:
    sites = []
    for place, row in enumerate(study.sites(level)):
        alone = study.of_site(row.site)
        sites.append(
            {
                "row": row,
                "panel": comparison_charts.site_panel(study, level, row.site, f"{level}-site{place}"),
                "figures": [alone.accuracy(level, strategy) for strategy in study.strategies],
            }
        )
    return {
        "name": level,
        "says": _says(level),
        "rows": list(rows(study, level)),
        "sites": sites,
        "base": study.base(level),
        "question_only": study.question_only(level),
    }


def _says(level: str) -> str:
    known = data.level_of(level)
    if known is None:
        return ""
    pictures = "their own pictures and questions" if known.pictures else "the same kinds of pictures and questions"
    conventions = "their own conventions" if known.conventions else "one convention"
    return f"Hospitals have {pictures}, and {conventions}."


def _tuning(study: Study) -> Iterator[dict[str, Any]]:
    """What was tried for each strategy, with its validation accuracy."""
    for strategy in study.strategies:
        tried = [(cell.tuned, cell.validation) for cell in study.tuning if cell.strategy == strategy]
        if tried:
            best = max(range(len(tried)), key=lambda place: tried[place][1] or 0.0)
            yield {"strategy": strategy, "tried": tried, "best": best}
