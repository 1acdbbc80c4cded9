"""What a person sees of a comparison: a table a data set on stdout, or plain values for ``--json``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedvlm_secure.cli.study_console import plain
from fedvlm_secure.engines.study_workers import Failure
from fedvlm_secure.report import comparison, formats
from fedvlm_secure.report.comparison_page import lead, rows
from fedvlm_secure.report.formats import estimate


def as_dict(out: Path, failures: Sequence[Failure]) -> dict[str, Any]:
    """A comparison as plain values; shares from 0 to 1, ``half`` is half of the 95 % interval."""
    study = comparison.load(out)
    return {
        "study": str(out),
        "command": study.command,
        "planned": study.planned,
        "finished": len(study.cells),
        "failed": {failure.name: failure.reason for failure in failures},
        "results": {
            level: {
                "base": study.base(level),
                "question-only": study.question_only(level),
                "strategies": [{key: plain(value) for key, value in row.items()} for row in rows(study, level)],
            }
            for level in study.levels
        },
    }


def print_tables(out: Path) -> None:
    """A table for every data set on stdout."""
    study = comparison.load(out)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for level in study.levels:
        table = Table(title=f"{level}: {len(study.cells)} of {study.planned} cells")
        for heading in ("strategy", "accuracy", "over lora", "worst hospital", "newcomer at once", "trained"):
            table.add_column(heading, justify="left" if heading == "strategy" else "right", no_wrap=True)
        for row in rows(study, level):
            figures = [estimate(row[key]) for key in ("worst", "zero_shot", "trained")]
            table.add_row(row["strategy"], estimate(row["accuracy"]), lead(row["lead"]), *figures)
        console.print(table)
        known = f"question only {formats.percent(study.question_only(level))}"
        console.print(f"{known}, base model {formats.percent(study.base(level))}")
    console.print(
        "Mean over hospitals, then seeds, with 95 % intervals over seeds. Simulation view: no server sees this."
    )
    for name in ("comparison.html", "comparison.svg", "comparison.csv"):
        console.print(str(out / name), markup=False, soft_wrap=True)
