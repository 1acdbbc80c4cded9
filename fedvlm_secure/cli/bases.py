"""``fedvlm-secure bases``: give a model's folder the public bases that private adapters begin with."""

from pathlib import Path
from typing import Annotated

import typer

from fedvlm_secure.errors import MisuseError


def bases(
    model: Annotated[Path, typer.Argument(help="Folder of the model; the bases are written into it.")],
    public: Annotated[str, typer.Option(help="A data set that is no hospital's: its rows are not protected.")],
    rows: Annotated[int, typer.Option(min=1, help="How many of its training rows to look at.")] = 2000,
    rank: Annotated[int, typer.Option(min=1, help="The largest adapter.rank that the bases will serve.")] = 128,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Which modules, as in a run: adapter.layers=2, adapter.modules=…")
    ] = None,
) -> None:
    """Compute bases for adapter.init = "public" from public rows; every hospital must use the same folder."""
    import re

    from fedvlm_secure import data, models
    from fedvlm_secure.adapters.bases import BASES_FILE, public_bases, save_bases
    from fedvlm_secure.federation.settings import Settings

    if not model.is_dir():
        raise MisuseError(f"there is no model folder {str(model)!r}")
    adapter = Settings.from_tables({"privacy": {"mode": "record"}}, override or []).adapter
    loaded = models.load(str(model))
    targets = models.lora_targets(loaded.model, adapter.layers, adapter.modules)
    names = sorted(name for name, _ in loaded.model.named_modules() if re.fullmatch(targets, name))
    own = data.load(public)["train"]
    split = data.encode(own.shuffle(seed=0).select(range(min(rows, len(own)))), loaded.processor)
    parts = (split.batch(range(start, min(start + 64, len(split)))) for start in range(0, len(split), 64))
    device = next(loaded.model.parameters()).device
    batches = ({name: tensor.to(device) for name, tensor in part.items()} for part in parts)
    save_bases(model, public_bases(loaded.model, names, batches, rank))
    typer.echo(f"{model / BASES_FILE}: bases of {len(names)} modules from {len(split)} rows of {public}")
