"""Exhaustive search of the model: every state of one attempt, and every two attempts."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from pairwise_knowledge import PRIME, Exposure, Vector, fewest_clients, free_of, known_seeds, known_sums
from pairwise_model import Client, Clients, Model, Rule, State, steps, subsets, without

NEWCOMERS = "PQRST"  # the second attempt's honest clients that were not in the first


class Outcome(NamedTuple):
    """All of an attempt that a later one can build on; seeds and masks are fresh in each."""

    sums: tuple[Vector, ...]
    answered: Clients


@dataclass
class Search:
    """Every reachable state of one attempt, breadth first; it ends early where one honest client is alone.

    Attributes:
        came_from: each state with one that leads to it, those of few answers first.
        outcomes: each outcome with the first state that has it.
        alone: the first state in which the server holds a combination of a single honest client's updates.
    """

    model: Model
    came_from: dict[State, State | None] = field(default_factory=dict)
    outcomes: dict[Outcome, State] = field(default_factory=dict)
    alone: State | None = None

    def __post_init__(self) -> None:
        start = self.model.start
        self.came_from[start] = None
        waiting = deque([start])
        while waiting and self.alone is None:
            state = waiting.popleft()
            self._judge(state)
            for after in steps(self.model, state):
                if after not in self.came_from:
                    self.came_from[after] = state
                    waiting.append(after)

    def _judge(self, state: State) -> None:
        sums = known_sums(self.model, state)
        answered = "".join(name for name, client in self.model.named(state) if client.answered)
        self.outcomes.setdefault(Outcome(sums, answered), state)
        exposure = fewest_clients(sums, self.model.setting.honest)
        if exposure is not None and len(exposure.clients) == 1:
            self.alone = state

    def path(self, state: State) -> list[State]:
        """From the start to ``state``."""
        path = [state]
        while (before := self.came_from[path[-1]]) is not None:
            path.append(before)
        return path[::-1]

    def trace(self, state: State) -> list[str]:
        """The answers that lead to ``state``, one a line, and what the server has then."""
        path = self.path(state)
        lines = []
        for before, after in pairwise(path):
            for name, old, new in zip(self.model.setting.honest, before, after, strict=True):
                if old != new:
                    lines.append(f"{name} {deed(old, new)}")
        seeds = known_seeds(self.model, state)
        lines.append(f"self-mask seeds known: {seeds.self_mask or 'none'}; mask seeds known: {seeds.mask or 'none'}")
        return lines


def deed(before: Client, after: Client) -> str:
    """What a client did between two of its states."""
    if not before.published:
        return "publishes its keys"
    if before.keys is None:
        assert after.keys is not None
        names, forged, edition = after.keys
        lie = f", those of {forged} forged" if forged else ""
        lie += f", edition {edition}" if edition else ""
        return f"is shown the keys of {names}{lie}, and deals its parcels"
    if before.parcels is None:
        return f"is given the parcels of {after.parcels or 'nobody'}, and uploads"
    if before.signed != after.signed:
        return f"signs the survivors {after.signed[-1]}"
    survivors, dropped = after.answered[-1]
    return f"answers for the survivors {survivors} and the dropped {dropped or 'nobody'}"


@dataclass(frozen=True)
class TwoAttempts:
    """Two attempts after which the server holds a combination of one honest client's updates.

    Attributes:
        combination: for example ``"A - A'"``, where A' is what A sends in the second attempt if it is something new.
        trace: the answers, one a line.
    """

    combination: str
    trace: list[str]


def two_attempts(first: Search, second: Search) -> Iterator[TwoAttempts]:
    """All pairs of outcomes that leave one honest client alone, those of few answers first.

    It is enough to have searched each attempt by itself: a client leaves the first before it enters the second
    (P-2.7), no guard looks at another attempt, and all that the first decides about the second is what may be sent
    again (P-7.5). So any interleaving ends where the first attempt and then the second end. Masks are fresh in each: a
    combination over both is free of masks exactly if its two parts are.

    The second cohort may share any clients with the first. All states being there, their places in it do not matter.
    """
    pairs = sorted(
        (len(first.path(one)) + len(second.path(other)), before, after)
        for before, one in first.outcomes.items()
        for after, other in second.outcomes.items()
        if before.sums and after.sums  # else there is nothing to combine
    )
    ours, places = first.model.setting.honest, second.model.setting.honest
    for _, before, after in pairs:
        for cohort, resent in second_cohorts(first.model, before, len(places)):
            fresh = without(cohort, resent)
            exposure = fewest_clients(combined(ours, before.sums, cohort, after.sums, fresh), ours + fresh)
            if exposure is not None and len(exposure.clients) == 1:
                renamed = str.maketrans(places, cohort)
                lines = [f"1: {line}" for line in first.trace(first.outcomes[before])]
                lines += [f"2: {line.translate(renamed)}" for line in second.trace(second.outcomes[after])]
                names = [*ours, *(name + "'" for name in fresh)]
                yield TwoAttempts(formula(exposure, names), [*lines, f"sent again: {resent or 'nothing'}"])


def second_cohorts(model: Model, before: Outcome, places: int) -> Iterator[tuple[Clients, Clients]]:
    """Who can meet in the second attempt, and who of them sends the first attempt's vector again (P-7.5)."""
    ours = model.setting.honest
    # Of those that no first sum depends on, an old vector is as good as a new one.
    summed = "".join(name for name, *column in zip(ours, *before.sums, strict=True) if any(column))
    sendable = without(summed, before.answered) if model.has(Rule.LATCH) else summed
    for shared in subsets(ours):
        if len(shared) <= places:
            cohort = (shared + NEWCOMERS)[:places]
            for resent in subsets("".join(name for name in shared if name in sendable)):
                yield cohort, resent


def combined(
    ours: Clients, before: tuple[Vector, ...], cohort: Clients, after: tuple[Vector, ...], fresh: Clients
) -> tuple[Vector, ...]:
    """What both attempts give together: columns for the first attempt's updates, then for the second's fresh ones."""
    columns = [len(ours) + fresh.index(name) if name in fresh else ours.index(name) for name in cohort]
    rows = [(*row, *(0 for _ in fresh)) for row in before]
    for row in after:
        wide = [0] * (len(ours) + len(fresh))
        for column, value in zip(columns, row, strict=True):
            wide[column] = value
        rows.append(tuple(wide))
    return free_of((), rows)


def formula(exposure: Exposure, names: Sequence[str]) -> str:
    """The combination as a reader writes it."""
    terms = [
        (value if value <= PRIME // 2 else value - PRIME, name)
        for value, name in zip(exposure.combination, names, strict=True)
    ]
    text = " ".join(
        f"{'-' if value < 0 else '+'} {name if abs(value) == 1 else f'{abs(value)} {name}'}"
        for value, name in terms
        if value
    )
    return text.removeprefix("+ ")
