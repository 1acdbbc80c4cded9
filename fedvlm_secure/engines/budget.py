"""Privacy-budget studies: one run of the local engine for every ε, strategy and seed, and each cell kept by itself.

A study is a folder: ``study.json`` says what was asked, ``cells/NAME/`` is a cell's run directory and
``cells/NAME.json`` its figures, written when it has finished. Whatever stops a study, the same call goes on with it:
finished cells are kept, an interrupted one continues in its run directory. Figures of other settings are refused, never
mixed in.
"""

import hashlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedvlm_secure.engines.budget_workers import Failure, Figures, Runner, Task, Watch, perform
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import read_json, write_json
from fedvlm_secure.report import budget
from fedvlm_secure.report.budget import LOCAL, Epsilon

if TYPE_CHECKING:
    from fedvlm_secure.engines.local import Encoded, RunResult

SMALLEST, LARGEST = 0.01, 1000.0
_SWEPT = ("name", "seed", "adapter.strategy", "privacy.target-epsilon", "privacy.noise-multiplier")
_BASE: Mapping[str, Any] = {"threads": 1}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study asks.

    Attributes:
        epsilons: targets, ascending; None, last, is a run without differential privacy.
        strategies: what the adapters share, such as ``("plora", "lora")``.
        seeds: every cell is run with the seeds 0, 1, …
        overrides: settings as ``key=value``, the same in every cell.

    Raises:
        MisuseError: an ε outside [0.01, 1000], nothing to sweep, or an override of what the study itself sets.
    """

    epsilons: tuple[Epsilon, ...]
    strategies: tuple[str, ...]
    seeds: int
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        targets = sorted({float(epsilon) for epsilon in self.epsilons if epsilon is not None})
        for epsilon in targets:
            if not SMALLEST <= epsilon <= LARGEST:
                raise MisuseError(f"--epsilons: {epsilon:g} is outside {SMALLEST:g} to {LARGEST:g}")
        if not self.epsilons or not self.strategies or self.seeds < 1:
            raise MisuseError("a study needs at least one ε, one strategy and one seed")
        for override in self.overrides:
            if (key := override.partition("=")[0].strip()) in _SWEPT:
                raise MisuseError(f"--set {key}: a study sets it cell by cell; use --epsilons, --strategies, --seeds")
        object.__setattr__(self, "epsilons", (*targets, *([None] if None in self.epsilons else [])))
        object.__setattr__(self, "strategies", tuple(dict.fromkeys(self.strategies)))

    @property
    def command(self) -> str:
        """The command line that asks the same; neither the folder nor the number of processes changes a result."""
        swept = f"--epsilons {','.join(map(_word, self.epsilons))} --strategies {','.join(self.strategies)}"
        settings = "".join(f" --set {shlex.quote(override)}" for override in self.overrides)
        return f"fedvlm-secure budget {swept} --seeds {self.seeds}{settings}"

    @property
    def base(self) -> Settings:
        """What all private cells have in common: record-level privacy, unless the overrides say otherwise."""
        mode = Settings.from_tables(_BASE, self.overrides).privacy.mode
        return Settings.from_tables(_BASE, [*self.overrides, f"privacy.mode={'record' if mode == 'none' else mode}"])

    def settings(self, strategy: str, epsilon: Epsilon, seed: int) -> Settings:
        """One cell's settings; raises :class:`MisuseError` where they do not fit together."""
        own = [f"name={cell_name(strategy, epsilon, seed)}", f"seed={seed}", f"adapter.strategy={strategy}"]
        if epsilon is None:
            # What one would run without privacy, with the defaults of that: privacy costs what is lost against it.
            others = [override for override in self.overrides if not override.strip().startswith("privacy.")]
            return Settings.from_tables(_BASE, [*others, *own])
        own.append(f"privacy.target-epsilon={epsilon!r}")
        return Settings.from_tables(self.base.model_dump(by_alias=True, exclude_none=True), own)

    def tasks(self, folder: Path) -> list[Task]:
        """All cells, seed by seed, so that what is there after a while shows every ε and strategy."""
        swept = [(strategy, epsilon) for epsilon in self.epsilons for strategy in self.strategies]
        cells = dict.fromkeys([*swept, (LOCAL, None)])  # the baseline: each hospital by itself, without noise
        return [
            Task(name, self.settings(strategy, epsilon, seed), folder / "cells" / name)
            for seed in range(self.seeds)
            for strategy, epsilon in cells
            for name in [cell_name(strategy, epsilon, seed)]
        ]


def cell_name(strategy: str, epsilon: Epsilon, seed: int) -> str:
    """Such as ``plora-epsilon-4-seed-0``."""
    return f"{strategy}-epsilon-{_word(epsilon)}-seed-{seed}"


