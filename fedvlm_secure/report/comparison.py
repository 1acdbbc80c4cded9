"""A comparison of strategies as values: what its cells measured, and what that says with how much certainty."""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report.headline import SiteRow, mean
from fedvlm_secure.report.reading import Line, mapping, names, number, text
from fedvlm_secure.report.study import Estimate, field, object_in, over_seeds, site_of

COLUMNS = (
    "data",
    "strategy",
    "seed",
    "site",
    "rows",
    "test_accuracy",
    "base_accuracy",
    "question_only",
    "zero_shot_accuracy",
    "shared_parameters",
    "upload_bytes_a_round",
    "training_seconds",
    "tuned",
)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A hospital that joins after the last round; accuracies on its own test split, from 0 to 1.

    Attributes:
        zero_shot: with what the federation shares, before any training of its own.
        trained: after ``steps`` steps on its own rows.
    """

    rows: int | None
    steps: int | None
    question_only: float | None
    zero_shot: float | None
    trained: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison.

    Attributes:
        data: the data set, which says how unlike the hospitals are.
        tuned: what was chosen for the strategy, as ``key=value``, by words.
        sites: every hospital's accuracies on its own test split, from 0 to 1.
        validation: mean accuracy on the validation splits after the last round.
        upload: bytes a hospital sends in a round, on average.
        seconds: of local training, all hospitals and rounds together.
    """

    data: str
    strategy: str
    seed: int
    tuned: tuple[str, ...]
    sites: tuple[SiteRow, ...]
    newcomer: Newcomer | None
    validation: float | None
    shared_parameters: int | None
    upload: float | None
    seconds: float | None
    protocol: str
    versions: Line
    insecure: tuple[str, ...]

    @property
    def accuracy(self) -> float | None:
        """The unweighted mean over the hospitals; None unless every one has been tested."""
        return mean([row.final for row in self.sites])

    @property
    def worst(self) -> float | None:
        """The accuracy of the hospital that does worst."""
        found = [row.final for row in self.sites]
        known = [value for value in found if value is not None]
        return min(known) if known and len(known) == len(found) else None


@dataclass(frozen=True, slots=True)
class Study:
    """What was asked and the cells that have finished, in the order in which they were asked for.

    Attributes:
        tuning: the cells that the candidates were tried in, with other seeds than ``cells``.
        candidates: what was tried for every strategy, each as ``key=value`` settings.
    """

    command: str
    settings: str
    levels: tuple[str, ...]
    strategies: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    planned: int
    cells: tuple[Cell, ...]
    tuning: tuple[Cell, ...]

    def group(self, level: str, strategy: str) -> dict[int, Cell]:
        """The finished cells of a strategy on a data set, by seed."""
        return {cell.seed: cell for cell in self.cells if (cell.data, cell.strategy) == (level, strategy)}

    def sites(self, level: str) -> list[SiteRow]:
        """A data set's hospitals, by training rows, the largest first; figures are the first cell's."""
        first = next((cell for cell in self.cells if cell.data == level), None)
        return sorted(first.sites if first else (), key=lambda row: (-(row.rows or 0), row.site))

    def of_site(self, name: str) -> "Study":
        """The same study at one hospital alone."""
        return self.of_sites(lambda row: row.site == name)

    def of_sites(self, wanted: Callable[[SiteRow], bool]) -> "Study":
        """The same study at some of the hospitals."""
        return replace(self, cells=tuple(replace(cell, sites=tuple(filter(wanted, cell.sites))) for cell in self.cells))

    def estimate(self, level: str, strategy: str, figure: Callable[[Cell], float | None]) -> Estimate | None:
        """A cell's figure over the seeds; None unless there are any and all have it."""
        return over_seeds(self.group(level, strategy).values(), figure)

    def accuracy(self, level: str, strategy: str) -> Estimate | None:
        """Client-specific test accuracy: the mean over hospitals of each seed, then over seeds."""
        return self.estimate(level, strategy, lambda cell: cell.accuracy)

    def lead(self, level: str, strategy: str, other: str) -> Estimate | None:
        """``strategy``'s accuracy over ``other``'s, less one, paired by seed: 0.245 is 24.5 % more."""
        theirs = self.group(level, other)

        def share(cell: Cell) -> float | None:
            own, its = cell.accuracy, theirs[cell.seed].accuracy if cell.seed in theirs else None
            return None if own is None or not its else own / its - 1

        return self.estimate(level, strategy, share)

    def base(self, level: str) -> float | None:
        """The base model's accuracy, before any training."""
        return mean([row.base for row in self.sites(level)])

    def question_only(self, level: str) -> float | None:
        """The accuracy of the most frequent training answer to the question, without looking at the picture."""
        return mean([row.question_only for row in self.sites(level)])


