"""Adapters on disk, in the format that plain peft reads: safetensors and JSON, never pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import safetensors
import safetensors.torch
import torch

from fedvlm_secure.adapters.settings import AdapterSettings
from fedvlm_secure.adapters.strategies import STRATEGIES
from fedvlm_secure.errors import MisuseError

PEFT_PREFIX = "base_model.model."
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
# What peft has no field for (it warns about fields it does not know).
FEDERATION_FILE = "federation.json"


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter read back from a folder.

    Attributes:
        settings: what to :func:`~fedvlm_secure.adapters.attach` with.
        state: what to load then; float32 tensors by canonical name.
        base_model: the name the writer gave the base model.
    """

    settings: AdapterSettings
    state: dict[str, torch.Tensor]
    base_model: str


def lora_config(settings: AdapterSettings, *, base_model: str | None) -> peft.LoraConfig:
    """The peft configuration that ``settings`` mean."""
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft says int, and divides
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        base_model_name_or_path=base_model,
    )


def save_peft(state: Mapping[str, torch.Tensor], settings: AdapterSettings, folder: Path, *, base_model: str) -> None:
    """Write ``folder`` so that ``peft.PeftModel.from_pretrained(model, folder)`` gives equal logits.

    Args:
        state: as :meth:`Adapter.exported` gives it.
        base_model: what a reader should load the adapter onto: a hub id, or a name that means something
            to the reader. It is written as given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PEFT_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = _config_fields(settings, base_model) | {"inference_mode": True}
    federation = {"strategy": settings.strategy, "seed": settings.seed}
    _replace(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    _replace(folder / CONFIG_FILE, _json(config))
    _replace(folder / FEDERATION_FILE, _json(federation))


def load_peft(folder: Path) -> SavedAdapter:
    """Read what :func:`save_peft` wrote.

    Raises:
        MisuseError: a file is missing or damaged, or the adapter is of a kind that this package does
            not make (another peft method, DoRA, extra trained modules, …).
    """
    config = _read_json(folder / CONFIG_FILE)
    federation = _read_json(folder / FEDERATION_FILE)
    try:
        strategy = federation["strategy"]
        if strategy in STRATEGIES and STRATEGIES[strategy].has_core:
            strategy = "lora"  # the core was multiplied into A
        settings = AdapterSettings(
            targets=config["target_modules"],
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config["lora_dropout"],
            strategy=strategy,
            seed=federation["seed"],
        )
    except (KeyError, TypeError) as error:
        raise MisuseError(f"{folder} does not describe an adapter of this package: {error!r}") from error
    _refuse_foreign(config, settings, folder)
    return SavedAdapter(settings, _read_tensors(folder / WEIGHTS_FILE), str(config["base_model_name_or_path"]))


def _refuse_foreign(config: dict[str, Any], settings: AdapterSettings, folder: Path) -> None:
    """Every field must be what this package writes: an option we ignore would change the answers."""
    ours = json.loads(_json(_config_fields(settings, None)))
    free = {"base_model_name_or_path", "inference_mode", "peft_version", "revision"}
    for field, value in config.items():
        # A field that this peft does not know is harmless while it is off.
        if field not in free and value != ours.get(field) and (field in ours or value):
            raise MisuseError(f"{folder / CONFIG_FILE}: {field} = {value!r} is not supported")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from error
    foreign = [name for name in tensors if not name.startswith(PEFT_PREFIX)]
    if foreign:
        raise MisuseError(f"{path}: {foreign[0]} is not a tensor of a peft adapter")
    return {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in sorted(tensors.items())}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise MisuseError(f"{path} does not hold a JSON object")
    return content


def _config_fields(settings: AdapterSettings, base_model: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = lora_config(settings, base_model=base_model).to_dict()  # type: ignore[no-untyped-call]
    return fields


def _json(content: dict[str, Any]) -> bytes:
    # peft holds some fields as sets and enumerations of strings.
    return (json.dumps(content, indent=2, sort_keys=True, default=sorted) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Write whole or not at all: a run may be interrupted at any moment."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_bytes(content)
    scratch.replace(path)
