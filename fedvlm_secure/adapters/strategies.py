"""A strategy answers one question: which tensors leave the hospital in this round?

The server only ever needs the weighted sum of what is shared, so every strategy here is linear and
the aggregation protocols never learn which one is running. In ΔW = B·A the factor ``lora_A`` is
r x in and ``lora_B`` is out x r.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol


class Strategy(Protocol):
    """Which tensors are shared in a round. Stateless: the same answer for every hospital."""

    def shared(self, name: str, round_index: int) -> bool:
        """Whether the adapter tensor ``name`` (canonical, ``….lora_A.weight``) is shared in round ``round_index``."""
        ...


@dataclass(frozen=True, slots=True)
class SharesFactors:
    """Shares the same LoRA factors in every round, keeps the others."""

    factors: tuple[str, ...]

    def shared(self, name: str, round_index: int) -> bool:
        """See :class:`Strategy`."""
        return factor_of(name) in self.factors


def factor_of(name: str) -> str:
    """``lora_A`` or ``lora_B``: the factor that the canonical tensor ``name`` belongs to."""
    return name.rsplit(".", 2)[-2]


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        # FedVLM (arXiv 2507.17088): B carries what hospitals have in common, A stays personal.
        "plora": SharesFactors(("lora_B",)),
        # FedIT: both factors are averaged, although mean(B)·mean(A) is not mean(B·A).
        "lora": SharesFactors(("lora_A", "lora_B")),
        # The baseline that every comparison must report.
        "local": SharesFactors(()),
    }
)
