"""Attempts at a round as the coordinator recorded them: who took part, what each phase cost in bytes and seconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedvlm_secure.report.reading import Line, RunRecord, mapping, names, number, text

PHASES = ("keys", "shares", "input", "masked-input", "consistency", "unmask", "sum")
UPLOADS = ("masked-input", "input")  # the phases in which the update itself travels


@dataclass(frozen=True, slots=True)
class Attempt:
    """One line of ``coordinator/metrics.jsonl``.

    Attributes:
        label: the round's number; ``2.1`` for an aborted attempt, ``test`` for the evaluation.
        down: bytes from the server to all hospitals together, by phase.
        up: bytes from all hospitals together to the server, by phase.
        seconds: by phase.
    """

    label: str
    kind: str
    round: float | None
    attempt: float | None
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]
    reason: str
    down: dict[str, float]
    up: dict[str, float]
    seconds: dict[str, float]
    line: Line

    @property
    def clients(self) -> int:
        """How many hospitals were asked, as far as the line tells."""
        return len({*self.survivors, *self.dropped})

    def fate(self, site: str) -> str:
        """``dropped``, ``aborted``, ``survived`` or ``absent``."""
        if site in self.dropped:
            return "dropped"
        if self.kind == "aborted":
            return "aborted"
        return "survived" if site in self.survivors else "absent"


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What one phase cost over the run, in bytes, and seconds in all.

    ``_each`` is the average a hospital and finished attempt: of an aborted one nobody recorded who was asked.
    """

    phase: str
    down: float
    up: float
    down_each: float | None
    up_each: float | None
    seconds: float | None


def attempts(run: RunRecord) -> list[Attempt]:
    """Every attempt, by round and attempt; a resumed run may have written them in another order."""
    every = (_attempt(line) for line in run.metrics)
    return sorted(every, key=lambda attempt: (attempt.round or 0, attempt.attempt or 0))


def participants(run: RunRecord, history: Sequence[Attempt]) -> list[str]:
    """Everybody who is named anywhere in the run."""
    named = {name for attempt in history for name in (*attempt.survivors, *attempt.dropped)}
    return sorted({*named, *names(run.fact("cohort")), *(site.name for site in run.sites)})


def phases(history: Sequence[Attempt]) -> list[str]:
    """The phases that occur, in the order of the protocol; unknown ones last."""
    seen = {phase for attempt in history for phase in (*attempt.down, *attempt.up, *attempt.seconds)}
    return [phase for phase in PHASES if phase in seen] + sorted(seen - set(PHASES))


def costs(history: Sequence[Attempt]) -> list[PhaseCost]:
    """What each phase cost, then all of them together."""
    counted = [attempt for attempt in history if attempt.down or attempt.up or attempt.seconds]
    known = [attempt for attempt in counted if attempt.clients]
    clients = sum(attempt.clients for attempt in known)

    def cost(title: str, included: Sequence[str]) -> PhaseCost:
        def total(part: Callable[[Attempt], dict[str, float]], among: Sequence[Attempt] = counted) -> float:
            return sum(part(attempt).get(phase, 0.0) for attempt in among for phase in included)

        down, up = total(_down), total(_up)
        timed = any(phase in attempt.seconds for attempt in counted for phase in included)
        spent = total(lambda attempt: attempt.seconds) if timed else None
        down_each, up_each = (total(part, known) / clients if clients else None for part in (_down, _up))
        return PhaseCost(title, down, up, down_each, up_each, spent)

    found = phases(counted)
    return [cost(phase, [phase]) for phase in found] + ([cost("all phases", found)] if found else [])


def training_seconds(history: Sequence[Attempt]) -> float | None:
    """Seconds of local training over the run, all hospitals together."""
    spent = [number(attempt.line.get("training-seconds")) for attempt in history]
    known = [value for value in spent if value is not None]
    return sum(known) if known else None


def bytes_per_parameter(run: RunRecord, history: Sequence[Attempt]) -> float | None:
    """Bytes that one hospital's upload took for each shared parameter, averaged over the training rounds."""
    parameters = number(run.fact("shared-parameters"))
    training = [attempt for attempt in history if attempt.kind == "training" and attempt.survivors]
    sent = sum(attempt.up.get(phase, 0.0) for attempt in training for phase in UPLOADS)
    uploads = sum(len(attempt.survivors) for attempt in training)
    return sent / uploads / parameters if parameters and sent else None


def _down(attempt: Attempt) -> dict[str, float]:
    return attempt.down


def _up(attempt: Attempt) -> dict[str, float]:
    return attempt.up


def _attempt(line: Line) -> Attempt:
    kind, ordinal, attempt = text(line.get("kind")), number(line.get("round")), number(line.get("attempt"))
    name = "–" if ordinal is None else f"{ordinal:.0f}"
    label = {"evaluation": "test", "aborted": f"{name}.{attempt or 1:.0f}"}.get(kind, name)
    sizes = mapping(line, "bytes")
    return Attempt(
        label=label,
        kind=kind,
        round=ordinal,
        attempt=attempt,
        survivors=names(line.get("survivors")),
        dropped=names(line.get("dropped")),
        reason=text(line.get("reason")).removeprefix(f"round {name}, attempt {attempt or 1:.0f}, "),
        down=_figures({phase: mapping(sizes, phase).get("request") for phase in sizes}),
        up=_figures({phase: mapping(sizes, phase).get("reply") for phase in sizes}),
        seconds=_figures(mapping(line, "seconds")),
        line=line,
    )


def _figures(values: Line | dict[str, Any]) -> dict[str, float]:
    known = {text(phase): number(value) for phase, value in values.items()}
    return {phase: value for phase, value in known.items() if value is not None}
