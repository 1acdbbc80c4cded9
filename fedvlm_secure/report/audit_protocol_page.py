"""The page of ``fedvlm-secure audit protocol``."""

from collections.abc import Sequence

from fedvlm_secure.audit.catalogue import ATTACKS, REPORT_FIRST, Result, ours
from fedvlm_secure.audit.target import NOT_APPLICABLE, RESISTED, VULNERABLE
from fedvlm_secure.report.audit_page import BAD, GOOD, Bar, Mark, Page, Said, Section, Table, cell

MARKS = {
    VULNERABLE: Mark("✕", "vulnerable", BAD),
    RESISTED: Mark("✓", "resisted", GOOD),
    NOT_APPLICABLE: Mark("–", "not applicable"),
}

_MEANING = (
    "Every attack was tried in one process, and each outcome follows from what came back. “Not applicable” says "
    "nothing about the protocol, only that there was nothing to try. That no attack of a list succeeds is not a proof."
)


def page(target: str, results: Sequence[Result]) -> Page:
    """The attack table of a target as a page."""
    counts = {outcome: sum(each.outcome == outcome for each in results) for outcome in MARKS}
    found = counts[VULNERABLE] > 0
    return Page(
        title=f"Attacks on “{target}”",
        mark=Mark("✕", "attacks succeeded", BAD) if found else Mark("✓", "no attack succeeded", GOOD),
        verdict=", ".join(f"{counts[outcome]} {mark.word}" for outcome, mark in MARKS.items()) + ".",
        said=(_MEANING, REPORT_FIRST) if found and not ours(target) else (_MEANING,),
        facts=(("target", target), ("attacks", f"{len(results):,}")),
        sections=(
            Section(
                "Attack by attack",
                bars=(
                    Bar(
                        ", ".join(f"{counts[outcome]} {mark.word}" for outcome, mark in MARKS.items()),
                        tuple((mark, counts[outcome]) for outcome, mark in MARKS.items()),
                    ),
                ),
                table=_table(results),
            ),
        ),
    )


def _table(results: Sequence[Result]) -> Table:
    tried = {attack.name: attack.tried for attack in ATTACKS}
    rows = tuple(
        (
            (Said(each.attack, "strong"), *cell(tried.get(each.attack, ""), tone="muted")),
            MARKS[each.outcome],
            cell(each.observed),
            cell("" if each.outcome == NOT_APPLICABLE else each.consequence),
            cell(each.reference, tone="muted"),
        )
        for each in results
    )
    return Table(("attack", "outcome", "observed", "consequence", "reference"), rows)
