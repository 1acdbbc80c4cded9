"""Re-checks a finished run offline: from what the server hands over, and from the logs that clients hand over.

Nothing here needs a model, torch or a secret. What cannot be checked from these files is said to be so, and why.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fedvlm_secure.audit.claims import check_claims
from fedvlm_secure.audit.encrypted import check_encrypted
from fedvlm_secure.audit.history import Ended, check_chain, check_freshness, check_logs
from fedvlm_secure.audit.messages import Messages, check_messages, check_plan_of
from fedvlm_secure.audit.models import ENCRYPTED, check_models
from fedvlm_secure.audit.pairwise import PairwiseAudit
from fedvlm_secure.audit.records import Attempt, Records, read
from fedvlm_secure.audit.sums import check_sums
from fedvlm_secure.audit.verdict import Attended, Checklist, Verdict
from fedvlm_secure.secagg.log import REPLY
from fedvlm_secure.secagg.policy import Policy


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
    _check_recorded_attempts(records, found)
    following = zip_longest(records.attempts, records.attempts[1:])
    summed = {attempt.place for attempt, after in following if _summed(records, attempt, after)}
    said = [_check_attempt(it, records, policy, found, summed=it.place in summed) for it in records.attempts]
    check_freshness(said, found)
    last = check_models(records, said, summed, found)
    check_sums(records, said, summed, found)
    check_claims(records, said, summed, found)
    covered = check_logs(records, Ended(head, last, summed), found)
    first = records.attempts[0].plan if records.attempts else None
    return Verdict(
        run=first.run.hex() if first else "",
        protocol=first.protocol if first else "",
        attempts=len(records.attempts),
        cohort=first.cohort if first else (),
        logs=tuple(log.client for log in records.logs),
        covered=covered,
        clauses=found.verdicts(),
        attended=tuple(_attended(messages, summed) for messages in said),
    )


def _attended(said: Messages, summed: set[tuple[int, int]]) -> Attended:
    place, cohort = said.attempt.place, set(said.attempt.plan.cohort)
    uploaded = said.uploaded & cohort
    return Attended(*place, place in summed, tuple(sorted(uploaded)), tuple(sorted(cohort - uploaded)))


def _check_manifest(records: Records, found: Checklist) -> None:
    where = "manifest.json"
    with found.expecting("A-1", where):
        records.folder.verify_manifest(records.roster.server)
    found.require("A-2", bool(records.roster.members), "roster.cbor", "lists nobody")
    found.unchecked("A-2", "the consortium's key is the one that the roster names; compare its fingerprint with yours")


def _check_recorded_attempts(records: Records, found: Checklist) -> None:
    """The attempts in ``metrics.jsonl`` are those with a transcript, up to the rounds that were asked for (A-3)."""
    where = "coordinator/metrics.jsonl"
    listed = sorted((str(line.get("round")), str(line.get("attempt"))) for line in records.lines)
    there = sorted((str(attempt.place[0]), str(attempt.place[1])) for attempt in records.attempts)
    found.require("A-3", bool(there), where, "there is no transcript at all")
    found.require("A-3", listed == there, where, "lists other attempts than there are transcripts")
    if records.settings is not None and records.attempts:
        rounds, last = records.settings.rounds, records.attempts[-1].place[0]
        found.require("A-3", last in (rounds, rounds + 1), where, f"ends with round {last} of {rounds}")


def _summed(records: Records, attempt: Attempt, after: Attempt | None) -> bool:
    """Whether a later round follows, or nothing does and the attempt is not recorded as failed."""
    if after is not None:
        return after.place[0] > attempt.place[0]
    line = records.line_of(attempt)
    return line is None or line.get("kind") != "aborted"


def _check_attempt(
    attempt: Attempt, records: Records, policy: Policy | None, found: Checklist, *, summed: bool
) -> Messages:
    said = check_messages(attempt, records, found)
    said.sound = check_plan_of(said, records, policy, found)
    survivors = tuple(sorted(said.who("input", REPLY)))
    if attempt.plan.protocol in ENCRYPTED:
        survivors = check_encrypted(said, found, summed=summed)
    elif attempt.plan.protocol == "pairwise":
        if not said.sound:
            return said  # its graph and thresholds mean nothing
        audit = PairwiseAudit(said, records.roster, found)
        audit.check(summed=summed)
        survivors = audit.survivors
    if summed:
        enough = len(survivors) >= attempt.plan.min_survivors
        found.require("A-6", enough, attempt.where, f"sums {len(survivors)}, {attempt.plan.min_survivors} are needed")
        line = records.line_of(attempt)
        if line is not None:
            same = line.get("survivors") == list(survivors)
            found.require("A-8", same, attempt.where, "is recorded in coordinator/metrics.jsonl with other survivors")
    return said
