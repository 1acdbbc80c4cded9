"""What would make record-level differential privacy promise what it does not hold.

Each finding is a way, measured on these libraries, in which gradients are not clipped per sample although nothing
fails. Training with DP-SGD refuses them; ``fedvlm-secure doctor`` reports them before anybody trains.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training.answers import IGNORED, Split, answer_logits, bare, sample_losses
from fedvlm_secure.training.evaluation import evaluating
from fedvlm_secure.training.rows import VISION_ROWS, is_text

_LOOKED_AT = 64
_ROUNDING = 1e-2  # half-precision base models round differently in batches of different shape
_FACTORS = (".lora_A.", ".lora_B.")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a model that breaks the guarantee of record-level differential privacy.

    Attributes:
        layer: the full name of the module or tensor in the model.
        what: what is wrong with it.
        fix: what to change.
    """

    layer: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.layer} {self.what}; {self.fix}"


def check_model(model: torch.nn.Module) -> list[Finding]:
    """Everything about ``model``, with its adapter in it, that would break the guarantee; empty if nothing does.

    Args:
        model: a :class:`peft.PeftModel`, or any model with trainable parameters.
    """
    base = bare(model)
    found = [*_variants(base), *_outside(base), *_tied(base), *_precision(base), *_vision(base)]
    return [*found, *_checkpointing(base), *_batch_statistics(base)]


def refuse_unsound(adapter: Adapter) -> None:
    """Raises :class:`MisuseError` with the first finding about the adapter's model."""
    found = check_model(adapter.peft_model)
    if found:
        raise MisuseError(f"differential privacy would not hold: {found[0]}")


def refuse_coupled(adapter: Adapter, split: Split) -> None:
    """Look whether a row's loss depends on which rows it shares a batch with: then nothing bounds what one row does.

    Known case: without ``token_type_ids`` PaliGemma attends in both directions where a batch has no padding, and
    causally where it has some (transformers 5.23, attention "sdpa"), so one longer row changes the gradient of all.

    Raises:
        MisuseError: the losses of the shortest and the longest of the first rows differ alone and together.
    """
    first = split.batch(range(min(len(split), _LOOKED_AT)))
    lengths = (first["labels"] != IGNORED).int().cumsum(dim=1).argmax(dim=1)
    pair = sorted({int(lengths.argmin()), int(lengths.argmax())})
    with evaluating(adapter.peft_model), torch.no_grad():
        together = sample_losses(*answer_logits(adapter.peft_model, split.batch(pair)))
        alone = torch.cat([sample_losses(*answer_logits(adapter.peft_model, split.batch([row]))) for row in pair])
    # A loss that is not finite says nothing here; such a row is left out of every sum.
    off = (together - alone).abs() > _ROUNDING * (1 + alone.abs())
    if off.any():
        raise MisuseError(
            "differential privacy would not hold: a row's loss depends on the other rows of its batch; where the "
            "processor gives token_type_ids, pass them to the model, else load it with attn_implementation=eager"
        )


def _variants(base: torch.nn.Module) -> Iterator[Finding]:
    """Kinds of LoRA whose gradients the hooks do not see, or not per sample."""
    for name, module in base.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for variant in sorted({type(variant).__name__ for variant in module.lora_variant.values()}):
            dora = "Dora" in variant
            yield Finding(
                name,
                "uses DoRA, whose magnitudes mix samples" if dora else f"uses the LoRA variant {variant}",
                "attach the adapter with use_dora=False" if dora else "attach the adapter as plain LoRA",
            )
        if len(module.lora_embedding_A) or len(module.lora_embedding_B):
            yield Finding(
                name,
                "has LoRA on an embedding (lora_embedding_A and _B), which gets no gradient per sample",
                "leave embeddings out of target_modules",
            )


def _outside(base: torch.nn.Module) -> Iterator[Finding]:
    """Trainable parameters that the adapter does not know of: nobody would clip them or add noise."""
    for name, parameter in base.named_parameters():
        if parameter.requires_grad and "lora_embedding_" not in name and "lora_magnitude_" not in name:
            if not any(factor in name for factor in _FACTORS):
                yield Finding(
                    name, "is trainable but not part of the LoRA adapter", "freeze it with requires_grad_(False)"
                )
            elif not name.endswith(".weight"):
                yield Finding(name, "is a trainable bias of LoRA", "attach the adapter with lora_bias=False")


def _tied(base: torch.nn.Module) -> Iterator[Finding]:
    """One trainable tensor under two names: two layers' gradients, of which one might be lost."""
    seen: dict[int, str] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        first = seen.setdefault(id(parameter), name)
        if first != name:
            yield Finding(
                name, f"is tied to {first} and trainable", "give each layer weights of its own, or freeze them"
            )


def _precision(base: torch.nn.Module) -> Iterator[Finding]:
    for name, parameter in base.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            yield Finding(
                name, f"is trained in {kind}, too coarse to clip and add noise in", "keep adapters in float32"
            )


def _vision(base: torch.nn.Module) -> Iterator[Finding]:
    """Adapters outside the text tower, where rows may be tiles or patches."""
    family = str(getattr(getattr(base, "config", None), "model_type", "unknown"))
    if family in VISION_ROWS:
        return
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and not is_text(name):
            yield Finding(
                name,
                f"is outside the text tower of a model ({family}) whose rows there are not known to be samples",
                "leave it out of the adapter's targets",
            )


def _checkpointing(base: torch.nn.Module) -> Iterator[Finding]:
    for name, module in base.named_modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if not getattr(module, "gradient_checkpointing", False) or function is None:
            continue
        if not getattr(function, "keywords", {}).get("use_reentrant", False):
            yield Finding(
                name or type(base).__name__,
                "recomputes activations without re-entering autograd, which the hooks do not see",
                'turn gradient checkpointing off, or give it {"use_reentrant": True}',
            )
            return  # it is on for all layers or none


def _batch_statistics(base: torch.nn.Module) -> Iterator[Finding]:
    for name, module in base.named_modules():
        # Frozen running statistics treat each row alone; the batch's own do not.
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is None:  # noqa: SLF001
            yield Finding(name, "normalises by the batch's statistics, which mixes samples", "use group or layer norm")
