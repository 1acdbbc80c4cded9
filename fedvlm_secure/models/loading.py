"""Loads a vision-language model and says, in 32 bytes, exactly which one.

The digest is computed over what lies in memory after loading, never read from a file: a client binds it into the
protocol, so one client cannot be shown another model than the rest.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fedvlm_secure.adapters.bases import load_bases
from fedvlm_secure.data.store import default_cache
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models.families import OTHER, family_of, known, lora_targets

EMBEDDED = Path(__file__).parent / "tiny_smolvlm"
SMOLLM2_LITE0 = "smollm2-lite0"
# By preset, which recipe its folder in the cache was built by: another number for another recipe.
_PRESETS = {SMOLLM2_LITE0: 1}
NAMES = ("embedded", *_PRESETS)  # the models that come with the package, or are built from it
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for adapters: frozen weights, evaluation mode.

    Attributes:
        model: the Hugging Face model.
        processor: what makes tensors of its rows: its Hugging Face processor with a chat template, or one of
            :mod:`fedvlm_secure.models.plain`.
        name: what the user asked for: ``"embedded"``, ``"smollm2-lite0"``, a folder or a hub id.
        digest: SHA-256 over the loaded weights, tokenizer, processor, configuration and bases (32 bytes).
        lora_targets: a regular expression that fully matches the text tower's projections, none of the vision tower.
        bases: public A₀ that came in the model's folder, by module name; see :mod:`fedvlm_secure.adapters.bases`.
    """

    model: Any
    processor: Any
    name: str
    digest: bytes
    lora_targets: str
    bases: Mapping[str, torch.Tensor]


def load(model: str = "embedded", device: str = "auto", dtype: str = "float32") -> LoadedModel:
    """Load the embedded model, a preset, a local folder, or a hub id; safetensors only, never remote code.

    :data:`fedvlm_secure.models.families.FAMILIES` are known; any other model is loaded if it has a chat template and a
    text tower with projections named as Llama's.

    Args:
        device: ``"auto"`` (CUDA where there is some, else the CPU), ``"cpu"`` or ``"cuda"``.
        dtype: one of :data:`DTYPES`; part of the digest, so every site of a federation uses the same.

    Raises:
        MisuseError: the preset is not built, the folder does not exist or holds no safetensors, the device is not
            there, or the model or its bases cannot be loaded or it has no text tower that LoRA can attach to.
    """
    if dtype not in DTYPES:
        raise MisuseError(f"dtype {dtype!r} is not known; choices: {', '.join(DTYPES)}")
    place, target = _place(model), _device(device)
    config = _config(model, place)
    with _loading(model, config):
        loaded = family_of(config).model.from_pretrained(
            place, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    processor, rows = _processor(model, place, config)
    loaded.requires_grad_(False)
    loaded.eval()
    # Before the move: a digest of the same files is the same on every machine.
    bases = load_bases(Path(place))
    digest = model_digest(loaded, processor, bases)
    return LoadedModel(loaded.to(target), rows, model, digest, lora_targets(loaded), bases)


def load_processor(model: str = "embedded") -> Any:
    """What makes tensors of the model's rows, as in :class:`LoadedModel`, without loading its weights.

    Raises:
        MisuseError: as :func:`load` does.
    """
    place = _place(model)
    _, rows = _processor(model, place, _config(model, place))
    return rows


def _config(model: str, place: str) -> Any:
    with _loading(model):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


def _processor(model: str, place: str, config: Any) -> tuple[Any, Any]:
    """The model's processor, and what its family makes of that to write rows with."""
    family = family_of(config)
    with _loading(model, config):
        processor = family.processor.from_pretrained(place, trust_remote_code=False)
        return processor, family.rows(processor, config)


@contextmanager
def _loading(model: str, config: Any = None) -> Iterator[None]:
    """Say in one sentence what is wrong with a model."""
    try:
        yield
    # An AttributeError is Florence-2's processor in want of a token.
    except (OSError, ValueError, ImportError, KeyError, AttributeError, MisuseError) as error:
        reason = " ".join(str(error).split())[:300]
        if config is not None and family_of(config) is OTHER:
            kind = f"is of type {config.model_type!r}, none of the families known ({known()})"
            raise MisuseError(f"the model {model!r} {kind}, and cannot be loaded as another: {reason}") from error
        raise MisuseError(f"the model {model!r} cannot be loaded: {reason}") from error


def model_digest(model: torch.nn.Module, processor: Any, bases: Mapping[str, torch.Tensor]) -> bytes:
    """Return SHA-256 over weights (name, dtype, shape, bytes; by name), tokenizer, processor, settings and bases.

    Every item is preceded by its length, so that no two different models spell the same bytes. Paths and library
    versions are left out: they differ between machines that loaded the same files.
    """
    digest = hashlib.sha256()
    for item in _items(model, processor, bases):
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item)
    return digest.digest()


def _items(model: Any, processor: Any, bases: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
    yield from _tensors(model.state_dict())
    tokenizer = processor.tokenizer
    yield (tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else _plain(tokenizer.get_vocab())).encode()
    yield _plain(processor.to_dict()).encode()
    yield str(processor.chat_template).encode()
    yield _plain(model.config.to_dict()).encode()
    if bases:  # most models have none
        yield b"bases"
        yield from _tensors(bases)


def _tensors(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


_MACHINE_OWN = frozenset({"_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "tokenizer_file"})


def _plain(settings: Any) -> str:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): clean(inner) for key, inner in value.items() if key not in _MACHINE_OWN}
        if isinstance(value, list | tuple):
            return [clean(inner) for inner in value]
        return value if isinstance(value, str | int | float | bool | None) else str(value)

    return json.dumps(clean(settings), sort_keys=True, ensure_ascii=True)


def preset_folder(preset: str) -> Path:
    """Where the model of a preset is once it is built: in the cache of the data sets."""
    return default_cache() / "models" / f"{preset}-{_PRESETS[preset]}"


def _place(model: str) -> str:
    if model == "embedded":
        return str(EMBEDDED)
    if model in _PRESETS:
        if not (built := preset_folder(model)).is_dir():
            raise MisuseError(f"the model {model!r} is not built yet: `make {model}` does that once")
        return str(built)
    folder = Path(model).expanduser()
    # A hub id is `owner/name` or `name`; anything else, or anything that is on disk, is a folder.
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if not folder.is_dir():
        if looks_like_path:
            raise MisuseError(f"there is no model folder {model!r}")
        return model
    if not any(folder.glob("*.safetensors")):
        raise MisuseError(f"the folder {model!r} holds no *.safetensors weights; other formats are not loaded")
    return str(folder)


def _device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise MisuseError(f"device {device!r} is not known; choices: auto, cpu, cuda")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise MisuseError('device = "cuda" was asked for, but PyTorch finds no CUDA device; use device = "cpu"')
    return device
