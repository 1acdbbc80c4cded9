"""``fedvlm-secure audit``: guarantees looked at from outside."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvlm_secure.cli.audit_privacy import privacy
from fedvlm_secure.cli.audit_run import run

if TYPE_CHECKING:
    from fedvlm_secure.audit.catalogue import Result

app = typer.Typer(
    name="audit",
    help="Look at a guarantee from outside.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command()(run)
app.command()(privacy)


@app.callback()
def _commands() -> None:
    """Look at a guarantee from outside."""


@app.command()
def protocol(
    name: Annotated[
        str, typer.Argument(help="plain, pairwise, ckks, bfv, flwr-secaggplus (extra: flower) or nvflare-he (bench).")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the table as a self-contained page.")] = None,
) -> None:
    """Try every attack of the catalogue against a protocol, and say what was observed; exits with 0 whatever was."""
    from fedvlm_secure.audit import catalogue
    from fedvlm_secure.audit.targets import target

    chosen = target(name)
    results = catalogue.audit(chosen, each=lambda attack: print(f"trying {attack.name}", file=sys.stderr, flush=True))
    if html is not None:
        from fedvlm_secure.report import audit_page, audit_protocol_page

        audit_page.write(audit_protocol_page.page(chosen.name, results), html)
    if as_json:
        typer.echo(json.dumps({"target": chosen.name, "results": [asdict(result) for result in results]}))
        return
    _print(chosen.name, results)


def _print(name: str, results: "list[Result]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedvlm_secure.audit.catalogue import ATTACKS, REPORT_FIRST, ours
    from fedvlm_secure.audit.target import NOT_APPLICABLE, RESISTED, VULNERABLE

    tried = {attack.name: attack.tried for attack in ATTACKS}
    colours = {VULNERABLE: "bold red", RESISTED: "green", NOT_APPLICABLE: "dim"}
    table = Table(title=f"{name}: {len(results)} attacks", show_lines=True, title_justify="left")
    for column in ("attack", "outcome", "observed", "consequence", "reference"):
        table.add_column(column, overflow="fold", ratio={"observed": 3, "consequence": 2, "reference": 2}.get(column))
    for each in results:
        table.add_row(
            f"[bold]{each.attack}[/bold]\n{escape(tried[each.attack])}",
            f"[{colours[each.outcome]}]{each.outcome}[/]",
            escape(each.observed),
            "" if each.outcome == NOT_APPLICABLE else escape(each.consequence),
            escape(each.reference),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
    counts = {outcome: sum(each.outcome == outcome for each in results) for outcome in colours}
    console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if counts[VULNERABLE] and not ours(name):
        console.print(REPORT_FIRST)
