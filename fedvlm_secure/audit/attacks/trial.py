"""What the attacks share: the cohort they attack, how refusals are told from accidents, how findings are worded.

A verdict is ``resisted`` only if the refusal came at the point of attack, from a check that is there for it: one at
another step, or an exception out of nowhere, proves nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.target import (
    NOT_APPLICABLE,
    RESISTED,
    VULNERABLE,
    Attempt,
    AuditTarget,
    BrokenRoundError,
    Cohort,
    NotApplicableError,
    RefusedError,
    TooLittleError,
    Vector,
)
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream

CLIENTS = 6
VICTIM = "c01"
WEIGHT_MAX = 1000
DIMENSION = 200

# An update counts as recovered if it is known to a hundredth; what attacks find is a thousand times closer.
RECOVERED = 0.01
SIGNIFICANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of an attack.

    Attributes:
        clause: of the target's specification, that the refusal named.
    """

    outcome: str
    observed: str
    clause: str = ""


@dataclass(frozen=True, slots=True)
class Attack:
    """One entry of the catalogue.

    Attributes:
        tried: what the attacker does, in a sentence.
        consequence: of its success, conditions included.
        reference: the paper or place that describes it.
    """

    name: str
    tried: str
    consequence: str
    reference: str
    run: Callable[[AuditTarget], Finding]


class InconclusiveError(Exception):
    """The attack did not get to its point, or what came of it fits neither verdict."""


def cohort(
    clients: int = CLIENTS,
    dimension: int = DIMENSION,
    deviation: float = 0.1,
    weight: Callable[[int], int] = lambda index: 120 + 70 * index,
    names: Sequence[str] = (),
) -> Cohort:
    """Clients c00, c01, … whose updates are fixed, and differ: float32 [dimension] of this standard deviation."""
    chosen = list(names) or [f"c{index:02d}" for index in range(clients)]
    updates = {name: values(name, dimension, deviation) for name in chosen}
    weights = {name: weight(index) for index, name in enumerate(chosen)}
    return Cohort(updates, weights, WEIGHT_MAX)


def values(label: str, dimension: int, deviation: float) -> NDArray[np.float32]:
    """Numbers that look random, the same at every call."""
    words = np.empty(dimension, np.dtype("<u4"))
    MaskStream(Secret(digest("audit-values", label))).fill(words)
    return ((words / 2.0**31 - 1.0) * (deviation * np.sqrt(3.0))).astype(np.float32)


def relative(found: Vector, truth: Vector) -> float:
    """The L2 distance, relative to the truth."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@dataclass
class Moves:
    """The lies of an attack, and those of them that were refused where they should be.

    Attributes:
        steps: where a refusal counts.
        clauses: the families of clauses that count, of targets whose refusals name any.
    """

    steps: Sequence[str]
    clauses: Sequence[str]
    made: int = 0
    refused: list[RefusedError] = field(default_factory=list)

    def make(self, act: Callable[[], object]) -> bool:
        """Whether ``act`` was accepted; raises :class:`InconclusiveError` if it failed for another reason."""
        self.made += 1
        try:
            act()
        except RefusedError as error:
            if not self._counts(error):
                raise InconclusiveError(f"stopped beside the point of attack: {error}") from error
            self.refused.append(error)
            return False
        return True

    def _counts(self, error: RefusedError) -> bool:
        named = [part.rsplit(".", 1)[0] for part in error.clause.split("/") if part]
        fits = not named or any(family in self.clauses for family in named)
        return error.step in self.steps and error.deliberate and fits

    def resisted(self, otherwise: str = "") -> Finding:
        """The finding that all moves, or enough of them, were refused."""
        if not self.refused:
            raise InconclusiveError(f"nothing was refused{', and yet ' + otherwise if otherwise else ''}")
        first = self.refused[0]
        how_many = "" if self.made == 1 else f"{len(self.refused)} of {self.made} requests were refused; "
        return Finding(RESISTED, how_many + str(first) + (f"; {otherwise}" if otherwise else ""), first.clause)


def exposure(attempt: Attempt, truth: Cohort, moves: Moves, how: str) -> Finding:
    """What the attacker knows of the victim's input after its moves; ``how`` it got there, if it did."""
    try:
        found = attempt.recover(VICTIM)
    except TooLittleError as error:
        return moves.resisted(str(error))
    error_of_it = relative(found.values, truth.updates[VICTIM].astype(np.float64))
    if not error_of_it < RECOVERED:
        raise InconclusiveError(f"what was recovered is off by {error_of_it:.1e}")
    weight = "" if found.weight is None else f", and its weight as {found.weight:.4g} ({truth.weights[VICTIM]})"
    return Finding(VULNERABLE, f"{how}; {VICTIM}'s update came out to {error_of_it:.1e} (relative L2){weight}")


def run(attack: Attack, target: AuditTarget) -> Finding:
    """Try one attack; whatever it runs into is a finding."""
    try:
        return attack.run(target)
    except NotApplicableError as error:
        return Finding(NOT_APPLICABLE, str(error))
    except InconclusiveError as error:
        return Finding(NOT_APPLICABLE, f"inconclusive: {error}")
    except (RefusedError, BrokenRoundError, TooLittleError) as error:
        return Finding(NOT_APPLICABLE, f"inconclusive: what is honest of it failed: {error}")
