"""``fedvlm-secure audit privacy``: what experiments can refute of a claimed ε."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedvlm_secure.audit.calibration import Calibration
    from fedvlm_secure.audit.experiments import Experiment, PrivacyAudit

FAILED = 6  # exit code


def privacy(
    target: Annotated[Path, typer.Argument(metavar="DIR|SETTINGS", help="A run directory, or settings in TOML.")],
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of a settings file: key=value.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Whose training is audited at record level; the smallest site if not given.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Try so many steps, or sums, with the noise that the claim asks of them.")
    ] = None,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also try the estimators on an ideal mechanism.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write it as a self-contained page.")] = None,
) -> None:
    """Try to refute what a training set-up claims about privacy; exits with 6 if a claim is refuted."""
    from fedvlm_secure.audit.experiments import REFUTED
    from fedvlm_secure.engines.privacy_audit import audit_privacy

    audit = audit_privacy(
        target,
        tuple(override or ()),
        site=site,
        steps=steps,
        calibration=calibration,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if html is not None:
        from fedvlm_secure.report import audit_page, audit_privacy_page

        audit_page.write(audit_privacy_page.page(audit), html)
    if as_json:
        typer.echo(json.dumps(audit.to_json()))
    else:
        _print(audit)
    if audit.outcome == REFUTED:
        raise typer.Exit(FAILED)


def _print(audit: "PrivacyAudit") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedvlm_secure.audit.experiments import NO_CLAIM, NOT_REFUTED, PROVES_NOTHING, REFUTED

    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(escape(audit.claim))
    table = Table(show_lines=True)
    for column in ("experiment", "claimed ε", "bound", "outcome", "seen"):
        table.add_column(column, overflow="fold")
    colours = {REFUTED: "bold red", NOT_REFUTED: "green"}
    for one in audit.experiments:
        colour, said = colours.get(one.outcome, "dim"), [escape(text) for text in one.seen]
        if one.control is not None:
            said.append(f"[dim]control: {escape(one.control.text)}[/]")
        claimed = "-" if one.claimed is None else f"{one.claimed:.2f}"
        table.add_row(
            f"{one.name}\n({one.level})", claimed, _bound(one), f"[{colour}]{one.outcome}[/]", "\n".join(said)
        )
    console.print(table)
    if audit.calibration:
        console.print(_calibration(audit.calibration))
    last = {REFUTED: "A claim is refuted.", NO_CLAIM: "There is no claim to refute."}.get(audit.outcome, PROVES_NOTHING)
    console.print(last, style="bold red" if audit.outcome == REFUTED else None)


def _calibration(rows: "tuple[Calibration, ...]") -> "Table":
    from rich.table import Table

    from fedvlm_secure.audit.calibration import CLIENTS, TRIALS

    counts = list(rows[0].one_run)
    table = Table(
        title=f"An ideal Gaussian mechanism, medians of {TRIALS} plays: one-run bound / by the mechanism's trade-off",
        title_justify="left",
    )
    for column in (
        "true ε",
        *(f"{count:,} canaries" for count in counts),
        f"{CLIENTS} canary clients: estimate (bound if normal, bound)",
    ):
        table.add_column(column)
    for row in rows:
        bounds = [f"{row.one_run[count]:.1f} / {row.gaussian[count]:.1f}" for count in counts]
        table.add_row(f"{row.epsilon:g}", *bounds, f"{row.estimate:.1f} ({row.normal:.1f}, {row.cosine:.1f})")
    return table


def _bound(one: "Experiment") -> str:
    if one.bound is None:
        return "-"
    from fedvlm_secure.audit.experiments import told

    estimate = "" if one.estimate is None else f"\n(estimate {told(one.estimate)}, no bound)"
    return f"{told(one.bound)} at {one.confidence:.0%}{estimate}"
