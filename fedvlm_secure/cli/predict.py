"""``fedvlm-secure predict``: ask a hospital's trained model about a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    site: Annotated[str, typer.Option(help="Whose personal model answers.")],
    image: Annotated[Path, typer.Option(help="A picture file.")],
    question: Annotated[str, typer.Option(help="What to ask about the picture.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Ask a hospital's trained model about a picture."""
    from fedvlm_secure.federation.ask import ask

    answer = ask(run, site, image, question)
    typer.echo(json.dumps({"site": site, "question": question, "answer": answer}) if as_json else answer)
