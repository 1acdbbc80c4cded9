"""What a person sees of a study: bars on a terminal, plain lines elsewhere, both on stderr; the table on stdout."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedvlm_secure.cli.interruption import interrupting
from fedvlm_secure.engines.budget_workers import Failure, Watch
from fedvlm_secure.report import budget, formats
from fedvlm_secure.report.budget_page import estimate, estimate_points, rows, target


class Lines(Watch):
    """One line a cell, for logs and pipes."""

    interrupted = False

    def __init__(self) -> None:
        self._cells, self._done = 0, 0
        self._since: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)

    def study_begins(self, cells: int, kept: int) -> None:
        """See :class:`Watch`."""
        self._cells, self._done = cells, kept
        self.say(f"{cells} cells" + (f", {kept} of them finished earlier" if kept else ""))

    def cell_begins(self, name: str) -> None:
        """See :class:`Watch`."""
        self._since[name] = time.monotonic()
        self.say(f"{name} begins")

    def cell_moves(self, name: str, done: float, what: str) -> None:
        """See :class:`Watch`."""
        if self.interrupted:  # Ctrl-C came inside a library's callback, which swallows exceptions
            raise KeyboardInterrupt

    def cell_ends(self, name: str, accuracy: float | None) -> None:
        """See :class:`Watch`."""
        self._done += 1
        spent = formats.seconds(time.monotonic() - self._since[name])
        self.say(f"{name}: accuracy {formats.percent(accuracy)}, {spent}; {self._done} of {self._cells} cells")

    def cell_fails(self, failure: Failure) -> None:
        """See :class:`Watch`."""
        self.say(f"{failure.name} failed: {failure.reason}")


class Bars(Lines):
    """A bar for the study with its time left, and one for each cell that is running."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._study = progress.add_task("cells", total=None)
        self._running: dict[str, tuple[TaskID, float]] = {}

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def cell_begins(self, name: str) -> None:
        """See :class:`Watch`."""
        self._since[name] = time.monotonic()
        self._running[name] = (self._progress.add_task(name, total=1.0), 0.0)

    def cell_moves(self, name: str, done: float, what: str) -> None:
        """See :class:`Watch`."""
        super().cell_moves(name, done, what)
        bar = self._running[name][0]
        self._running[name] = (bar, done)
        self._progress.update(bar, description=f"{name}: {what}", completed=done)
        self._update()

    def cell_ends(self, name: str, accuracy: float | None) -> None:
        """See :class:`Watch`."""
        self._progress.remove_task(self._running.pop(name)[0])
        super().cell_ends(name, accuracy)
        self._update()

    def cell_fails(self, failure: Failure) -> None:
        """See :class:`Watch`."""
        self._progress.remove_task(self._running.pop(failure.name)[0])
        super().cell_fails(failure)

    def _update(self) -> None:
        done = self._done + sum(share for _, share in self._running.values())
        self._progress.update(self._study, total=self._cells, completed=done)


@contextmanager
def watch(out: Path) -> Iterator[Watch]:
    """A watch for this terminal; an interruption says how to go on."""
    console = Console(stderr=True)
    try:
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console, transient=True) as progress:
                bars = Bars(progress)
                with interrupting(bars):
                    yield bars
        else:
            lines = Lines()
            with interrupting(lines):
                yield lines
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with the study in {out}", file=sys.stderr)
        raise


def as_dict(out: Path, failures: Sequence[Failure]) -> dict[str, Any]:
    """A study as plain values, for ``--json``; shares from 0 to 1, ``half`` is half of the 95 % interval."""
    study = budget.load(out)

    def value(figure: budget.Estimate | None) -> dict[str, Any] | None:
        return None if figure is None else {"mean": figure.mean, "half": figure.half, "seeds": figure.seeds}

    results = [
        {key: value(entry) if isinstance(entry, budget.Estimate) else entry for key, entry in row.items()}
        for row in rows(study)
    ]
    return {
        "study": str(out),
        "command": study.command,
        "planned": study.planned,
        "finished": len(study.cells),
        "failed": {failure.name: failure.reason for failure in failures},
        "base": study.base,
        "question-only": study.question_only,
        "results": results,
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
