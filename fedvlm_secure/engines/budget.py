"""Privacy-budget studies: one run of the local engine for every ε, strategy and seed."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm_secure.engines.study import Study, opened, run_cell
from fedvlm_secure.engines.study_workers import Failure, Figures, Runner, Task, Watch
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write_json
from fedvlm_secure.report import budget
from fedvlm_secure.report.budget import LOCAL, Epsilon

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
    folder = Path(out)
    tasks = plan.tasks(folder)
    with opened(folder):
        study = Study(_figures, budget.read_cell, runner, workers, watch or Watch())
        kept = study.finished(tasks)
        _write_study(folder, plan, tasks)
        failures = study.complete(tasks, kept)
        if len(failures) < len(tasks):
            from fedvlm_secure.report.budget_page import write

            write(folder)
    return failures


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


def _figures(task: Task, outcome: Figures) -> Figures:
    settings, summary = task.settings, outcome["summary"]
    return {
        "strategy": settings.adapter.strategy,
        "epsilon": None if settings.privacy.mode == "none" else settings.privacy.target_epsilon,
        "seed": settings.seed,
        "sites": outcome["sites"],
        **{key: summary.get(key) for key in ("privacy", "insecure", "versions", "seconds", "shared-parameters")},
    }


def _word(epsilon: Epsilon) -> str:
    return "none" if epsilon is None else repr(epsilon).removesuffix(".0")
