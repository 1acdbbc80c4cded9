"""DP-SGD's sum written down by hand, a sample at a time, and tiny models of every family to compare it with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.training import local
from tests.adapters.tiny_vlm import BOS, END, IMAGE, PAD, FakeSplit, tiny_vlm

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 48,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Family:
    """How to build a model, which of its layers are meant, and rows that it understands."""

    name: str
    model: Callable[[], torch.nn.Module]
    targets: str
    split: Callable[[], "Pictured"]

    def adapter(self) -> Adapter:
        """With B away from zero, since A has no gradient at the usual start, and in float64, so that the batched and
        the single pass agree to the last digit that their losses, float32, have.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.model().eval()
            adapter = attach(model, AdapterSettings(targets=self.targets, rank=2))
            adapter.load({name: 0.3 * torch.randn_like(tensor) for name, tensor in adapter.state().items()})
        adapter.peft_model.double()
        return adapter


class Pictured(FakeSplit):
    """Rows with ``tokens[row]`` image tokens; answers have different lengths."""

    def __init__(self, pictures: torch.Tensor, tokens: Sequence[int]) -> None:
        super().__init__(len(tokens))
        self.pictures = pictures
        for prompt, count in zip(self.prompts, tokens, strict=True):
            prompt[1:5] = [IMAGE] * count


class Patched(Pictured):
    """Qwen2-VL's: the patches of all pictures one after the other, ``sizes[row]`` by 4 of them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.sizes = torch.tensor([[1, height, 4] for height in sizes])
        super().__init__(torch.zeros(len(sizes), 1), list(sizes))
        self.patches = [torch.randn(4 * height, 3 * 2 * 4 * 4, generator=generator) for height in sizes]

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = list(indices)
        batch = super().batch(rows)
        kinds = (batch["input_ids"] == IMAGE).long()
        pictures = {"pixel_values": torch.cat([self.patches[row] for row in rows]), "image_grid_thw": self.sizes[rows]}
        return batch | pictures | {"mm_token_type_ids": kinds}


class Typed(Pictured):
    """PaliGemma's: told which tokens are the answer, in front of which attention goes both ways."""

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = super().batch(indices)
        return batch | {"token_type_ids": (batch["labels"] != -100).long()}


def _one_picture(kind: type[Pictured] = Pictured) -> Pictured:
    generator = torch.Generator().manual_seed(1)
    return kind(torch.randn(8, 3, 16, 16, generator=generator), [4] * 8)


def _two_tiles() -> Pictured:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(8, 2, 3, 16, 16, generator=generator)
    pictures[::3, 1] = 0.0  # every third row has one tile only
    return Pictured(pictures, [4 if row % 3 == 0 else 8 for row in range(8)])


def _sizes_differ() -> Patched:
    return Patched([4, 2, 4, 2, 6, 4, 2, 4])


def _idefics3() -> torch.nn.Module:
    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT},
        vision_config={**VISION, "patch_size": 4},
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    return Idefics3ForConditionalGeneration(config)


def _llava() -> torch.nn.Module:
    config = LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION, "patch_size": 8, "projection_dim": 16},
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def _paligemma() -> torch.nn.Module:
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT},
        vision_config={"model_type": "siglip_vision_model", **VISION, "patch_size": 8, "vision_use_head": False},
        image_token_id=IMAGE,
        projection_dim=32,
    )
    return PaliGemmaForConditionalGeneration(config)


def _qwen2_vl() -> torch.nn.Module:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "initializer_range": 0.2,
        },
        image_token_id=IMAGE,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    return Qwen2VLForConditionalGeneration(config)


_WORDS = r".*(text_model|language_model).*\.(q|v|down)_proj"
_EYES = r".*vision_(model|tower).*\.(q_proj|fc2)"

