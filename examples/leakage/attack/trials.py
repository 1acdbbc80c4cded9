"""The measurements: attacks repeated over many rows, on what the server sees in plain, masked and summed."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from attack.hospital import Some, Vector, World, bank, settings_of, update
from attack.server import observe
from attack.text import Dictionary, dictionary_gradients, row_gradients, which_row

PLAIN, MASKED, SUM = "plain", "masked", "sum"
PAIR, ROW = "question and answer", "row"
POOL = 64  # rows among which the server looks for the one that was trained on
OPTIMIZERS = ("adamw", "sgd")
TOGETHER = 8  # hospitals a round, where their number is not what is measured


@dataclass(frozen=True, slots=True)
class Rate:
    """How often an attack was right.

    Attributes:
        attack: what was guessed.
        view: what the server looked at.
        optimizer: what made the step.
        rows: rows of the hospital's one batch.
        hospitals: added up in what the server looked at; 1 for an upload.
        hits, trials: right guesses, and all of them.
        chance: of being right without having seen anything.
    """

    attack: str
    view: str
    optimizer: str
    rows: int
    hospitals: int
    hits: int
    trials: int
    chance: float

    @property
    def share(self) -> float:
        """Of right guesses."""
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's exact 95 % interval."""
        found = binomtest(self.hits, self.trials).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    @property
    def p_value(self) -> float:
        """How likely at least so many right guesses are by chance."""
        return float(binomtest(self.hits, self.trials, self.chance, alternative="greater").pvalue)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"share": self.share, "interval": list(self.interval), "p_value": self.p_value}


@dataclass(frozen=True)
class Bench:
    """What all trials of one-step updates have in common.

    Attributes:
        split: rows of the hospitals, as many of each pair of question and answer.
        pairs: int [rows], which pair each holds.
        gradients: float32 [rows, d], each row's gradient at the round's start.
        dictionaries: by optimizer, what the server compares with.
    """

    world: World
    rows: list[int]
    split: Any
    pairs: list[int]
    gradients: torch.Tensor
    dictionaries: dict[str, Dictionary]

    def step(self, rows: Sequence[int], optimizer: str) -> Vector:
        """A hospital's update from one step on one batch of these rows."""
        settings = settings_of(optimizer, 1, len(rows))
        return update(self.world, Some(self.split, rows), settings, self.world.b_only)

    def guessed(
        self, victim: int, batch: Sequence[int], count: int, seen: np.ndarray, optimizer: str, rng: Any
    ) -> tuple[bool, bool]:
        """Whether the server, from ``seen``, names the victim's pair among ``count``, and its row among 64."""
        others = rng.permutation(np.setdiff1d(np.arange(len(self.rows)), batch))[: POOL - 1]
        place = int(rng.integers(POOL))
        candidates = [*others[:place], victim, *others[place:]]
        step = torch.from_numpy(-seen / np.linalg.norm(seen)).float()
        known = self.dictionaries[optimizer]
        return (
            self.pairs[victim] in known.guess(step, count),
            which_row(known, step, self.gradients[candidates], optimizer) == place,
        )


def bench(world: World, each: int, pictures: int, rng: np.random.Generator) -> Bench:
    """Draw the rows, ``each`` of every pair, and make the server's dictionaries from so many public pictures."""
    rows = bank(world, each, rng)
    split = world.encoded(world.private.select(rows))
    gradients = dictionary_gradients(world, pictures, rng)
    dictionaries = {name: Dictionary.of(gradients, len(world.pairs), name) for name in OPTIMIZERS}
    return Bench(world, rows, split, [world.pair_of(row) for row in rows], row_gradients(world, split), dictionaries)


def uploads(bench: Bench, optimizer: str, batch: int, trials: int, views: Sequence[str], rng: Any) -> list[Rate]:
    """One hospital's update from one step on ``batch`` rows, as ``plain`` or masked, at least ``trials`` times."""
    hits = {view: np.zeros(2, int) for view in views}
    rounds = -(-trials // TOGETHER)
    for _ in range(rounds):
        batches = [rng.choice(len(bench.rows), batch, replace=False).tolist() for _ in range(TOGETHER)]
        steps = {f"hospital-{n:02d}": bench.step(rows, optimizer) for n, rows in enumerate(batches)}
        for view in views:
            seen = observe({PLAIN: "plain", MASKED: "pairwise"}[view], steps)
            for rows, sent in zip(batches, seen.uploads.values(), strict=True):
                hits[view] += bench.guessed(rows[0], rows, batch, sent, optimizer, rng)
    return [rate for view in views for rate in _rates(hits[view], view, optimizer, batch, 1, rounds * TOGETHER, batch)]


def sums(bench: Bench, optimizer: str, hospitals: int, trials: int, rng: Any) -> list[Rate]:
    """The sum over hospitals with a row each, which the server learns under ``pairwise``: is this row in it?"""
    hits = np.zeros(2, int)
    for _ in range(trials):
        rows = rng.choice(len(bench.rows), hospitals, replace=False).tolist()
        seen = observe("pairwise", {f"hospital-{n:02d}": bench.step([row], optimizer) for n, row in enumerate(rows)})
        hits += bench.guessed(rows[0], rows, hospitals, seen.total, optimizer, rng)
    return list(_rates(hits, SUM, optimizer, 1, hospitals, trials, hospitals))


def _rates(
    hits: Any, view: str, optimizer: str, rows: int, hospitals: int, trials: int, guesses: int
) -> Iterator[Rate]:
    pairs = 72
    for attack, count, chance in ((PAIR, hits[0], guesses / pairs), (ROW, hits[1], 1 / POOL)):
        yield Rate(attack, view, optimizer, rows, hospitals, int(count), trials, chance)
