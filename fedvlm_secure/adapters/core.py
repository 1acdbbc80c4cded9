"""A trainable core between LoRA's factors, which stand still: ΔW = B·R·A, r² numbers a layer.

LoRA-XS (arXiv 2405.17604) and Fed-SB (arXiv 2502.15436). The factors are the principal directions of the frozen weight:
with W ≈ U·Σ·Vᵀ, A is Vᵀ and B is U, r rows and columns of them.
"""

import torch
from peft.tuners.lora import LoraLayer

from fedvlm_secure.adapters.strategies import A, B


class FirstFactor(torch.nn.Linear):
    """LoRA's A followed by the core."""

    def __init__(self, factor: torch.nn.Linear) -> None:
        super().__init__(factor.in_features, factor.out_features, bias=False, device=factor.weight.device)
        self.core = torch.nn.Linear(factor.out_features, factor.out_features, bias=False, device=factor.weight.device)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """R·A·x, [..., rank]."""
        result: torch.Tensor = self.core(super().forward(inputs))
        return result


def add_core(model: torch.nn.Module, slot: str) -> None:
    """Put a core behind the A of every LoRA layer of ``model``, in place."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            factor = module.lora_A[slot]
            assert isinstance(factor, torch.nn.Linear)  # since only linear layers are matched
            module.lora_A[slot] = FirstFactor(factor)


def principal_factors(weight: torch.Tensor, rank: int) -> dict[str, torch.Tensor]:
    """A₀ [rank, in] and B₀ [out, rank] of a frozen ``weight`` [out, in]; where rank is more than it has, zeros follow.

    A direction's sign makes the largest entry of its row of A positive. On another machine values may differ in the
    last bits: nothing is sent that depends on all hospitals having the same.
    """
    left, _, right = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    first, second = (right * signs)[:rank].float(), (left * signs.T)[:, :rank].float()
    missing = rank - len(first)
    return {
        A: torch.nn.functional.pad(first, (0, 0, 0, missing)),
        B: torch.nn.functional.pad(second, (0, missing)),
    }