FAMILIES = (
    Family("SmolVLM, text", tiny_vlm, _WORDS, lambda: FakeSplit(8)),
    Family("SmolVLM, both", tiny_vlm, rf"{_WORDS}|{_EYES}|.*connector.*\.proj", lambda: FakeSplit(8)),
    Family("Idefics3 of two tiles, text", _idefics3, _WORDS, _two_tiles),
    Family("Idefics3 of two tiles, both", _idefics3, rf"{_WORDS}|{_EYES}|.*connector.*\.proj", _two_tiles),
    Family("LLaVA, text", _llava, _WORDS, _one_picture),
    Family("LLaVA, both", _llava, rf"{_WORDS}|{_EYES}|.*projector\.linear_1", _one_picture),
    Family("PaliGemma, text", _paligemma, _WORDS, lambda: _one_picture(Typed)),
    Family("PaliGemma, both", _paligemma, rf"{_WORDS}|{_EYES}|.*projector\.linear", lambda: _one_picture(Typed)),
    Family("Qwen2-VL, text", _qwen2_vl, _WORDS, _sizes_differ),
    Family("Qwen2-VL, both", _qwen2_vl, rf"{_WORDS}|.*visual.*\.(qkv|fc2|mlp\.2)", _sizes_differ),
)


class Script:
    """A noise source that draws what it is told and adds ``noise`` everywhere."""

    def __init__(self, *draws: Sequence[bool], noise: float = 0.0) -> None:
        self.draws = [np.array(draw, bool) for draw in draws]
        self.asked: list[tuple[float, int]] = []
        self.noise = noise

    def bernoulli(self, probability: float, size: int) -> np.ndarray:
        self.asked.append((probability, size))
        return self.draws.pop(0) if self.draws else np.ones(size, bool)

    def normal(self, size: int) -> np.ndarray:
        return np.full(size, self.noise)


class Recorder(torch.optim.SGD):
    """Plain gradient descent that keeps every gradient it was given, flat, float64 [d]."""

    steps: list[torch.Tensor]

    def step(self) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.steps.append(torch.cat([p.grad.flatten().double() for p in parameters]))
        super().step()


def record(monkeypatch) -> list[torch.Tensor]:
    """The gradients of all steps from now on, tensors in canonical order; the steps themselves are tiny."""
    steps: list[torch.Tensor] = []

    def make(adapter, settings):
        recorder = Recorder([p for p in adapter.parameters.values() if p.requires_grad], lr=1e-3)
        recorder.steps = steps
        return recorder

    monkeypatch.setattr(local, "make_optimizer", make)
    return steps


def row_gradient(adapter: Adapter, split, row: int) -> torch.Tensor:
    """The gradient of one row's mean loss over its answer tokens, float64 [d]: the row alone in a batch."""
    learned = [p for p in adapter.parameters.values() if p.requires_grad]
    batch = split.batch([row])
    labels = batch.pop("labels")
    logits = adapter.peft_model(**batch, use_cache=False).logits[:, :-1].transpose(1, 2)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:], ignore_index=-100, reduction="mean")
    return torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, learned)])


def unit_gradient(adapter: Adapter, split, rows: Sequence[int]) -> torch.Tensor:
    """The mean of the rows' gradients, float64 [d]."""
    return torch.stack([row_gradient(adapter, split, row) for row in rows]).mean(dim=0)


def middle_norm(adapter: Adapter, split, units: Sequence[Sequence[int]]) -> float:
    """A limit that half of these units exceed."""
    return float(np.median([float(unit_gradient(adapter, split, rows).norm()) for rows in units]))


def clipped_by_hand(adapter: Adapter, split, units: Sequence[Sequence[int]], norm: float) -> torch.Tensor:
    """The sum over units of the mean of their rows' gradients, each scaled down to ``norm``; float64 [d]."""
    total = torch.zeros(sum(p.numel() for p in adapter.parameters.values() if p.requires_grad), dtype=torch.float64)
    for rows in units:
        gradient = unit_gradient(adapter, split, rows)
        total += gradient * min(1.0, norm / float(gradient.norm()))
    return total
