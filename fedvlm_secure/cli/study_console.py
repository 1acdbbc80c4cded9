"""What a person sees while a study runs: bars on a terminal, plain lines elsewhere, both on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedvlm_secure.cli.interruption import interrupting
from fedvlm_secure.engines.study_workers import Failure, Watch
from fedvlm_secure.report import formats
from fedvlm_secure.report.study import Estimate


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


def plain(value: Any) -> Any:
    """A figure for ``--json``: estimates as objects, everything else as it is."""
    return {"mean": value.mean, "half": value.half, "seeds": value.seeds} if isinstance(value, Estimate) else value
