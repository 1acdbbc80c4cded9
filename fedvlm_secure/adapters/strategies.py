"""A strategy answers two questions: which tensors leave the hospital in a round, and which are trained in it?

The server only ever needs the weighted sum of what is shared, so every strategy here is linear and the aggregation
protocols never learn which one is running. In ΔW = B·A the factor ``lora_A`` is r x in and ``lora_B`` is out x r;
Fed-SB puts a core R, r x r, between them: ΔW = B·R·A.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

A, B, CORE = "lora_A", "lora_B", "lora_R"


@dataclass(frozen=True, slots=True)
class Strategy:
    """Which factors are shared and trained. Stateless: the same answer for every hospital.

    Attributes:
        shares: the factors that are shared, by turns: the first entry is that of round 1.
        trains: the factors that are trained, by the same turns; the others stay as they are.
        keeps_copy: the hospital trains an adapter of its own beside the shared one, and answers with that (Ditto).
        warm_up: so many rounds at the start are plain LoRA: A and B are trained and shared. The turns come after them.
    """

    shares: tuple[tuple[str, ...], ...]
    trains: tuple[tuple[str, ...], ...] = ((A, B),)
    keeps_copy: bool = False
    warm_up: int = 0

    def shared(self, name: str, round_index: int) -> bool:
        """Whether the adapter tensor ``name`` (canonical, ``….lora_A.weight``) is shared in round ``round_index``."""
        return factor_of(name) in self._turn(self.shares, round_index)

    def ever_shared(self, name: str) -> bool:
        """Whether it is shared in any round: all hospitals then hold it alike between rounds."""
        return factor_of(name) in self._warm() or any(factor_of(name) in factors for factors in self.shares)

    def personal(self, name: str, round_index: int) -> bool:
        """Whether a hospital has a value of its own once round ``round_index`` is over; 0 is before the first round.

        A factor that only the warm-up shared is what that left it as until a hospital has trained its own.
        """
        if self.keeps_copy or not self.ever_shared(name):
            return True
        return round_index > self.warm_up and not any(factor_of(name) in factors for factors in self.shares)

    def trained(self, name: str, round_index: int) -> bool:
        """Whether it is trained in round ``round_index``."""
        return factor_of(name) in self._turn(self.trains, round_index)

    @property
    def has_core(self) -> bool:
        """Whether there is a core between the factors."""
        return any(CORE in factors for factors in self.trains)

    def _turn(self, turns: tuple[tuple[str, ...], ...], round_index: int) -> tuple[str, ...]:
        if 0 < round_index <= self.warm_up:
            return self._warm()
        return turns[(round_index - self.warm_up - 1) % len(turns)]

    def _warm(self) -> tuple[str, ...]:
        return (A, B) if self.warm_up else ()


def factor_of(name: str) -> str:
    """``lora_A``, ``lora_B`` or ``lora_R``: the factor that the canonical tensor ``name`` belongs to."""
    return name.rsplit(".", 2)[-2]


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        # FedVLM (arXiv 2507.17088): B carries what hospitals have in common, A stays personal.
        "plora": Strategy(shares=((B,),)),
        # FedIT: both factors are averaged, although mean(B)·mean(A) is not mean(B·A).
        "lora": Strategy(shares=((A, B),)),
        # The baseline that every comparison must report.
        "local": Strategy(shares=((),)),
        # FedSA-LoRA (arXiv 2410.01463): A carries what hospitals have in common, B stays personal.
        "fedsa": Strategy(shares=((A,),)),
        # FFA-LoRA (arXiv 2403.12313): A stays what it was, so the mean of B·A is the mean of B times A.
        "ffa": Strategy(shares=((B,),), trains=((B,),)),
        # RoLoRA (arXiv 2502.01755): one factor a round, by turns, the other stands still.
        "rolora": Strategy(shares=((B,), (A,)), trains=((B,), (A,))),
        # Fed-SB (arXiv 2502.15436): A and B stand still, a small core between them is shared.
        "fedsb": Strategy(shares=((CORE,),), trains=((CORE,),)),
        # Ditto (arXiv 2012.04221): LoRA, and an adapter of one's own that is drawn towards it.
        "ditto": Strategy(shares=((A, B),), keeps_copy=True),
    }
)
