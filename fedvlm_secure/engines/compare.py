"""Comparing strategies: one run of the local engine for every data set, strategy and seed, after tuning each alike.

Every strategy gets the same candidates for its settings, tried once each on the first data set with a seed that no
other cell has; the one with the highest mean validation accuracy runs everywhere. Test rows choose nothing.
"""

import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedvlm_secure import data
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.engines.study import Study, figures_path, opened, run_cell
from fedvlm_secure.engines.study_workers import Failure, Figures, Result, Runner, Task, Watch
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write_json
from fedvlm_secure.report import comparison, reading
from fedvlm_secure.secagg.protocols import lookup

TUNING_SEED = 1000
_SWEPT = ("name", "seed", "data", "adapter.strategy", "adapter.warm-up")
_WARM = "-warm"
_BASE = {"threads": 1}
_KEPT = (
    "newcomer",
    "validation",
    "shared-parameters",
    "upload-bytes",
    "training-seconds",
    "protocol",
    "versions",
    "insecure",
)

Candidate = tuple[str, ...]
"""Settings as ``key=value``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a comparison asks.

    Attributes:
        strategies: what of the adapters is shared, such as ``("plora", "plora-warm4", "lora")``: the second begins with
            four rounds of LoRA.
        levels: data sets; the first is the one that settings are chosen on.
        seeds: every cell is run with the seeds 0, 1, …
        tuned: setting → values: all combinations are tried for every strategy. Empty: nothing is chosen.
        overrides: settings as ``key=value``, the same in every cell.

    Raises:
        MisuseError: nothing to compare, an override of what the study itself sets, or a protocol under which the
            server does not know the model that a newcomer would begin with.
    """

    strategies: tuple[str, ...]
    levels: tuple[str, ...]
    seeds: int
    tuned: tuple[tuple[str, tuple[str, ...]], ...] = ()
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.strategies or not self.levels or not 1 <= self.seeds <= TUNING_SEED:
            raise MisuseError(f"a comparison needs a strategy, a data set and 1 to {TUNING_SEED} seeds")
        for override in self.overrides:
            if (key := override.partition("=")[0].strip()) in _SWEPT:
                raise MisuseError(f"--set {key}: a comparison sets it cell by cell; use --strategies, --data, --seeds")
        common = Settings.from_tables(_BASE, self.overrides)
        if lookup(common.aggregation.protocol).relay is not None:
            raise MisuseError("a comparison needs a protocol whose server knows the model: plain or pairwise")
        if common.privacy.mode != "none":
            raise MisuseError(
                "a comparison tunes by looking at the rows; under a privacy budget use fedvlm-secure budget"
            )
        object.__setattr__(self, "strategies", tuple(dict.fromkeys(self.strategies)))
        object.__setattr__(self, "levels", tuple(dict.fromkeys(self.levels)))

    @property
    def command(self) -> str:
        """The command line that asks the same; neither the folder nor the number of processes changes a result."""
        swept = f"--strategies {','.join(self.strategies)} --data {','.join(self.levels)} --seeds {self.seeds}"
        tuned = "".join(f" --tune {shlex.quote(key + '=' + ','.join(values))}" for key, values in self.tuned)
        settings = "".join(f" --set {shlex.quote(override)}" for override in self.overrides)
        return f"fedvlm-secure compare {swept}{tuned or ' --no-tune'}{settings}"

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What is tried for every strategy: all combinations of the tuned settings' values."""
        each = [[f"{key}={value}" for value in values] for key, values in self.tuned]
        return tuple(itertools.product(*each))

    def tuning(self, folder: Path) -> dict[str, list[tuple[Candidate, Task]]]:
        """The cells that the candidates are tried in, by strategy; none where there is nothing to choose."""
        if len(self.candidates) < 2:
            return {}
        return {
            strategy: [
                (
                    candidate,
                    self._task(f"tune-{strategy}-{place}", strategy, self.levels[0], TUNING_SEED, candidate, folder),
                )
                for place, candidate in enumerate(self.candidates)
            ]
            for strategy in self.strategies
        }

    def tasks(self, chosen: dict[str, Candidate], folder: Path) -> list[Task]:
        """All cells but the tuning, seed by seed, so that what is there after a while shows every strategy."""
        return [
            self._task(cell_name(level, strategy, seed), strategy, level, seed, chosen.get(strategy, ()), folder)
            for seed in range(self.seeds)
            for level in self.levels
            for strategy in self.strategies
        ]

    def _task(self, name: str, strategy: str, level: str, seed: int, more: Candidate, folder: Path) -> Task:
        return Task(
            name, self._settings(strategy, level, (f"name={name}", f"seed={seed}", *more)), folder / "cells" / name
        )

    def _settings(self, strategy: str, level: str, more: Candidate) -> Settings:
        sharing, _, warm_up = strategy.partition(_WARM)
        own = (f"adapter.strategy={sharing}", f"adapter.warm-up={warm_up or 0}", f"data={level}")
        return Settings.from_tables(_BASE, [*self.overrides, *own, *more])


def cell_name(level: str, strategy: str, seed: int) -> str:
    """Such as ``hospitals-iid-plora-seed-0``."""
    return f"{Path(level).name}-{strategy}-seed-{seed}"


