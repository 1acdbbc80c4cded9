"""Re-checks a finished run offline: from what the server hands over, and from the logs that clients hand over.

Nothing here needs a model, torch or a secret. What cannot be checked from these files is said to be so, and why.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fedvlm_secure.audit.history import check_chain, check_freshness, check_logs
from fedvlm_secure.audit.messages import Messages, check_messages, check_plan_of
from fedvlm_secure.audit.pairwise import PairwiseAudit
from fedvlm_secure.audit.records import Attempt, Records, read
from fedvlm_secure.audit.verdict import Checklist, Verdict
from fedvlm_secure.federation.lineage import Lineage
from fedvlm_secure.secagg.encrypted import messages as encrypted
from fedvlm_secure.secagg.log import REPLY, REQUEST
from fedvlm_secure.secagg.policy import Policy

_ENCRYPTED = ("ckks", "bfv")


def audit_run(path: Path | str, logs: Sequence[Path] = (), policy: Policy | None = None) -> Verdict:
    """The verdict on the run in ``path``.

    Args:
        logs: clients' logs, each from the client itself: those in the run directory went through the server's hands.
        policy: the floors that plans are held against; those of the run's own settings if None.

    Raises:
        MisuseError: there is no run, or a log is none.
        VerificationError: the roster is not one, or nobody has signed it.
    """
    records, found = read(Path(path), logs), Checklist()
    for where, detail in records.unreadable:
        found.require("A-5", holds=False, where=where, detail=f"cannot be read: {detail}")
    _check_manifest(records, found)
    head = check_chain(records.attempts, found)
    said = [_check_attempt(attempt, records, policy or records.policy, found) for attempt in records.attempts]
    check_freshness(said, found)
    _check_models(records, said, found)
    _say_what_is_out_of_reach(records, found)
    check_logs(records, head, found)
    first = records.attempts[0].plan if records.attempts else None
    return Verdict(
        run=first.run.hex() if first else "",
        protocol=first.protocol if first else "",
        attempts=len(records.attempts),
        cohort=first.cohort if first else (),
        logs=tuple(log.client for log in records.logs),
        clauses=found.verdicts(),
    )


def _check_manifest(records: Records, found: Checklist) -> None:
    where = "manifest.json"
    with found.expecting("A-1", where):
        records.folder.verify_manifest(records.roster.server)
    found.require("A-2", bool(records.roster.members), "roster.cbor", "lists nobody")
    found.unchecked("A-2", "the consortium's key is the one that the roster names; compare its fingerprint with yours")


def _summed(records: Records, attempt: Attempt) -> bool:
    """Whether a later round follows, or nothing does in a run that has ended."""
    places = [other.place for other in records.attempts]
    after = places[places.index(attempt.place) + 1 :]
    return not after or after[0][0] > attempt.place[0]


def _check_attempt(attempt: Attempt, records: Records, policy: Policy | None, found: Checklist) -> Messages:
    said, summed = check_messages(attempt, records, found), _summed(records, attempt)
    check_plan_of(said, records, policy, found)
    if attempt.plan.protocol == "pairwise":
        audit = PairwiseAudit(said, records.roster, found)
        audit.check(summed=summed)
        survivors = audit.survivors
    elif attempt.plan.protocol in _ENCRYPTED:
        survivors = _check_encrypted(said, found)
    else:
        survivors = tuple(sorted(said.who("input", REPLY)))
    if summed:
        enough = len(survivors) >= attempt.plan.min_survivors
        found.require("A-6", enough, attempt.where, f"sums {len(survivors)}, {attempt.plan.min_survivors} are needed")
        _check_recorded(attempt, records, survivors, found)
    return said


def _check_encrypted(said: Messages, found: Checklist) -> tuple[str, ...]:
    """One sum of those who have uploaded, shown to everyone alike (A-8)."""
    uploaded = tuple(sorted(said.of(encrypted.INPUT, REPLY)))
    sums = said.of(encrypted.SUM, REQUEST)
    for client, body in sums.items():
        where = f"{said.attempt.where}: {client}"
        found.require("A-8", body.survivors == uploaded, where, "was shown a sum of others than those who uploaded")
        first = next(iter(sums.values()))
        found.require("A-8", body.digests == first.digests, where, "was shown another sum than the others")
    return uploaded


def _check_recorded(attempt: Attempt, records: Records, survivors: tuple[str, ...], found: Checklist) -> None:
    """What ``metrics.jsonl`` says of the round is what the messages say (A-8)."""
    try:
        lines = records.folder.coordinator.metrics.lines()
    except (ValueError, OSError) as error:
        found.require("A-8", holds=False, where="coordinator/metrics.jsonl", detail=f"cannot be read: {error}")
        return
    for line in lines:
        if (line.get("round"), line.get("attempt")) == attempt.place:
            same = line.get("survivors") == list(survivors)
            found.require("A-8", same, attempt.where, "is recorded in coordinator/metrics.jsonl with other survivors")


def _check_models(records: Records, said: Sequence[Messages], found: Checklist) -> None:
    """A plan's model is the one that the server keeps of the round before, or that clients said follows (A-10)."""
    named = _lineage(records)
    if named is None:
        found.unchecked("A-10", "there is no lineage.json that says what a model's hash covers")
        return
    followed: set[bytes] = set()
    for messages in said:
        attempt = messages.attempt
        path = records.folder.coordinator.path / "global" / f"round-{attempt.place[0] - 1:04d}.safetensors"
        if path.exists():
            model = _model(named, path)
            detail = f"its plan names another model than {path.name} is"
            found.require("A-10", attempt.plan.model == model, attempt.where, detail)
        elif followed:
            detail = "its plan names a model that no client has said follows from the sum before"
            found.require("A-10", attempt.plan.model in followed, attempt.where, detail)
        adopted = messages.of(encrypted.SUM, REPLY) if attempt.plan.protocol in _ENCRYPTED else {}
        if adopted:
            followed = {body.model for body in adopted.values()}


def _lineage(records: Records) -> Lineage | None:
    try:
        said = json.loads((records.folder.coordinator.path / "lineage.json").read_text(encoding="utf-8"))
        return Lineage(bytes.fromhex(said["base"]), str(said["adapter"]), bytes.fromhex(said["common"]), b"")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _model(named: Lineage, path: Path) -> bytes | None:
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return None
    shared = b"".join(np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in sorted(tensors))
    return Lineage(named.base, named.adapter, named.common, shared).hash


def _say_what_is_out_of_reach(records: Records, found: Checklist) -> None:
    found.unchecked("A-11", "transcripts hold digests of uploads and of revealed shares, not these themselves")
    try:
        summary = json.loads((records.folder.coordinator.path / "summary.json").read_text(encoding="utf-8"))
        mode = summary["privacy"]["mode"]
    except (OSError, ValueError, KeyError, TypeError):
        mode = None
    if mode in (None, "none"):
        found.unchecked("A-13", "the run claims no differential privacy")
    else:
        found.unchecked("A-13", "hospitals do not sign how they have trained; their own ledgers say it")
