"""What a person sees: progress bars on a terminal, plain lines elsewhere, the table at the end. All of it on stderr.

Standard output is for results: the table, or one JSON object.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedvlm_secure.cli.interruption import interrupting
from fedvlm_secure.engines.local import RunResult
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import RoundAbortedError
from fedvlm_secure.report import SiteRow, beats_both


class PlainObserver(Observer):
    """One line an event that matters, for logs and pipes."""

    resumable: Path | None = None
    rounds = 0
    interrupted = False

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, file=sys.stderr, flush=True)

    def stop_if_asked(self) -> None:
        """Interrupt again where Ctrl-C came inside a library's callback, which swallows exceptions."""
        if self.interrupted:
            raise KeyboardInterrupt

    def loading(self, what: str) -> None:
        """See :class:`Observer`."""
        self.say(f"loading {what}")

    def skipped(self, what: str) -> None:
        """See :class:`Observer`."""
        self.say(what)

    def logged(self, what: str) -> None:
        """See :class:`Observer`."""
        self.stop_if_asked()
        self.say(what)

    def round_begins(self, round_index: int, rounds: int, attempt: int, sites: int) -> None:
        """See :class:`Observer`."""
        self.stop_if_asked()
        self.rounds = rounds

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        """See :class:`Observer`."""
        self.stop_if_asked()

    def phase_ends(self, phase: str, seconds: float) -> None:
        """See :class:`Observer`."""
        self.stop_if_asked()

    def round_ends(self, round_index: int, survivors: int, cohort: int, accuracy: float) -> None:
        """See :class:`Observer`."""
        figure = "" if accuracy != accuracy else f", validation accuracy {accuracy:.3f} (mean over sites)"
        name = f"round {round_index}" if round_index <= self.rounds else "closing evaluation"
        self.say(f"{name}: {survivors} of {cohort} sites in the sum{figure}")

    def spent(self, epsilons: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
        least, most = (f"{figure(epsilons.values()):.3f}" for figure in (min, max))
        range_ = most if least == most else f"{least} to {most}"
        self.say(f"  privacy spent so far, by the hospitals' own ledgers: epsilon {range_}")

    def round_aborts(self, round_index: int, attempt: int, reason: str) -> None:
        """See :class:`Observer`."""
        self.say(f"round {round_index}, attempt {attempt} aborted: {reason}")


class BarObserver(PlainObserver):
    """Two progress bars: the run with its time left, and what happens now with site and loss."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._run = progress.add_task("loading", total=None)
        self._now = progress.add_task("", total=None)
        self._done = 0.0
        self._share = 0.0

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def loading(self, what: str) -> None:
        """See :class:`Observer`."""
        self._progress.update(self._now, description=what)

    def round_begins(self, round_index: int, rounds: int, attempt: int, sites: int) -> None:
        """See :class:`Observer`."""
        super().round_begins(round_index, rounds, attempt, sites)
        title = f"round {round_index} of {rounds}" if round_index <= rounds else "closing evaluation"
        title += f", attempt {attempt}" if attempt > 1 else ""
        self._done, self._share = round_index - 1.0, 1 / sites
        self._progress.update(self._run, description=title, total=rounds, completed=self._done)

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        """See :class:`Observer`."""
        super().step(site, step, steps, loss)
        self._progress.update(self._now, description=f"{site}, loss {loss:.3f}", total=steps, completed=step)
        self._progress.update(self._run, completed=self._done + self._share * step / steps)

    def trained(self, site: str) -> None:
        """See :class:`Observer`."""
        self._done += self._share

    def phase_ends(self, phase: str, seconds: float) -> None:
        """See :class:`Observer`."""
        super().phase_ends(phase, seconds)
        self._progress.update(self._now, description=f"secure sum: {phase}")


@contextmanager
def watch() -> Iterator[PlainObserver]:
    """An observer for this terminal; an interruption says how to go on."""
    console = Console(stderr=True)
    observer: PlainObserver
    try:
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            with Progress(*columns, console=console, transient=True) as progress:
                observer = BarObserver(progress)
                with interrupting(observer):
                    yield observer
        else:
            observer = PlainObserver()
            with interrupting(observer):
                yield observer
    except (KeyboardInterrupt, RoundAbortedError):
        if observer.resumable is not None and (observer.resumable / "settings.toml").exists():
            print(f"stopped; continue with: fedvlm-secure run --resume {observer.resumable}", file=sys.stderr)
        raise


def as_dict(result: RunResult) -> dict[str, Any]:
    """A result as plain values, for ``--json``."""
    sites = [
        {"site": row.site, "question-only": row.question_only, "base": row.base, "final": row.final}
        for row in result.sites
    ]
    return {"run": str(result.folder), "server": result.summary, "sites": sites, "beats-both": beats_both(result.sites)}


def print_table(results: Sequence[RunResult]) -> None:
    """The table per hospital on stdout, averaged over the results."""
    rows = mean_rows([result.sites for result in results])
    summary = results[0].summary
    title = f"{summary['strategy']}, {summary['rounds']} rounds, protocol {summary['protocol']}"
    table = Table(title=title + (f", mean over {len(results)} seeds" if len(results) > 1 else ""))
    for heading in ("hospital", "rows", "question only", "base model", "after the last round"):
        table.add_column(heading, justify="left" if heading == "hospital" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row.site, str(row.rows), *(_figure(value) for value in (row.question_only, row.base, row.final)))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(
        f"beats question-only and base on {beats_both(rows)} of {len(rows)} hospitals (test split, exact match)"
    )
    simulated = " Simulated hospitals, not for diagnosis." if any(row.description for row in rows) else ""
    console.print(f"Simulation view: no server sees this table.{simulated}")
    for warning in summary["insecure"]:
        console.print(f"INSECURE: {warning}", markup=False)
    for result in results:
        console.print(f"report: {result.folder / 'report.html'}", markup=False, soft_wrap=True)


def mean_rows(runs: Sequence[Sequence[SiteRow]]) -> list[SiteRow]:
    """Each hospital's figures, averaged over runs of the same hospitals."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return [
        SiteRow(
            site=same[0].site,
            description=same[0].description,
            rows=same[0].rows,
            question_only=mean([row.question_only for row in same]),
            base=mean([row.base for row in same]),
            final=mean([row.final for row in same]),
        )
        for same in zip(*runs, strict=True)
    ]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
