"""Secure aggregation for federated, personalised LoRA fine-tuning of vision-language models.

The names below load on first use, so that ``import fedvlm_secure`` stays cheap and
:func:`secure_mean` never imports torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

_HOME = {
    "MisuseError": "fedvlm_secure.errors",
    "ProtocolError": "fedvlm_secure.errors",
    "SecureMean": "fedvlm_secure.secagg.mean",
    "secure_mean": "fedvlm_secure.secagg.mean",
    "RunResult": "fedvlm_secure.engines.local",
    "Settings": "fedvlm_secure.federation.settings",
    "run": "fedvlm_secure.engines.local",
}
__all__ = ["MisuseError", "ProtocolError", "RunResult", "SecureMean", "Settings", "run", "secure_mean"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
