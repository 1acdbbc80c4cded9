"""The page of ``fedvlm-secure audit run``."""

from fedvlm_secure.audit.verdict import CLAUSES, FAIL, NOT_CHECKABLE, PASS, ClauseVerdict, Verdict
from fedvlm_secure.report import audit_charts
from fedvlm_secure.report.audit_page import BAD, GOOD, Bar, Cell, Mark, Page, Said, Section, Table, cell, shortened

MARKS = {
    PASS: Mark("✓", "pass", GOOD),
    FAIL: Mark("✕", "fail", BAD),
    NOT_CHECKABLE: Mark("–", "not checkable"),
}
_COVERED, _ENDS_EARLY, _NO_LOG = Mark("●", "log to the end of the run", GOOD), Mark("◐", "log that ends earlier"), "○"
_MOST_ATTEMPTS = 120  # bars that one chart can show
_MEANING = (
    "Where all clauses hold, the files are consistent with one another, with the rules of the protocol and with the "
    "policy, under the signatures of the server and of the clients. Nothing is said about the content of an update, "
    "nor about how a hospital has trained, and sums are not recomputed."
)
_WHY_LOGS = (
    "A server can sign everything anew, and leave out what it would rather not have made. Only what a client has kept "
    "tells: for clients whose logs go to the end, no request went unrecorded."
)


def page(verdict: Verdict) -> Page:
    """The verdict as a page."""
    return Page(
        title=f"Audit of a run under “{verdict.protocol}”" if verdict.protocol else "Audit of a run",
        mark=MARKS[FAIL if verdict.failed else PASS],
        verdict=verdict.sentence,
        said=(_MEANING,),
        facts=(
            ("protocol", verdict.protocol or "–"),
            ("attempts", f"{verdict.attempts:,}"),
            ("of these came to a sum", f"{sum(it.summed for it in verdict.attended):,}"),
            ("clients", f"{len(verdict.cohort):,}"),
            ("clients' logs given", f"{len(verdict.logs):,}"),
            ("run", verdict.run or "–"),
        ),
        sections=(_clauses(verdict), _coverage(verdict), *_attendance(verdict)),
    )


def _clauses(verdict: Verdict) -> Section:
    counts = tuple((mark, sum(it.outcome == outcome for it in verdict.clauses)) for outcome, mark in MARKS.items())
    said = ", ".join(f"{count} {mark.word}" for mark, count in counts)
    return Section(
        "Clause by clause",
        ("A clause that passes may have parts that these files cannot show; the table says which, and why.",),
        bars=(Bar(f"Clauses: {said}", counts),),
        table=Table(("clause", "outcome", "things looked at", "evidence, and what was not checked"), _rows(verdict)),
    )


def _rows(verdict: Verdict) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            (Said(it.clause, "strong"), Said(CLAUSES[it.clause])),
            MARKS[it.outcome],
            cell(f"{it.checked:,}" if it.checked else ""),
            _told(it),
        )
        for it in sorted(verdict.clauses, key=lambda it: it.outcome != FAIL)  # what failed comes first
    )


def _told(clause: ClauseVerdict) -> tuple[Said, ...]:
    evidence = [f"{it.where}: {it.detail}" for it in clause.findings]
    more = clause.failures - len(evidence)
    evidence += [f"and {more:,} more"] if more > 0 else []
    unchecked = [f"not checked: {why}" for why in clause.why]
    return cell(*evidence, tone=BAD) + cell(*unchecked, tone="muted")


def _coverage(verdict: Verdict) -> Section:
    early = sorted(set(verdict.logs) - set(verdict.covered))
    without = sorted(set(verdict.cohort) - set(verdict.logs))
    kinds = ((_COVERED, verdict.covered), (_ENDS_EARLY, early), (Mark(_NO_LOG, "no log given"), without))
    rows = tuple(
        (cell(mark.word), cell(f"{len(names):,}"), cell(shortened(sorted(names)))) for mark, names in kinds if names
    )
    return Section(
        "Whom it covers",
        (_WHY_LOGS,),
        bars=(
            Bar(
                f"Logs of {len(verdict.covered)} of {len(verdict.cohort)} clients go to the end of the run",
                tuple((mark, len(names)) for mark, names in kinds),
            ),
        ),
        table=Table(("a client's log", "clients", "names"), rows),
    )


def _attendance(verdict: Verdict) -> tuple[Section, ...]:
    if not verdict.attended:
        return ()
    shown = verdict.attended[-_MOST_ATTEMPTS:]
    silent = tuple(
        (cell(f"round {it.round}, attempt {it.attempt}"), cell(f"{len(it.silent)}"), cell(shortened(it.silent)))
        for it in shown
        if it.silent
    )
    note = "From the transcripts. A client is silent in an attempt if no upload of it is recorded."
    older = len(verdict.attended) - len(shown)
    return (
        Section(
            "Who took part",
            (note, f"The first {older:,} attempts are left out.") if older else (note,),
            charts=(audit_charts.attendance(shown),),
            table=Table(("attempt", "silent", "names"), silent) if silent else None,
        ),
    )