def parse_epsilons(words: str) -> tuple[Epsilon, ...]:
    """``"1,2,none"`` as values; raises :class:`MisuseError`."""

    def value(word: str) -> Epsilon:
        if word == "none":
            return None
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise MisuseError(f"--epsilons {words!r} is not understood; write numbers and none, such as 1,4,none")
        return number

    return tuple(value(word.strip()) for word in words.split(","))


_encoded: "Encoded" = {}  # for all cells of a study that this process runs


@contextmanager
def _forgetting() -> Iterator[None]:
    """Afterwards this process keeps no rows: they take half a gigabyte, and may have changed by the next study."""
    try:
        yield
    finally:
        _encoded.clear()


def run_cell(settings: Settings, folder: Path, observer: Observer) -> "RunResult":
    """Run a federation, or go on with the one that was interrupted in ``folder``."""
    from fedvlm_secure.engines import local  # a study itself trains nothing: its workers load the heavy packages

    begun = (folder / "settings.toml").exists()
    return local.run(settings, folder, resume=begun, observer=observer, encoded=_encoded)


def run(
    plan: Plan, out: Path | str, *, workers: int = 1, watch: Watch | None = None, runner: Runner = run_cell
) -> tuple[Failure, ...]:
    """Run a study's cells, those that have not finished yet, and write its results page.

    Args:
        out: the study's folder: new, empty, or of a study with the same settings, which may have asked for other cells.
        workers: how many cells run at a time, each in a process of its own; 1 is this process.
        runner: what runs one cell.

    Returns:
        The cells that failed; the same call tries them again. The others' results are written.

    Raises:
        MisuseError: settings that do not fit together, or a folder that holds other things or cells of other settings.
    """
    folder, watch = Path(out), watch or Watch()
    tasks = plan.tasks(folder)
    _check_folder(folder)
    failures: list[Failure] = []
    with RunDirectory(folder).locked():
        kept = [task for task in tasks if _is_finished(task)]
        _write_study(folder, plan, tasks)
        watch.study_begins(len(tasks), len(kept))
        todo = [task for task in tasks if task not in kept]
        with closing(perform(todo, runner, workers, watch)) as outcomes, _forgetting():
            for task, outcome in outcomes:
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    watch.cell_fails(outcome)
                else:
                    _keep(task, outcome)
                    watch.cell_ends(task.name, budget.read_cell(_figures_of(task)).accuracy)
        if len(failures) < len(tasks):
            from fedvlm_secure.report.budget_page import write

            write(folder)
    return tuple(failures)


def _check_folder(folder: Path) -> None:
    """Never write among files that are not a study's."""
    if (folder / "study.json").exists() or not folder.exists():
        return
    # What is left of a study that was killed while it wrote its very first file is none of others' files.
    if not folder.is_dir() or any(path.name != "study.json.part" for path in folder.iterdir()):
        raise MisuseError(f"{folder} is not empty and holds no study; name another with --out")


def _figures_of(task: Task) -> Path:
    return task.folder.with_name(task.name + ".json")


def _is_finished(task: Task) -> bool:
    """Whether the cell has figures; raises :class:`MisuseError` if they, or its run, are of other settings."""
    other = MisuseError(
        f"{task.folder} began with other settings, or under another version; name another folder with --out"
    )
    if _figures_of(task).exists():
        figures = read_json(_figures_of(task))
        if not isinstance(figures, dict) or figures.get("settings-sha256") != _digest(task.settings):
            raise other
        budget.read_cell(_figures_of(task))
        return True
    begun = RunDirectory(task.folder).settings
    if begun.exists() and begun.read_text(encoding="utf-8") != task.settings.to_toml():
        raise other
    return False


def _digest(settings: Settings) -> str:
    return hashlib.sha256(settings.to_toml().encode()).hexdigest()


def _write_study(folder: Path, plan: Plan, tasks: Sequence[Task]) -> None:
    asked = {
        "command": plan.command,
        "epsilons": list(plan.epsilons),
        "strategies": list(plan.strategies),
        "seeds": plan.seeds,
        "settings": plan.base.to_toml(),
        "cells": [task.name for task in tasks],
    }
    write_json(folder / "study.json", asked)


def _keep(task: Task, figures: Figures) -> None:
    """Write a cell's figures: from here on it has finished."""
    settings, summary = task.settings, figures["summary"]
    kept = {
        "strategy": settings.adapter.strategy,
        "epsilon": None if settings.privacy.mode == "none" else settings.privacy.target_epsilon,
        "seed": settings.seed,
        "settings-sha256": _digest(settings),
        "sites": figures["sites"],
        **{key: summary.get(key) for key in ("privacy", "insecure", "versions", "seconds", "shared-parameters")},
    }
    write_json(_figures_of(task), kept)


def _word(epsilon: Epsilon) -> str:
    return "none" if epsilon is None else repr(epsilon).removesuffix(".0")
