"""``fedvlm-secure budget``: accuracy against ε, with intervals, for several strategies. Resumable cell by cell."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

SHORT, FULL = ("1,4,none", 2), ("1,2,4,8,none", 3)
SHORT_ROUNDS = 6  # for twenty minutes on two cores
_CODES = {"PolicyRefusalError": 3, "RoundAbortedError": 4, "ProtocolError": 4, "PrivacyBudgetExhaustedError": 5}


def budget(
    full: Annotated[
        bool, typer.Option("--full", help="ε 1, 2, 4, 8, none, three seeds, all rounds, unless given.")
    ] = False,
    epsilons: Annotated[str | None, typer.Option(help="ε to aim at, such as 1,2,none; 1,4,none if not given.")] = None,
    strategies: Annotated[str, typer.Option(help="What of the adapters is shared.")] = "plora,lora",
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Seeds 0, 1, … of every cell; two if not given.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; runs/budget or runs/budget-full if not given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at a time; one a core if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show what privacy costs: accuracy against ε, per strategy, with intervals.

    The same command goes on with a study that was interrupted; asked for more, it adds the cells that are missing.
    """
    from fedvlm_secure.engines import budget as engine
    from fedvlm_secure.federation.settings import Settings

    out = out or Path("runs/budget-full" if full else "runs/budget")
    chosen = list(settings or ())
    if not any(override.partition("=")[0].strip() == "rounds" for override in chosen):
        rounds = Settings.from_tables({"privacy": {"mode": "record"}}).rounds if full else SHORT_ROUNDS
        chosen.insert(0, f"rounds={rounds}")  # said aloud, so that the study's own command repeats it
    default_epsilons, default_seeds = FULL if full else SHORT
    plan = engine.Plan(
        engine.parse_epsilons(epsilons or default_epsilons),
        tuple(word.strip() for word in strategies.split(",") if word.strip()),
        seeds or default_seeds,
        tuple(chosen),
    )
    plan.tasks(out)  # a mistake in the settings is answered before the heavy packages load

    from fedvlm_secure.cli import budget_console as console
    from fedvlm_secure.cli.study_console import watch

    with watch(out) as watching:
        failures = engine.run(plan, out, workers=workers or len(os.sched_getaffinity(0)), watch=watching)
    if as_json:
        typer.echo(json.dumps(console.as_dict(out, failures)))
    elif (out / "budget.html").exists():
        console.print_table(out)
    if failures:
        print(f"{len(failures)} cells failed; the same command tries them again", file=sys.stderr)
        raise typer.Exit(exit_code(failures[0].family))


def exit_code(family: str) -> int:
    """The exit code for a cell that failed with an error of this class."""
    return _CODES.get(family, 2)
