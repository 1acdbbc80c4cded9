"""``fedvlm-secure data``: what a data set holds, before a run meets it."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvlm_secure.errors import MisuseError

if TYPE_CHECKING:
    from fedvlm_secure.federation.settings import Settings

app = typer.Typer(
    name="data",
    help="Look at a data set before a run does.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SHOWN = 10


@app.callback()
def _commands() -> None:
    """Look at a data set before a run does."""


@app.command()
def check(
    path: Annotated[
        str | None,
        typer.Argument(help="A file or folder of rows, or a hub id; the settings' data if not given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokens are counted; the settings' model if not given.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="Settings in TOML; the defaults if not given.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Override a setting: rows.partition=iid.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw each site's answers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Count a data set's rows, and name all in it that cannot be used; exits with 2 if a run would not start."""
    from fedvlm_secure.federation.settings import Settings

    chosen = (
        Settings.from_tables({}, override or []) if settings is None else Settings.from_toml(settings, override or [])
    )
    if plot is not None and plot.exists():
        raise MisuseError(f"{plot} exists; name another file with --plot")
    found = examine(path or chosen.data, model or chosen.model, chosen)
    if plot is not None and found["labels"]["sites"]:
        _draw(found["labels"], plot)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _say(found)
    if found["problems"]:
        raise typer.Exit(2)


def examine(place: str | Mapping[str, str], model: str, settings: "Settings") -> dict[str, Any]:
    """Return what :func:`fedvlm_secure.data.check` finds, with tokens as the model's processor counts them.

    Raises:
        MisuseError: the data set or the model cannot be had.
    """
    from transformers.utils import logging

    from fedvlm_secure import data, models

    logging.disable_progress_bar()
    rows = data.RowSettings(**settings.rows.model_dump(), unit=settings.privacy.unit)

    @cache
    def collate() -> data.Collator:  # a mistake in the data set is answered before the processor loads
        return data.Collator(models.load_processor(model), sys.maxsize)

    return data.check(place, rows, lambda row: collate()([row])["input_ids"].shape[1], data.Collator.max_length)


def _draw(labels: dict[str, Any], target: Path) -> None:
    from fedvlm_secure import report
    from fedvlm_secure.files import write
    from fedvlm_secure.report.budget_charts import document
    from fedvlm_secure.report.charts import shares

    by = "answer" if labels["by"] == "chosen" else labels["by"]
    css = Path(report.__file__).parent / "report.css"
    write(target, document(shares(labels["sites"], by), css).encode())


def _say(found: dict[str, Any]) -> None:
    splits = ", ".join(f"{count} {split}" for split, count in found["splits"].items())
    typer.echo(f"{found['data']}: {found['rows']} rows ({splits}) at {len(found['sites'])} sites")
    for site, counts in found["sites"].items():
        typer.echo(f"  {site}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    faults = found["faults"]
    typer.echo(f"rows that cannot be used: {faults['count']}")
    for why, count in faults["reasons"].items():
        typer.echo(f"  {why}: {count}")
        named = [each for each in faults["rows"] if each["why"] == why]
        for each in named[:_SHOWN]:
            typer.echo(f"    {each['where']}" + (f" ({each['detail']})" if each["detail"] else ""))
        if count > _SHOWN:
            typer.echo(f"    and {count - _SHOWN} more; --json names all")
    for kind, answers in found["answers"].items():
        top = ", ".join(f"{_short(answer)} {count}" for answer, count in answers["top"].items())
        typer.echo(f"answers, {kind}: {answers['distinct']} different in {answers['rows']} rows; most often {top}")
    _say_tokens(found["tokens"])
    for warning in found["warnings"]:
        typer.echo(f"warning: {warning}")
    for problem in found["problems"]:
        typer.echo(f"problem: {problem}")
    if not found["problems"]:
        typer.echo("a run can start with these rows")


def _say_tokens(tokens: dict[str, Any]) -> None:
    if "longest" in tokens:
        typer.echo(
            f"tokens a row: {tokens['shortest']} to {tokens['longest']}, median {tokens['median']:g}, "
            f"{tokens['limit']} allowed"
        )
    for each in tokens["over"][:_SHOWN]:
        typer.echo(f"  too long: {each['where']}, {each['tokens']} tokens")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:39] + "…"
