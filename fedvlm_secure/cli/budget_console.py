"""What a person sees of a privacy-budget study: the table on stdout, or plain values for ``--json``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedvlm_secure.cli.study_console import plain
from fedvlm_secure.engines.study_workers import Failure
from fedvlm_secure.report import budget, formats
from fedvlm_secure.report.budget_page import rows, target
from fedvlm_secure.report.formats import estimate, estimate_points


def as_dict(out: Path, failures: Sequence[Failure]) -> dict[str, Any]:
    """A study as plain values, for ``--json``; shares from 0 to 1, ``half`` is half of the 95 % interval."""
    study = budget.load(out)

    return {
        "study": str(out),
        "command": study.command,
        "planned": study.planned,
        "finished": len(study.cells),
        "failed": {failure.name: failure.reason for failure in failures},
        "base": study.base,
        "question-only": study.question_only,
        "results": [{key: plain(entry) for key, entry in row.items()} for row in rows(study)],
    }


def print_table(out: Path) -> None:
    """The table per strategy and ε on stdout."""
    study = budget.load(out)
    table = Table(title=f"accuracy against ε, {len(study.cells)} of {study.planned} cells")
    for heading in ("strategy", "ε", "accuracy", "gain over base, points", "gain kept"):
        table.add_column(heading, justify="left" if heading == "strategy" else "right", no_wrap=True)
    for row in rows(study):
        figures = (estimate(row["accuracy"]), estimate_points(row["gain"]), estimate(row["kept"]))
        table.add_row(row["strategy"], target(row["epsilon"]), *figures)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"question only {formats.percent(study.question_only)}, base model {formats.percent(study.base)}")
    console.print(
        "Mean over hospitals, then seeds, with 95 % intervals over seeds. Simulation view: no server sees this."
    )
    for name in ("budget.html", "budget.svg", "budget.csv"):
        console.print(str(out / name), markup=False, soft_wrap=True)