def parse_tuned(words: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``["training.learning-rate=2e-3,4e-3"]`` as settings and values; raises :class:`MisuseError`."""
    tuned = []
    for word in words:
        key, _, values = word.partition("=")
        found = tuple(value.strip() for value in values.split(",") if value.strip())
        if not key.strip() or not found or key.strip() in _SWEPT:
            raise MisuseError(f"--tune {word!r} is not understood; write training.learning-rate=0.002,0.004")
        tuned.append((key.strip(), found))
    return tuple(tuned)


@dataclass(frozen=True, slots=True)
class _Compared:
    """A run's result with what a comparison wants to know besides."""

    summary: dict[str, Any]
    sites: list[Any]


def compare_cell(settings: Settings, folder: Path, observer: Observer) -> Result:
    """Run a federation, or go on with the one in ``folder``; then let a ninth hospital join, where there is one."""
    from fedvlm_secure.engines import study
    from fedvlm_secure.engines.onboarding import onboard

    result = run_cell(settings, folder, observer)
    more: dict[str, Any] = _costs(folder)
    if data.level_of(settings.data) is not None and settings.seed != TUNING_SEED:
        observer.loading("the ninth hospital")
        more["newcomer"] = onboard(settings, folder, observer, study.encoded_here)
    return _Compared({**result.summary, **more}, result.sites)


def _costs(folder: Path) -> dict[str, Any]:
    """Bytes, seconds and validation accuracy, from what the parties have recorded."""
    from fedvlm_secure.report.rounds import attempts

    run = reading.load(folder)
    finished = [attempt for attempt in attempts(run) if attempt.kind == "training"]
    last = [site.stage("adopted", "validation")[-1] for site in run.sites]
    trained = [number for a in finished if (number := reading.number(a.line.get("training-seconds"))) is not None]
    return {
        "upload-bytes": fmean(sum(attempt.up.values()) / attempt.clients for attempt in finished),
        "training-seconds": sum(trained),
        "validation": fmean(reading.number(line.get("accuracy")) or 0.0 for line in last),
    }


def run(
    plan: Plan, out: Path | str, *, workers: int = 1, watch: Watch | None = None, runner: Runner = compare_cell
) -> tuple[Failure, ...]:
    """Choose every strategy's settings, run the comparison's cells that have not finished, write its results page.

    Args:
        out: the study's folder: new, empty, or of a comparison with the same settings.
        workers: how many cells run at a time, each in a process of its own; 1 is this process.
        runner: what runs one cell.

    Returns:
        The cells that failed; the same call tries them again. No strategy is compared while one is untuned.

    Raises:
        MisuseError: settings that do not fit together, or a folder that holds other things or cells of other settings.
    """
    folder = Path(out)
    tuning = plan.tuning(folder)
    tries = [task for each in tuning.values() for _, task in each]
    plan.tasks({}, folder)  # settings that do not fit together are refused before anything runs
    with opened(folder):
        study = Study(_figures(plan), comparison.read_cell, runner, workers, watch or Watch())
        if tries:
            kept = study.finished(tries)
            _write_study(folder, plan, tries, plan.tasks({}, folder))
            if failures := study.complete(tries, kept):
                return failures
        chosen = {strategy: _best(each) for strategy, each in tuning.items()} or dict.fromkeys(
            plan.strategies, plan.candidates[0]
        )
        tasks = plan.tasks(chosen, folder)
        kept = study.finished(tasks)
        _write_study(folder, plan, tries, tasks)
        failures = study.complete(tasks, kept)
        if len(failures) < len(tasks):
            from fedvlm_secure.report.comparison_page import write

            write(folder)
    return failures


def _figures(plan: Plan) -> Callable[[Task, Figures], Figures]:
    """What is kept of a cell that has finished."""

    def kept(task: Task, outcome: Figures) -> Figures:
        settings, summary = task.settings, outcome["summary"]
        warm_up = settings.adapter.warm_up
        values = settings.model_dump(by_alias=True)
        return {
            "data": data.called(settings.data),
            "strategy": settings.adapter.strategy + (f"{_WARM}{warm_up}" if warm_up else ""),
            "seed": settings.seed,
            "tuned": [f"{key}={_value(values, key)}" for key, _ in plan.tuned],
            "sites": outcome["sites"],
            **{key: summary.get(key) for key in _KEPT},
        }

    return kept


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _best(tried: Sequence[tuple[Candidate, Task]]) -> Candidate:
    """The candidate with the highest validation accuracy; of equals the first."""
    scores = [comparison.read_cell(figures_path(task)).validation or 0.0 for _, task in tried]
    return tried[scores.index(max(scores))][0]


def _write_study(folder: Path, plan: Plan, tuning: Sequence[Task], tasks: Sequence[Task]) -> None:
    asked = {
        "command": plan.command,
        "levels": list(plan.levels),
        "strategies": list(plan.strategies),
        "seeds": plan.seeds,
        "candidates": [list(candidate) for candidate in plan.candidates],
        "settings": Settings.from_tables(_BASE, plan.overrides).to_toml(),
        "tuning": [task.name for task in tuning],
        "cells": [task.name for task in tasks],
    }
    write_json(folder / "study.json", asked)