def load(folder: Path) -> Study:
    """The comparison in ``folder``; raises :class:`MisuseError` if there is none, or a file of it is damaged."""
    asked = object_in(folder / "study.json")
    tried = asked.get("candidates")
    planned, tuning = names(asked.get("cells")), names(asked.get("tuning"))
    return Study(
        command=text(asked.get("command")),
        settings=asked["settings"] if isinstance(asked.get("settings"), str) else "",
        levels=names(asked.get("levels")),
        strategies=names(asked.get("strategies")),
        candidates=tuple(names(entry) for entry in tried) if isinstance(tried, list) else (),
        planned=len(planned),
        cells=_cells(folder, planned),
        tuning=_cells(folder, tuning),
    )


def table(study: Study) -> str:
    """``comparison.csv``: one line a cell and hospital, the newcomer's last. What does not apply is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in study.cells:
        costs = [field(value) for value in (cell.shared_parameters, cell.upload, cell.seconds)]
        for row in cell.sites:
            figures = [field(value) for value in (row.rows, row.final, row.base, row.question_only)]
            writer.writerow([cell.data, cell.strategy, cell.seed, row.site, *figures, "", *costs, " ".join(cell.tuned)])
        if (new := cell.newcomer) is not None:
            figures = [field(value) for value in (new.rows, new.trained, None, new.question_only, new.zero_shot)]
            writer.writerow([cell.data, cell.strategy, cell.seed, "newcomer", *figures, *costs, " ".join(cell.tuned)])
    return buffer.getvalue()


def read_cell(path: Path) -> Cell:
    """A finished cell; raises :class:`MisuseError` if the file is damaged."""
    line = object_in(path)
    level, strategy, seed = text(line.get("data")), text(line.get("strategy")), number(line.get("seed"))
    sites = line.get("sites")
    if not (level and strategy and seed is not None and isinstance(sites, list)):
        raise MisuseError(f"{path} is damaged: delete it, and the cell is run again")
    joined = mapping(line, "newcomer")
    return Cell(
        data=level,
        strategy=strategy,
        seed=int(seed),
        tuned=names(line.get("tuned")),
        sites=tuple(site_of(site) for site in sites if isinstance(site, Mapping)),
        newcomer=_newcomer(joined) if joined else None,
        validation=number(line.get("validation")),
        shared_parameters=_whole(line.get("shared-parameters")),
        upload=number(line.get("upload-bytes")),
        seconds=number(line.get("training-seconds")),
        protocol=text(line.get("protocol")),
        versions=mapping(line, "versions"),
        insecure=names(line.get("insecure")),
    )


def _cells(folder: Path, planned: tuple[str, ...]) -> tuple[Cell, ...]:
    found = [folder / "cells" / f"{name}.json" for name in planned]
    return tuple(read_cell(path) for path in found if path.exists())


def _newcomer(line: Line) -> Newcomer:
    return Newcomer(
        rows=_whole(line.get("rows")),
        steps=_whole(line.get("steps")),
        question_only=number(line.get("question-only")),
        zero_shot=number(line.get("zero-shot")),
        trained=number(line.get("trained")),
    )


def _whole(value: object) -> int | None:
    known = number(value)
    return None if known is None else int(known)
