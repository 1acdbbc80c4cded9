"""``fedvlm-secure audit run``: a finished run re-checked offline, clause by clause."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedvlm_secure.errors import MisuseError

if TYPE_CHECKING:
    from fedvlm_secure.audit.verdict import ClauseVerdict, Verdict

FAILED = 6  # exit code


def run(
    directory: Annotated[Path, typer.Argument(help="The run directory.")],
    client_log: Annotated[
        list[Path] | None, typer.Option(help="A client's log.cbor, from the client itself; give several.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Settings whose [policy] plans are held against; the run's own if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the verdict as a self-contained page.")
    ] = None,
) -> None:
    """Re-check a finished run from transcripts, roster and clients' logs; exits with 6 if a clause does not hold."""
    from fedvlm_secure.audit.run import audit_run
    from fedvlm_secure.federation.floors import policy_of
    from fedvlm_secure.federation.settings import Settings

    if html is not None and html.resolve().is_relative_to(directory.resolve()):
        raise MisuseError(f"{html} lies in the run directory, whose manifest lists every file; name one outside of it")
    floors = None if policy is None else policy_of(Settings.from_toml(policy))
    verdict = audit_run(directory, client_log or (), floors)
    if html is not None:
        from fedvlm_secure.report import audit_page, audit_run_page

        audit_page.write(audit_run_page.page(verdict), html)
    if as_json:
        typer.echo(json.dumps(verdict.to_json()))
    else:
        _print(verdict)
    if verdict.failed:
        raise typer.Exit(FAILED)


def _print(verdict: "Verdict") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fedvlm_secure.audit.verdict import CLAUSES, FAIL, PASS

    colours = {PASS: "green", FAIL: "bold red"}
    title = f"{verdict.attempts} attempts under {verdict.protocol or 'no protocol'}, run {verdict.run}"
    table = Table(title=title, show_lines=True, title_justify="left")
    for column in ("clause", "outcome", "looked at", "rule and evidence"):
        table.add_column(column, overflow="fold")
    for clause in verdict.clauses:
        said = [escape(CLAUSES[clause.clause]), *_evidence(clause), *(f"[dim]{escape(it)}[/]" for it in clause.why)]
        colour = colours.get(clause.outcome, "dim")
        table.add_row(clause.clause, f"[{colour}]{clause.outcome}[/]", f"{clause.checked:,}", "\n".join(said))
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    console.print(verdict.sentence, style="bold red" if verdict.failed else None)


def _evidence(clause: "ClauseVerdict") -> list[str]:
    from rich.markup import escape

    shown = [f"[red]{escape(_printable(f'{it.where}: {it.detail}'))}[/]" for it in clause.findings]
    more = clause.failures - len(shown)
    return [*shown, f"[red]and {more:,} more[/]"] if more > 0 else shown


def _printable(text: str) -> str:
    """Without what a terminal takes for commands: names may be a hostile server's."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
