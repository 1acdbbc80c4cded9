"""``fedvlm-secure run``: a federation from a settings file, or the rest of an interrupted one."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedvlm_secure.errors import MisuseError


class Engine(StrEnum):
    """Where the parties of a run are."""

    LOCAL = "local"
    FLOWER = "flower"


def run(
    settings: Annotated[Path | None, typer.Argument(help="Settings in TOML; every key is optional.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the interrupted run in this directory.")] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="local, in one process, if not given; flower: a process for each party.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Run a federation from a settings file, or resume one."""
    if (settings is None) == (resume is None):
        raise MisuseError("name either a settings file, or a run directory to continue with --resume DIR")
    if resume is not None and (override or out or engine):
        raise MisuseError("a resumed run keeps settings, directory and engine; leave out --set, --out and --engine")

    # Settings first: a mistake in them is answered before the heavy packages load.
    from fedvlm_secure.federation.settings import Settings

    chosen = None if settings is None else Settings.from_toml(settings, override or [])

    from fedvlm_secure.cli import console
    from fedvlm_secure.engines import local
    from fedvlm_secure.engines.flower import deployment

    if chosen is not None:
        place, on_flower = Path("runs") / chosen.name if out is None else out, engine == Engine.FLOWER
    else:
        assert resume is not None
        place, on_flower = resume, deployment.began(resume)
    with console.watch() as observer:
        observer.resumable = place
        begin = deployment.run if on_flower else local.run
        go_on = deployment.resume if on_flower else local.resume
        result = begin(chosen, place, observer=observer) if chosen is not None else go_on(place, observer)
    if as_json:
        typer.echo(json.dumps(console.as_dict(result)))
    else:
        console.print_table([result])
