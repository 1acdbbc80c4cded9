"""``fedvlm-secure compare``: accuracy per strategy and data set, with intervals. Resumable cell by cell."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedvlm_secure.cli.budget import exit_code

SHORT = ("plora,lora,local", "hospitals", 2)
FULL = ("plora,lora,local,fedsa,ffa,rolora,fedsb,ditto", "hospitals,hospitals-iid", 5)
SHORT_ROUNDS = 6
TUNED = ("training.learning-rate=0.0005,0.002", "training.b-learning-rate-factor=4,16")


def compare(
    full: Annotated[
        bool, typer.Option("--full", help="All strategies, two data sets, five seeds, all rounds, tuned; unless given.")
    ] = False,
    strategies: Annotated[
        str | None, typer.Option(help="What of the adapters is shared; plora,lora,local if not given.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data sets, such as hospitals,hospitals-iid.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Seeds 0, 1, … of every cell; two if not given.")
    ] = None,
    tune: Annotated[
        list[str] | None, typer.Option(help="Values to choose from, alike for every strategy: key=value,value.")
    ] = None,
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Choose nothing: settings as given.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; runs/compare or runs/compare-full if not given.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at a time; one a core if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Compare what of the adapters is shared: accuracy per strategy and data set, with intervals.

    The same command goes on with a comparison that was interrupted; asked for more, it adds the cells that are missing.
    """
    from fedvlm_secure.engines import compare as engine
    from fedvlm_secure.federation.settings import Settings

    out = out or Path("runs/compare-full" if full else "runs/compare")
    chosen = list(settings or ())
    if not any(override.partition("=")[0].strip() == "rounds" for override in chosen):
        rounds = Settings.from_tables({}).rounds if full else SHORT_ROUNDS
        chosen.insert(0, f"rounds={rounds}")  # said aloud, so that the study's own command repeats it
    default_strategies, default_data, default_seeds = FULL if full else SHORT
    plan = engine.Plan(
        _words(strategies or default_strategies),
        _words(data or default_data),
        seeds or default_seeds,
        engine.parse_tuned([] if no_tune else tune or (TUNED if full else ())),
        tuple(chosen),
    )
    plan.tasks({}, out)  # a mistake in the settings is answered before the heavy packages load

    from fedvlm_secure.cli import compare_console as console
    from fedvlm_secure.cli.study_console import watch

    with watch(out) as watching:
        failures = engine.run(plan, out, workers=workers or len(os.sched_getaffinity(0)), watch=watching)
    if as_json:
        typer.echo(json.dumps(console.as_dict(out, failures)))
    elif (out / "comparison.html").exists():
        console.print_tables(out)
    if failures:
        print(f"{len(failures)} cells failed; the same command tries them again", file=sys.stderr)
        raise typer.Exit(exit_code(failures[0].family))


def _words(listed: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in listed.split(",") if word.strip())
