"""The cells of a study, one after the other in this process or several at a time in processes of their own.

Worker and study talk JSON over a pipe: a task's settings down, progress and figures up. A worker that dies takes its
one cell with it and is replaced; when the study ends, however it ends, its workers end.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import tomllib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.report import SiteRow
from fedvlm_secure.report.study import site_figures

_BETWEEN = 0.2  # seconds between two reports of progress from one cell
_PATIENCE = 5.0  # seconds that a worker is given to end


class Result(Protocol):
    """What a cell needs of :class:`~fedvlm_secure.engines.local.RunResult`."""

    @property
    def summary(self) -> dict[str, Any]:
        """The server's summary, ``coordinator/summary.json``."""

    @property
    def sites(self) -> list[SiteRow]:
        """The table per hospital."""


Runner = Callable[[Settings, Path, Observer], Result]
"""Runs a federation in a folder, or goes on with the one there. It has to be importable, for workers import it."""


@dataclass(frozen=True, slots=True)
class Task:
    """A cell to run: its name, what it runs, and its run directory."""

    name: str
    settings: Settings
    folder: Path


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a cell has no figures: the error's class and its text in one line."""

    name: str
    family: str
    reason: str


class Watch:
    """Watches a study. Every method may be overridden; by default nothing happens."""

    def study_begins(self, cells: int, kept: int) -> None:
        """``cells`` are asked for, ``kept`` of them have finished earlier."""

    def cell_begins(self, name: str) -> None:
        """A cell begins, or goes on where it was interrupted."""

    def cell_moves(self, name: str, done: float, what: str) -> None:
        """A share ``done`` of a cell, from 0 to 1, lies behind; ``what`` is happening in it."""

    def cell_ends(self, name: str, accuracy: float | None) -> None:
        """A cell has finished; ``accuracy`` is the mean over hospitals, from 0 to 1."""

    def cell_fails(self, failure: Failure) -> None:
        """A cell has no figures; the others go on."""


Figures = dict[str, Any]
"""What a finished cell's ``summary`` says and its ``sites``, as JSON values."""

Outcomes = Generator[tuple[Task, Figures | Failure], None, None]


def perform(tasks: Sequence[Task], runner: Runner, workers: int, watch: Watch) -> Outcomes:
    """Run the tasks and yield each, in the order they end, with its figures or the reason why it has none.

    Close the iterator to end its workers; the cells they were at can be resumed.
    """
    if workers == 1 or len(tasks) < 2:
        return _one_by_one(tasks, runner, watch)
    return _together(tasks, runner, min(workers, len(tasks)), watch)


def _one_by_one(tasks: Sequence[Task], runner: Runner, watch: Watch) -> Outcomes:
    for task in tasks:
        watch.cell_begins(task.name)
        yield task, _attempt(task, runner, partial(watch.cell_moves, task.name))


def _attempt(task: Task, runner: Runner, tell: Callable[[float, str], None]) -> Figures | Failure:
    try:
        result = runner(task.settings, task.folder, _Progress(tell))
    except (MisuseError, ProtocolError, OSError) as error:
        return Failure(task.name, type(error).__name__, one_line(error))
    return {"summary": result.summary, "sites": [site_figures(row) for row in result.sites]}


class _Progress(Observer):
    """A run's events as the share of it that lies behind."""

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        self._tell, self._told = tell, 0.0
        self._rounds, self._done, self._share = 1, 0.0, 0.0

    def loading(self, what: str) -> None:
        """See :class:`Observer`."""
        self._tell(0.0, f"loading {what}")

    def round_begins(self, round_index: int, rounds: int, attempt: int, sites: int) -> None:
        """See :class:`Observer`."""
        self._rounds, self._done, self._share = rounds, round_index - 1.0, 1 / sites
        self._tell(self._behind(0), f"round {round_index} of {rounds}" if round_index <= rounds else "evaluation")

    def step(self, site: str, step: int, steps: int, loss: float) -> None:
        """See :class:`Observer`."""
        now = time.monotonic()
        if now >= self._told + _BETWEEN:
            self._told = now
            self._tell(self._behind(self._share * step / steps), f"round {self._done + 1:.0f}, {site}, loss {loss:.3f}")

    def trained(self, site: str) -> None:
        """See :class:`Observer`."""
        self._done += self._share

    def phase_ends(self, phase: str, seconds: float) -> None:
        """See :class:`Observer`."""
        self._tell(self._behind(0), f"secure sum: {phase}")

    def _behind(self, more: float) -> float:
        return min(1.0, (self._done + more) / self._rounds)


