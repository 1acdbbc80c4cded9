"""Personalised LoRA and its relatives: which tensors are shared, and how they become one flat vector."""

from fedvlm_secure.adapters.adapter import Adapter, attach
from fedvlm_secure.adapters.layout import SharedLayout
from fedvlm_secure.adapters.peft_format import SavedAdapter, load_peft, save_peft
from fedvlm_secure.adapters.settings import AdapterSettings
from fedvlm_secure.adapters.strategies import STRATEGIES, Strategy

__all__ = [
    "STRATEGIES",
    "Adapter",
    "AdapterSettings",
    "SavedAdapter",
    "SharedLayout",
    "Strategy",
    "attach",
    "load_peft",
    "save_peft",
]
