"""``fedvlm-secure demo``: eight simulated hospitals, end to end, with no settings to write."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedvlm_secure.engines.local import RunResult


def demo(
    out: Annotated[Path | None, typer.Option(help="Run directory; the first free runs/demo… if not given.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Repeat with seeds 0, 1, … and print the mean.")] = 1,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Federate eight simulated hospitals, end to end."""
    from fedvlm_secure.federation.settings import Settings

    overrides = [[*(settings or []), *([f"seed={seed}"] if seeds > 1 else [])] for seed in range(seeds)]
    runs = [Settings.from_tables({}, override) for override in overrides]

    from fedvlm_secure.cli import console
    from fedvlm_secure.engines.local import run

    results: list[RunResult] = []
    for chosen in runs:
        folder = _free(Path("runs"), chosen.name) if out is None else out if seeds == 1 else out / f"seed-{chosen.seed}"
        with console.watch() as observer:
            observer.resumable = folder
            results.append(run(chosen, folder, observer=observer))
    if as_json:
        typer.echo(
            json.dumps([console.as_dict(result) for result in results] if seeds > 1 else console.as_dict(results[0]))
        )
    else:
        console.print_table(results)


def _free(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, … that does not exist: an earlier demo's results stay."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
