"""Secure aggregation on Flower: SuperLink and SuperNodes carry the messages, and see no single update.

Needs the extra ``flower``. The names below load on first use.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Aggregate": "fedvlm_secure.engines.flower.server",
    "SecureAggregator": "fedvlm_secure.engines.flower.server",
    "SecureStrategy": "fedvlm_secure.engines.flower.strategy",
    "client_app": "fedvlm_secure.engines.flower.apps",
    "secure_aggregation": "fedvlm_secure.engines.flower.client",
    "server_app": "fedvlm_secure.engines.flower.apps",
}
__all__ = ["Aggregate", "SecureAggregator", "SecureStrategy", "client_app", "secure_aggregation", "server_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
