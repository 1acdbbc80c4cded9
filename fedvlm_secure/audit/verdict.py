"""What an audit of a run says: for every clause whether it held, with the evidence where it did not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.primitives.wire import WireError

SCHEMA = "fedvlm-secure/audit-run/1"
PASS, FAIL, NOT_CHECKABLE = "pass", "fail", "not-checkable"
_SHOWN = 20  # findings of one clause that are spelt out

CLAUSES: Mapping[str, str] = {
    "A-1": "the manifest lists every finished file as it is, and the roster's server has signed it",
    "A-2": "the roster is sound and signed, and every plan names it",
    "A-3": "the transcripts follow one another without a gap, each on the head of the one before, to the last round",
    "A-4": "every plan has the thresholds, the ring and the floors that the policy and the cohort ask for (P-2)",
    "A-5": "every recorded message is signed by its sender, for this attempt, phase and recipient, in due form (P-1)",
    "A-6": "phases in order, replies only from whom was asked, each once, and enough of them to go on (P-1.7, P-5)",
    "A-7": "keys are fresh in every attempt, and all clients saw one key list or dealing (P-3.1, P-4.4, E-3)",
    "A-8": "one survivor list or sum, of those who uploaded, signed by as many as must have (P-6, P-7.3, E-5, E-6.1)",
    "A-9": "nobody was asked for both shares of one client; dropped are those who dealt and did not upload (P-7)",
    "A-10": "the model that a plan names is the one that the server has kept",
    "A-11": "the sums follow from the uploads and the revealed shares",
    "A-12": "what clients have kept is what the server has recorded, up to the head that ends the run",
    "A-13": "what the run says about privacy follows from what hospitals have attested",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be.

    Attributes:
        where: a file, or an attempt and a client.
    """

    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class ClauseVerdict:
    """One clause.

    Attributes:
        outcome: ``pass``, ``fail`` or ``not-checkable``.
        checked: how many single things were looked at.
        failures: how many of them were wrong; ``findings`` spells out the first.
        why: why it, or part of it, could not be checked.
    """

    clause: str
    outcome: str
    checked: int
    failures: int
    findings: tuple[Finding, ...]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attended:
    """One attempt, as it is recorded.

    Attributes:
        summed: whether it came to a sum.
        uploaded: whose vectors are recorded, sorted.
        silent: who was in the plan and has no vector recorded, sorted.
    """

    round: int
    attempt: int
    summed: bool
    uploaded: tuple[str, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """All clauses.

    Attributes:
        logs: the clients whose logs were given, of ``cohort``.
        covered: those of them whose logs go to the end of the run: no request to them went unrecorded.
        attended: who took part, attempt by attempt.
    """

    run: str
    protocol: str
    attempts: int
    cohort: tuple[str, ...]
    logs: tuple[str, ...]
    covered: tuple[str, ...]
    clauses: tuple[ClauseVerdict, ...]
    attended: tuple[Attended, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether any clause did not hold."""
        return any(clause.outcome == FAIL for clause in self.clauses)

    @property
    def sentence(self) -> str:
        """The verdict in words, and for whom it covers what the server has not recorded."""
        covered, cohort = len(self.covered), len(self.cohort)
        if self.failed:
            return "A clause does not hold."
        if not covered:
            return (
                "Every clause that can be checked holds. No client's log covers the run: "
                "requests may have gone unrecorded."
            )
        return (
            f"Every clause that can be checked holds. No request went unrecorded for {covered} of {cohort} clients, "
            "those whose logs go to the end of the run."
        )

    def to_json(self) -> dict[str, Any]:
        """The verdict for other programs, under :data:`SCHEMA`."""
        return {
            "schema": SCHEMA,
            "verdict": FAIL if self.failed else PASS,
            "run": self.run,
            "protocol": self.protocol,
            "attempts": self.attempts,
            "cohort": list(self.cohort),
            "client-logs": list(self.logs),
            "covered": list(self.covered),
            "attended": [asdict(attempt) for attempt in self.attended],
            "clauses": [
                {
                    "clause": clause.clause,
                    "rule": CLAUSES[clause.clause],
                    "outcome": clause.outcome,
                    "checked": clause.checked,
                    "failures": clause.failures,
                    "evidence": [{"where": it.where, "detail": it.detail} for it in clause.findings],
                    "not-checked": list(clause.why),
                }
                for clause in self.clauses
            ],
        }


@dataclass
class _Tally:
    checked: int = 0
    failures: int = 0
    findings: list[Finding] = field(default_factory=list)
    why: list[str] = field(default_factory=list)


class Checklist:
    """Collects what is found, clause by clause; one wrong thing does not end the audit."""

    def __init__(self) -> None:
        self._tallies = {clause: _Tally() for clause in CLAUSES}

    def require(self, clause: str, holds: bool, where: str, detail: str) -> bool:
        """Count one thing that was looked at, as wrong unless it holds; returns ``holds``."""
        tally = self._tallies[clause]
        tally.checked += 1
        if not holds:
            tally.failures += 1
            if len(tally.findings) < _SHOWN:
                tally.findings.append(Finding(where, detail))
        return holds

    def unchecked(self, clause: str, why: str) -> None:
        """Say that something under a clause cannot be checked, and why."""
        if why not in self._tallies[clause].why:
            self._tallies[clause].why.append(why)

    @contextmanager
    def expecting(self, clause: str, where: str) -> Iterator[None]:
        """Count what the block does as one thing, which is wrong if the block raises what verification raises."""
        try:
            yield
        except (ProtocolError, WireError, MisuseError) as error:
            self.require(clause, holds=False, where=where, detail=str(error))
        else:
            self.require(clause, holds=True, where=where, detail="")

    def verdicts(self) -> tuple[ClauseVerdict, ...]:
        """Every clause, in order."""
        return tuple(
            ClauseVerdict(clause, _outcome(it), it.checked, it.failures, tuple(it.findings), tuple(it.why))
            for clause, it in self._tallies.items()
        )


def _outcome(tally: _Tally) -> str:
    if tally.failures:
        return FAIL
    return PASS if tally.checked else NOT_CHECKABLE
