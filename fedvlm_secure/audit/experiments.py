"""What experiments say of a privacy claim: bounds beside claims, controls beside bounds, and no verdict «private»."""

from dataclasses import dataclass, field
from typing import Any

from fedvlm_secure.audit.calibration import Calibration
from fedvlm_secure.audit.estimators import LARGEST

SCHEMA = "fedvlm-secure/audit-privacy/1"
CONFIDENCE = 0.95

REFUTED, NOT_REFUTED = "refuted", "not refuted"
MEASURED = "measured"  # there is no claim that the experiment could refute
NOT_CHECKABLE = "not checkable"
NO_CLAIM = "no claim"

PROVES_NOTHING = "A bound below the claim proves nothing: an experiment can refute a guarantee, never establish it."


@dataclass(frozen=True, slots=True)
class Control:
    """The same experiment broken on purpose: what it would have noticed.

    Attributes:
        bound: ε that it refutes there; None where the control is no bound.
        refuted: whether that is above the claim.
        text: the control's result in words.
    """

    name: str
    bound: float | None
    refuted: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment and what came of it.

    Attributes:
        level: whose presence is guessed: ``"record"`` (a privacy unit), ``"client"`` (a hospital) or ``"row"``.
        claimed: ε that the settings state, at ``delta``; None where nothing is claimed of this level.
        bound: ε refuted with ``confidence``; None where the experiment gives none.
        estimate: of ε; as often too high as too low, and never used for the outcome.
        seen: what was done and seen, in sentences.
        details: plain values for JSON.
    """

    name: str
    level: str
    outcome: str
    claimed: float | None = None
    delta: float | None = None
    bound: float | None = None
    confidence: float | None = None
    estimate: float | None = None
    control: Control | None = None
    seen: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Kebab-case names and plain values."""
        control = self.control
        return {
            "name": self.name,
            "level": self.level,
            "claimed-epsilon": self.claimed,
            "delta": self.delta,
            "bound": self.bound,
            "confidence": self.confidence,
            "estimate": self.estimate,
            "control": control
            and {"name": control.name, "bound": control.bound, "refuted": control.refuted, "text": control.text},
            "outcome": self.outcome,
            "seen": list(self.seen),
            **self.details,
        }


@dataclass(frozen=True, slots=True)
class PrivacyAudit:
    """All experiments on one training set-up.

    Attributes:
        run: the settings' name.
        claim: what the settings claim, in words.
        calibration: the estimators on an ideal mechanism, if that was asked for.
    """

    run: str
    claim: str
    experiments: tuple[Experiment, ...]
    calibration: tuple[Calibration, ...] = ()

    @property
    def outcome(self) -> str:
        """``"refuted"`` if a claim is, with its experiment's confidence; ``"no claim"`` if the settings make none."""
        outcomes = [experiment.outcome for experiment in self.experiments]
        for each in (REFUTED, NOT_REFUTED):
            if each in outcomes:
                return each
        return NOT_CHECKABLE if any(experiment.claimed is not None for experiment in self.experiments) else NO_CLAIM

    def to_json(self) -> dict[str, Any]:
        """The audit as one JSON object."""
        return {
            "schema": SCHEMA,
            "run": self.run,
            "claim": self.claim,
            "outcome": self.outcome,
            "experiments": [experiment.to_json() for experiment in self.experiments],
            "calibration": [row.to_json() for row in self.calibration],
            "note": PROVES_NOTHING,
        }


def outcome(bound: float, claimed: float) -> str:
    """What a bound says of a claim."""
    return REFUTED if bound > claimed else NOT_REFUTED


def silenced(bound: float, claimed: float) -> Control:
    """The control of every experiment on noise: the same without any."""
    noticed = bound > claimed
    said = "which would have refuted the claim" if noticed else "below the claim: too small an experiment to refute it"
    return Control(
        "no noise", bound, noticed, f"without noise the same experiment has a bound of {told(bound)}, {said}"
    )


def told(bound: float) -> str:
    """The bound for a reader: estimators stop at :data:`~fedvlm_secure.audit.estimators.LARGEST`."""
    return f"{LARGEST:.0f} or more" if bound >= LARGEST else f"{bound:.2f}"
