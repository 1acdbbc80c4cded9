"""Whether what a run says about privacy follows from settings, signed plans and what hospitals attest (A-13)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.records import Attempt, Records, json_of
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.privacy.accounting import Event, SampledGaussian, epsilon
from fedvlm_secure.privacy.attestation import Attestation, read_attestation
from fedvlm_secure.privacy.distributed import DistributedGaussian
from fedvlm_secure.secagg.log import ClientLog

CLAUSE = "A-13"
_SUMMARY = "coordinator/summary.json"
_SLACK = 1.005  # two accountants' upper bounds of one mechanism differ in the third digit


@dataclass(frozen=True)
class Claim:
    """A run's privacy statement, as ``summary.json`` holds it."""

    level: str
    unit: str
    epsilon: float
    delta: float
    clip_norm: float
    noise_multiplier: float
    sample_rate: float
    rounds: int
    releases: int


def check_claims(records: Records, said: Sequence[Messages], summed: set[tuple[int, int]], found: Checklist) -> None:
    """Compose ε anew, and hold it against what the run claims."""
    settings = records.settings
    if settings is None:
        found.unchecked(CLAUSE, "settings.toml cannot be read")
        return
    stated, mode = _stated(records), settings.privacy.mode
    if mode == "none" and stated.get("level", "none") == "none":
        found.unchecked(CLAUSE, "the run claims no differential privacy")
        return
    claim = _claim(stated)
    if claim is None:
        found.require(CLAUSE, holds=False, where=_SUMMARY, detail="says nothing about privacy that can be read")
        return
    if not found.require(CLAUSE, claim.level == mode, _SUMMARY, "claims another level of privacy than the settings"):
        return
    if claim.level == "record":
        _check_records(claim, settings, records, found)
        _check_attested(claim, records, said, summed, found)
    else:
        same = (claim.unit, claim.delta, claim.rounds) == ("hospital", settings.privacy.target_delta, settings.rounds)
        found.require(CLAUSE, same, _SUMMARY, "claims another unit, δ or number of rounds than the settings")
        _check_sums(claim, records.attempts, found)


def _stated(records: Records) -> Mapping[str, Any]:
    said = json_of(records.folder.path / _SUMMARY)
    stated = said.get("privacy") if isinstance(said, Mapping) else None
    return stated if isinstance(stated, Mapping) else {}


def _claim(stated: Mapping[str, Any]) -> Claim | None:
    try:
        return Claim(
            str(stated["level"]),
            str(stated["unit"]),
            _float(stated["epsilon"], math.inf),
            _float(stated["delta"]),
            _float(stated["clip-norm"]),
            _float(stated["noise-multiplier"]),
            _float(stated["sample-rate"]),
            _whole(stated["rounds"]),
            _whole(stated["releases"]),
        )
    except (KeyError, ValueError):
        return None


def _float(value: Any, nothing: float | None = None) -> float:
    if value is None and nothing is not None:
        return nothing
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise ValueError("is no number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is no whole number")
    return value


def _check_records(claim: Claim, settings: Settings, records: Records, found: Checklist) -> None:
    """The claim is about the run of the settings, and its ε what its own numbers compose to."""
    table = settings.privacy
    repeated = len(records.attempts) - len({attempt.place[0] for attempt in records.attempts})
    for what, claimed, due in (
        ("unit", claim.unit, table.unit),
        ("δ", claim.delta, table.target_delta),
        ("clip norm", claim.clip_norm, table.max_grad_norm),
        ("sample rate", claim.sample_rate, table.sample_rate),
        ("number of rounds", claim.rounds, settings.rounds),
        ("number of steps", claim.releases, (settings.rounds + repeated) * settings.training.steps),
    ):
        found.require(CLAUSE, claimed == due, _SUMMARY, f"claims another {what} than follows from the settings")
    with found.expecting(CLAUSE, _SUMMARY):
        _spends_at_most(claim, [SampledGaussian(claim.noise_multiplier, claim.sample_rate, claim.releases)])


def _check_attested(
    claim: Claim, records: Records, said: Sequence[Messages], summed: set[tuple[int, int]], found: Checklist
) -> None:
    """Each hospital whose log is there has signed trainings for all that it uploaded, with no more ε than claimed."""
    run = records.attempts[0].plan.run if records.attempts else b""
    keys = records.roster.keys()
    attested = {log.client for log in records.logs if log.attested}
    for log in records.logs:
        where = f"log of {log.client}"
        if log.client in keys and log.attested:
            with found.expecting(CLAUSE, where):
                trained = read_attestation(log.attested, log.client, keys[log.client], run)
                _check_trained(claim, trained, _uploads(log, said, summed))
    cohort = {name for attempt in records.attempts for name in attempt.plan.cohort}
    if silent := sorted(cohort - attested):
        why = f"there is no attestation of {', '.join(silent)}: how they have trained is not known here"
        found.unchecked(CLAUSE, why)
    if attested:
        found.unchecked(CLAUSE, "an attestation is the hospital's word; no message shows how it has trained")


def _uploads(log: ClientLog, said: Sequence[Messages], summed: set[tuple[int, int]]) -> set[int]:
    """The rounds in which the client's update is in a sum."""
    rounds = set()
    for messages in said:
        attempt = messages.attempt
        if attempt.place in summed and attempt.plan.layout.update and log.client in messages.uploaded:
            rounds.add(attempt.place[0])
    return rounds


def _check_trained(claim: Claim, attested: Attestation, uploads: set[int]) -> None:
    if (attested.unit, attested.clip_norm) != (claim.unit, claim.clip_norm):
        raise MisuseError("attests another unit or clip norm than the run claims")
    if missing := sorted(uploads - {each.round for each in attested.trained}):
        raise MisuseError(f"has uploaded in round {missing[0]}, and attests no training for it")
    if len({(each.round, each.tries) for each in attested.trained}) != len(attested.trained):
        raise MisuseError("attests one training twice")
    _spends_at_most(claim, [each.event for each in attested.trained])


def _check_sums(claim: Claim, attempts: Sequence[Attempt], found: Checklist) -> None:
    """The noise is in the plans, which all parties have signed for: every attempt with an update counts as opened."""
    events = list[Event]()
    for attempt in attempts:
        if attempt.plan.layout.update:
            with found.expecting(CLAUSE, attempt.where):
                events.append(DistributedGaussian.of(attempt.plan))
    with found.expecting(CLAUSE, _SUMMARY):
        _spends_at_most(claim, events)


def _spends_at_most(claim: Claim, events: Sequence[Event]) -> None:
    """Raise :class:`MisuseError` if ``events`` compose to more than the claim."""
    # Rényi's bound is quick and the loosest: a claim above it stands.
    for accountant in ("rdp", "pld"):
        spent = epsilon(events, claim.delta, accountant)
        if spent <= claim.epsilon * _SLACK:
            return
    raise MisuseError(f"claims ε = {claim.epsilon:.4g} at δ = {claim.delta:g}, and spends {spent:.4g}")