def _together(tasks: Sequence[Task], runner: Runner, workers: int, watch: Watch) -> Outcomes:
    waiting, crew = deque(tasks), dict[Connection, _Worker]()
    try:
        for _ in range(workers):
            _hire(crew, runner, waiting.popleft(), watch)
        while crew:
            for pipe in wait(list(crew)):
                worker = crew[pipe]  # type: ignore[index]
                outcome = worker.hear(watch)
                if outcome is None:
                    continue
                yield worker.task, outcome
                if worker.alive and waiting:
                    worker.begin(waiting.popleft(), watch)
                    continue
                del crew[worker.pipe]
                worker.dismiss()
                if waiting:
                    _hire(crew, runner, waiting.popleft(), watch)
    finally:
        for worker in crew.values():
            worker.stop()


def _hire(crew: "dict[Connection, _Worker]", runner: Runner, task: Task, watch: Watch) -> None:
    worker = _Worker(runner)
    crew[worker.pipe] = worker
    worker.begin(task, watch)


class _Worker:
    """The study's end of one worker process."""

    task: Task

    def __init__(self, runner: Runner) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.pipe, theirs = context.Pipe()
        self.alive = True
        self._process = context.Process(target=_serve, args=(theirs, runner), daemon=True)
        with _interrupts_ignored():
            self._process.start()
        theirs.close()

    def begin(self, task: Task, watch: Watch) -> None:
        """Give the worker its next cell."""
        self.task = task
        watch.cell_begins(task.name)
        _send(self.pipe, {"name": task.name, "settings": task.settings.to_toml(), "folder": str(task.folder)})

    def hear(self, watch: Watch) -> Figures | Failure | None:
        """One message; None unless it ends the cell."""
        try:
            message = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.alive = False
            self._process.join()
            return Failure(self.task.name, "died", f"its process ended with code {self._process.exitcode}")
        if "moves" in message:
            watch.cell_moves(self.task.name, *message["moves"])
            return None
        return Failure(self.task.name, **message["failure"]) if "failure" in message else message["figures"]

    def dismiss(self) -> None:
        """Let an idle worker end by itself."""
        self.pipe.close()
        self._process.join(_PATIENCE)
        self.stop()

    def stop(self) -> None:
        """End the process, whatever it is at: a run directory survives that."""
        self.pipe.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, runner: Runner) -> None:
    """A worker: cells from the pipe until it is closed or the process is told to end."""
    ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        ending = True
        sys.exit(128 + number)

    # As in the program's own process: deprecations of the packages below say nothing that its user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    signal.signal(signal.SIGTERM, end)  # tidies up, unlike the default
    try:
        _cells(pipe, runner)
    except Exception:
        if not ending:
            raise
        sys.exit(128 + signal.SIGTERM)  # a library may turn the handler's exit into its own error, as safetensors does


def _cells(pipe: Connection, runner: Runner) -> None:
    def tell(done: float, what: str) -> None:
        try:
            _send(pipe, {"moves": [done, what]})
        except OSError:
            os._exit(1)  # the study is gone, and nobody waits for this cell

    while True:
        try:
            message = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        settings = Settings.from_tables(tomllib.loads(message["settings"]))
        outcome = _attempt(Task(message["name"], settings, Path(message["folder"])), runner, tell)
        if isinstance(outcome, Failure):
            _send(pipe, {"failure": {"family": outcome.family, "reason": outcome.reason}})
        else:
            _send(pipe, {"figures": outcome})


def _send(pipe: Connection, message: Mapping[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What starts meanwhile never hears of Ctrl-C: the study does, and ends its workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
