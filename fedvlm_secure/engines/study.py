"""Studies: many runs of the local engine, each a cell of one folder.

A study is a folder: ``study.json`` says what was asked, ``cells/NAME/`` is a cell's run directory and
``cells/NAME.json`` its figures, written when it has finished. Whatever stops a study, the same call goes on with it:
finished cells are kept, an interrupted one continues in its run directory. Figures of other settings are refused, never
mixed in.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.engines.study_workers import Failure, Figures, Runner, Task, Watch, perform
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import read_json, write_json

if TYPE_CHECKING:
    from fedvlm_secure.engines.assembly import Encoded
    from fedvlm_secure.engines.local import RunResult

encoded_here: "Encoded" = {}
"""Hospitals' encoded rows, for all cells of a study that this process runs."""


class Cell(Protocol):
    """What a study asks of a finished cell."""

    @property
    def accuracy(self) -> float | None:
        """The unweighted mean over the hospitals."""


def run_cell(settings: Settings, folder: Path, observer: Observer) -> "RunResult":
    """Run a federation, or go on with the one that was interrupted in ``folder``."""
    from fedvlm_secure.engines import local  # a study itself trains nothing: its workers load the heavy packages

    begun = (folder / "settings.toml").exists()
    return local.run(settings, folder, resume=begun, observer=observer, encoded=encoded_here)


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """A study's folder, for this process alone.

    Afterwards the process keeps no encoded rows: they take half a gigabyte, and may have changed by the next study.

    Raises:
        MisuseError: it holds other things, or another process is at it.
    """
    _check(folder)
    try:
        with RunDirectory(folder).locked():
            yield
    finally:
        encoded_here.clear()


@dataclass(frozen=True, slots=True)
class Study:
    """How a study's cells are run and kept.

    Attributes:
        figures: what is kept of a cell that has finished.
        read: a kept cell; raises :class:`MisuseError` if its file is damaged.
        runner: what runs one cell.
        workers: how many cells run at a time, each in a process of its own; 1 is this process.
    """

    figures: Callable[[Task, Figures], Figures]
    read: Callable[[Path], Cell]
    runner: Runner
    workers: int
    watch: Watch

    def finished(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks that have figures; raises :class:`MisuseError` if any, or a run begun, is of other settings."""
        return [task for task in tasks if self._is_finished(task)]

    def complete(self, tasks: Sequence[Task], kept: Sequence[Task]) -> tuple[Failure, ...]:
        """Run all tasks but those ``kept``, and return those that failed; the same call tries them again."""
        failures: list[Failure] = []
        self.watch.study_begins(len(tasks), len(kept))
        todo = [task for task in tasks if task not in kept]
        with closing(perform(todo, self.runner, self.workers, self.watch)) as outcomes:
            for task, outcome in outcomes:
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    self.watch.cell_fails(outcome)
                else:
                    figures = self.figures(task, outcome)
                    write_json(figures_path(task), {"settings-sha256": _digest(task.settings), **figures})
                    self.watch.cell_ends(task.name, self.read(figures_path(task)).accuracy)
        return tuple(failures)

    def _is_finished(self, task: Task) -> bool:
        other = MisuseError(
            f"{task.folder} began with other settings, or under another version; name another folder with --out"
        )
        path = figures_path(task)
        if path.exists():
            figures = read_json(path)
            if not isinstance(figures, dict) or figures.get("settings-sha256") != _digest(task.settings):
                raise other
            self.read(path)
            return True
        begun = RunDirectory(task.folder).settings
        if begun.exists() and begun.read_text(encoding="utf-8") != task.settings.to_toml():
            raise other
        return False


def figures_path(task: Task) -> Path:
    """Where a cell's figures are kept: from when this file is there, the cell has finished."""
    return task.folder.with_name(task.name + ".json")


def _check(folder: Path) -> None:
    """Never write among files that are not a study's."""
    if (folder / "study.json").exists() or not folder.exists():
        return
    # What is left of a study that was killed while it wrote its very first file is none of others' files.
    if not folder.is_dir() or any(path.name != "study.json.part" for path in folder.iterdir()):
        raise MisuseError(f"{folder} is not empty and holds no study; name another with --out")


def _digest(settings: Settings) -> str:
    return hashlib.sha256(settings.to_toml().encode()).hexdigest()
