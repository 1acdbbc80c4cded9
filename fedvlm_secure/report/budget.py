"""A privacy-budget study as values: what its cells measured, and what that says with how much certainty."""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report.headline import SiteRow, mean
from fedvlm_secure.report.reading import Line, mapping, names, number, text
from fedvlm_secure.report.study import Estimate, field, object_in, over_seeds, site_of

LOCAL = "local"
_PRIVACY = ("delta", "noise-multiplier")
COLUMNS = (
    "strategy",
    "epsilon_target",
    "epsilon_spent",
    "delta",
    "noise_multiplier",
    "seed",
    "site",
    "rows",
    "test_accuracy",
    "base_accuracy",
    "question_only",
)

Epsilon = float | None
"""A target ε; None without differential privacy."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study.

    Attributes:
        epsilon: the target; None without differential privacy.
        sites: every hospital's accuracies on its own test split, from 0 to 1.
        privacy: the run's privacy statement, as in its ``summary.json``; empty without differential privacy.
        versions: package → version.
        insecure: what the run opted into that protects less than the default.
    """

    strategy: str
    epsilon: Epsilon
    seed: int
    sites: tuple[SiteRow, ...]
    privacy: Line
    versions: Line
    insecure: tuple[str, ...]
    seconds: float | None

    @property
    def spent(self) -> float | None:
        """The ε that the run's accountant states at its end; None if it states none."""
        return number(self.privacy.get("epsilon")) if self.epsilon is not None else None

    @property
    def accuracy(self) -> float | None:
        """The unweighted mean over the hospitals; None unless every one has been tested."""
        return mean([row.final for row in self.sites])


@dataclass(frozen=True, slots=True)
class Study:
    """What was asked and the cells that have finished, in the order in which they were asked for."""

    command: str
    settings: str
    epsilons: tuple[Epsilon, ...]
    strategies: tuple[str, ...]
    planned: int
    cells: tuple[Cell, ...]

    def group(self, strategy: str, epsilon: Epsilon) -> dict[int, Cell]:
        """The finished cells of a strategy under an ε, by seed."""
        return {cell.seed: cell for cell in self.cells if (cell.strategy, cell.epsilon) == (strategy, epsilon)}

    @property
    def sites(self) -> list[SiteRow]:
        """The hospitals, by training rows, the largest first; figures are the first cell's."""
        rows = self.cells[0].sites if self.cells else ()
        return sorted(rows, key=lambda row: (-(row.rows or 0), row.site))

    def of_site(self, name: str) -> "Study":
        """The same study at one hospital alone."""
        return self.of_sites(lambda row: row.site == name)

    def of_sites(self, wanted: Callable[[SiteRow], bool]) -> "Study":
        """The same study at some of the hospitals."""
        return replace(self, cells=tuple(replace(cell, sites=tuple(filter(wanted, cell.sites))) for cell in self.cells))

    def accuracy(self, strategy: str, epsilon: Epsilon) -> Estimate | None:
        """Test accuracy: the mean over hospitals of each seed, then over seeds."""
        return over_seeds(self.group(strategy, epsilon).values(), lambda cell: cell.accuracy)

    @property
    def base(self) -> float | None:
        """The base model's accuracy, before any training."""
        return mean([row.base for cell in self.cells for row in cell.sites])

    @property
    def question_only(self) -> float | None:
        """The accuracy of the most frequent training answer to the question, without looking at the picture."""
        return mean([row.question_only for cell in self.cells for row in cell.sites])

    def gain(self, strategy: str, epsilon: Epsilon) -> Estimate | None:
        """Accuracy minus the base model's, seed by seed."""
        return over_seeds(self.group(strategy, epsilon).values(), _gain)

    def kept(self, strategy: str, epsilon: Epsilon) -> Estimate | None:
        """The share of the gain without differential privacy that remains, seed by seed.

        None unless every seed has both cells and gained something without.
        """
        free = self.group(strategy, None)

        def share(cell: Cell) -> float | None:
            private, without = _gain(cell), _gain(free[cell.seed]) if cell.seed in free else None
            return None if private is None or not without or without < 0 else private / without

        return over_seeds(self.group(strategy, epsilon).values(), share)

    def difference(self, strategy: str, other: str, epsilon: Epsilon) -> Estimate | None:
        """``strategy``'s accuracy minus ``other``'s under the same ε, paired by seed."""
        theirs = self.group(other, epsilon)

        def lead(cell: Cell) -> float | None:
            own, its = cell.accuracy, theirs[cell.seed].accuracy if cell.seed in theirs else None
            return None if own is None or its is None else own - its

        return over_seeds(self.group(strategy, epsilon).values(), lead)

    def worst(self, epsilon: Epsilon, figure: Callable[[Cell], float | None]) -> float | None:
        """The largest figure among the cells of an ε."""
        found = [figure(cell) for cell in self.cells if cell.epsilon == epsilon]
        return max((value for value in found if value is not None), default=None)


def load(folder: Path) -> Study:
    """The study in ``folder``; raises :class:`MisuseError` if there is none, or a file of it is damaged."""
    asked = object_in(folder / "study.json")
    planned = names(asked.get("cells"))
    found = [folder / "cells" / f"{name}.json" for name in planned]
    listed = asked.get("epsilons")
    return Study(
        command=text(asked.get("command")),
        settings=asked["settings"] if isinstance(asked.get("settings"), str) else "",
        epsilons=tuple(number(value) for value in listed) if isinstance(listed, list) else (),
        strategies=names(asked.get("strategies")),
        planned=len(planned),
        cells=tuple(read_cell(path) for path in found if path.exists()),
    )


def table(study: Study) -> str:
    """``budget.csv``: one line a cell and hospital. What is not known, or does not apply, is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in study.cells:
        private = [
            "none" if cell.epsilon is None else f"{cell.epsilon:g}",
            field(cell.spent),
            *(field(None if cell.epsilon is None else number(cell.privacy.get(k))) for k in _PRIVACY),
        ]
        for row in cell.sites:
            figures = (field(value) for value in (row.rows, row.final, row.base, row.question_only))
            writer.writerow([cell.strategy, *private, cell.seed, row.site, *figures])
    return buffer.getvalue()


def read_cell(path: Path) -> Cell:
    """A finished cell; raises :class:`MisuseError` if the file is damaged."""
    line = object_in(path)
    strategy, seed, sites = text(line.get("strategy")), number(line.get("seed")), line.get("sites")
    target = number(line.get("epsilon"))
    # A figure under an ε must never pass for one without.
    whole = "epsilon" in line and (line["epsilon"] is None or target is not None)
    if not (whole and strategy and seed is not None and isinstance(sites, list)):
        raise MisuseError(f"{path} is damaged: delete it, and the cell is run again")
    return Cell(
        strategy=strategy,
        epsilon=target,
        seed=int(seed),
        sites=tuple(site_of(site) for site in sites if isinstance(site, Mapping)),
        privacy=mapping(line, "privacy"),
        versions=mapping(line, "versions"),
        insecure=names(line.get("insecure")),
        seconds=number(line.get("seconds")),
    )


def _gain(cell: Cell) -> float | None:
    base = mean([row.base for row in cell.sites])
    return None if cell.accuracy is None or base is None else cell.accuracy - base
