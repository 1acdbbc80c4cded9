"""Rows in RLAIF-V's schema: the simulated hospitals, easy-vqa, anybody's own rows, and the collator.

The names below load on first use: listing the sites needs neither torch nor datasets.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "load": "fedvlm_secure.data.store",
    "load_counted": "fedvlm_secure.data.store",
    "NAMES": "fedvlm_secure.data.raw",
    "called": "fedvlm_secure.data.raw",
    "BadRow": "fedvlm_secure.data.raw",
    "RowSettings": "fedvlm_secure.data.own",
    "check": "fedvlm_secure.data.examination",
    "by_site": "fedvlm_secure.data.rows",
    "question_only_baseline": "fedvlm_secure.data.rows",
    "SITES": "fedvlm_secure.data.sites",
    "Site": "fedvlm_secure.data.sites",
    "LEVELS": "fedvlm_secure.data.levels",
    "description": "fedvlm_secure.data.levels",
    "level_of": "fedvlm_secure.data.levels",
    "newcomer_of": "fedvlm_secure.data.levels",
    "Collator": "fedvlm_secure.data.collate",
    "EncodedSplit": "fedvlm_secure.data.collate",
    "encode": "fedvlm_secure.data.collate",
    "prompt": "fedvlm_secure.data.collate",
    "row_digests": "fedvlm_secure.data.units",
    "units_of": "fedvlm_secure.data.units",
}
__all__ = [
    "LEVELS",
    "NAMES",
    "SITES",
    "BadRow",
    "Collator",
    "EncodedSplit",
    "RowSettings",
    "Site",
    "by_site",
    "called",
    "check",
    "description",
    "encode",
    "level_of",
    "load",
    "load_counted",
    "newcomer_of",
    "prompt",
    "question_only_baseline",
    "row_digests",
    "units_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
