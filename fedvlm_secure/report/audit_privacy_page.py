"""The page of ``fedvlm-secure audit privacy``."""

from collections.abc import Sequence

from markupsafe import Markup

from fedvlm_secure.audit.calibration import CLIENTS, TRIALS, Calibration
from fedvlm_secure.audit.experiments import (
    MEASURED,
    NO_CLAIM,
    NOT_CHECKABLE,
    NOT_REFUTED,
    PROVES_NOTHING,
    REFUTED,
    Experiment,
    PrivacyAudit,
    told,
)
from fedvlm_secure.report import audit_charts
from fedvlm_secure.report.audit_page import BAD, GOOD, Cell, Mark, Page, Said, Section, Table, cell

MARKS = {
    REFUTED: Mark("✕", "refuted", BAD),
    NOT_REFUTED: Mark("✓", "not refuted", GOOD),
    MEASURED: Mark("·", "measured"),
    NOT_CHECKABLE: Mark("–", "not checkable"),
    NO_CLAIM: Mark("–", "no claim"),
}
_VERDICTS = {
    REFUTED: "A claim is refuted.",
    NOT_REFUTED: "No claim was refuted.",
    NOT_CHECKABLE: "Nothing could be tried.",
    NO_CLAIM: "There is no claim to refute.",
}


def page(audit: PrivacyAudit) -> Page:
    """The audit as a page."""
    sections = [Section("Experiment by experiment", charts=_charts(audit.experiments), table=_table(audit.experiments))]
    if audit.calibration:
        sections.append(_calibration(audit.calibration))
    return Page(
        title=f"Privacy of “{audit.run}”",
        mark=MARKS[audit.outcome],
        verdict=_VERDICTS[audit.outcome],
        said=(audit.claim, PROVES_NOTHING),
        facts=(("set-up", audit.run), ("experiments", f"{len(audit.experiments)}")),
        sections=tuple(sections),
    )


def _charts(experiments: Sequence[Experiment]) -> tuple[Markup, ...]:
    bounded = [each for each in experiments if each.bound is not None]
    return (audit_charts.bounds(bounded),) if bounded else ()


def _table(experiments: Sequence[Experiment]) -> Table:
    rows = tuple(
        (
            (Said(each.name, "strong"), *cell(f"level: {each.level}", tone="muted")),
            MARKS[each.outcome],
            cell("" if each.claimed is None else f"{each.claimed:.2f} at δ = {each.delta:g}"),
            _bound(each),
            cell(*each.seen, *(() if each.control is None else (f"control: {each.control.text}",))),
        )
        for each in experiments
    )
    return Table(("experiment", "outcome", "claimed ε", "bound", "seen"), rows)


def _bound(each: Experiment) -> Cell:
    if each.bound is None:
        return cell("–", tone="muted")
    said = [Said(f"{told(each.bound)} at {each.confidence:.0%} confidence")]
    if each.estimate is not None:
        said.append(Said(f"estimate {told(each.estimate)}, no bound", "muted"))
    return tuple(said)


def _calibration(rows: Sequence[Calibration]) -> Section:
    columns = [f"{count:,} canaries" for count in rows[0].one_run]
    table = Table(
        ("true ε", *columns, f"{CLIENTS} canary clients"),
        tuple(
            (
                cell(f"{row.epsilon:g}", tone="strong"),
                *(cell(f"{row.one_run[count]:.1f} / {row.gaussian[count]:.1f}") for count in row.one_run),
                cell(f"estimate {row.estimate:.1f}", f"bound {row.cosine:.1f}, if normal {row.normal:.1f}"),
            )
            for row in rows
        ),
    )
    note = (
        f"The same estimators on an ideal Gaussian mechanism whose ε is known, medians of {TRIALS} plays: for canaries "
        "the one-run bound and the one by the mechanism's own trade-off. So far below the truth a bound stays."
    )
    return Section("What the estimators find where the truth is known", notes=(note,), table=table)
