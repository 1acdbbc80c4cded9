"""Vision-language models: the embedded one, and any Hugging Face folder or id.

The names below load on first use: importing this package does not import torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "NAMES": "fedvlm_secure.models.loading",
    "LoadedModel": "fedvlm_secure.models.loading",
    "load": "fedvlm_secure.models.loading",
    "load_processor": "fedvlm_secure.models.loading",
    "lora_targets": "fedvlm_secure.models.families",
    "answer": "fedvlm_secure.models.answering",
}
__all__ = ["NAMES", "LoadedModel", "answer", "load", "load_processor", "lora_targets"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
