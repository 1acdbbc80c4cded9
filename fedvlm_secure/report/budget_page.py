"""A study's results: ``budget.csv``, ``budget.svg`` and the page ``budget.html``, all from the study's folder alone."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedvlm_secure import files
from fedvlm_secure.report import budget, budget_charts, formats, templates
from fedvlm_secure.report.budget import LOCAL, Epsilon, Study
from fedvlm_secure.report.reading import names, number, text
from fedvlm_secure.report.study import Estimate

LARGE = 1800
"""Training rows from which a hospital counts as large in the table of what is kept: 3,000 rows, of which 60 % train."""


def write(folder: Path) -> Path:
    """Write ``budget.csv``, ``budget.svg`` and ``budget.html``; return the page. Equal studies give equal bytes.

    Raises:
        MisuseError: the folder holds no study, or a file of it is damaged.
    """
    study = budget.load(folder)
    here = Path(__file__).parent
    drawing = budget_charts.figure(study)
    files.write(folder / "budget.csv", budget.table(study).encode())
    files.write(folder / "budget.svg", budget_charts.document(drawing, here / "report.css").encode())
    shown = (formats.percent, formats.count, formats.decimal, formats.estimate, formats.estimate_points, upper, target)
    page = templates.render("budget.html.j2", shown, {**_context(study), "figure": drawing})
    files.write(folder / "budget.html", page.encode())
    return folder / "budget.html"


def rows(study: Study) -> Iterator[dict[str, Any]]:
    """The table: a row a strategy and ε that has finished cells, then the local baseline."""
    asked = [(strategy, epsilon) for strategy in study.strategies for epsilon in study.epsilons]
    large = study.of_sites(lambda row: (row.rows or 0) >= LARGE)
    for strategy, epsilon in dict.fromkeys([*asked, (LOCAL, None)]):
        if study.group(strategy, epsilon):
            yield {
                "strategy": strategy,
                "epsilon": epsilon,
                "accuracy": study.accuracy(strategy, epsilon),
                "gain": study.gain(strategy, epsilon),
                "kept": None if epsilon is None else study.kept(strategy, epsilon),
                "kept_large": None if epsilon is None else large.kept(strategy, epsilon),
            }


def upper(value: float | None) -> str:
    """A bound with three decimals, rounded up: what is shown holds as well."""
    return formats.UNKNOWN if value is None else f"{math.ceil(1000 * value) / 1000:.3f}"


def target(epsilon: Epsilon) -> str:
    """A target ε, or ``none``."""
    return "none" if epsilon is None else f"{epsilon:g}"


def _context(study: Study) -> dict[str, Any]:
    private = [cell for cell in study.cells if cell.epsilon is not None]
    spent = [cell.spent for cell in private]
    known = [value for value in spent if value is not None]
    return {
        "study": study,
        "rows": list(rows(study)),
        "has_large": any((site.rows or 0) >= LARGE for site in study.sites) and len(study.sites) > 1,
        "large": LARGE,
        "seeds": sorted({cell.seed for cell in study.cells}),
        "differences": _differences(study),
        "sites": [_site(study, place) for place in range(len(study.sites))],
        "swatches": [(strategy, budget_charts.swatch(study, strategy)) for strategy in study.strategies],
        "privacy": [_privacy(study, epsilon) for epsilon in study.epsilons if epsilon is not None],
        "private": len(private),
        "without": len(study.cells) - len(private),
        "spent": sum(known) if known and len(known) == len(spent) else None,
        "insecure": sorted({line for cell in study.cells for line in cell.insecure}),
        "simulated": 'data = "hospitals"' in study.settings.splitlines(),
        "versions": sorted({(text(k), text(v)) for cell in study.cells for k, v in cell.versions.items()}),
    }


def _differences(study: Study) -> list[dict[str, Any]]:
    """The first strategy against each of the others, ε by ε, paired by seed."""
    first, *others = study.strategies
    return [
        {"first": first, "other": other, "epsilon": epsilon, "points": lead, "sure": _is_sure(lead)}
        for other in others
        for epsilon in study.epsilons
        if (lead := study.difference(first, other, epsilon)) is not None
    ]


def _is_sure(lead: Estimate) -> bool:
    return lead.half is not None and abs(lead.mean) > lead.half


def _site(study: Study, place: int) -> dict[str, Any]:
    row = study.sites[place]
    alone = study.of_site(row.site)
    swept = [(strategy, epsilon) for strategy in study.strategies for epsilon in study.epsilons]
    return {
        "row": row,
        "panel": budget_charts.site_panel(study, row.site, f"site{place}"),
        "local": alone.accuracy(LOCAL, None),
        "figures": [alone.accuracy(strategy, epsilon) for strategy, epsilon in swept],
    }


def _privacy(study: Study, epsilon: float) -> dict[str, Any]:
    """What the cells of one ε state, the weakest of each figure; sentences as the first cell states them."""
    cells = [cell for cell in study.cells if cell.epsilon == epsilon]
    stated = cells[0].privacy if cells else {}
    return {
        "epsilon": epsilon,
        "spent": study.worst(epsilon, lambda cell: cell.spent),
        "delta": study.worst(epsilon, lambda cell: number(cell.privacy.get("delta"))),
        "noise": sorted({n for cell in cells if (n := number(cell.privacy.get("noise-multiplier"))) is not None}),
        "sentences": names(stated.get("sentences")),
        "facts": [(text(key), _plainly(value)) for key, value in stated.items() if _plainly(value)],
    }


def _plainly(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    figure = number(value)
    return text(value) if figure is None else f"{figure:.6g}"
