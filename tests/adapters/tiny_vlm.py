"""A random SmolVLM of some 30,000 parameters, and rows to train it on."""

import hashlib
from collections.abc import Sequence

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

TEXT_ONLY = r".*text_model.*\.(q|v|down)_proj"
IMAGE, BOS, END, PAD = 1, 2, 3, 0
WORDS = range(8, 48)


def tiny_vlm(seed: int = 0) -> SmolVLMForConditionalGeneration:
    text = {
        "model_type": "llama",
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
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "initializer_range": 0.2,
    }
    config = SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=IMAGE, pad_token_id=PAD
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmolVLMForConditionalGeneration(config).eval()


class FakeSplit:
    """Random pictures, questions and answers of different lengths, padded on the right."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pictures = torch.randn(rows, 1, 3, 16, 16, generator=generator)
        self.prompts: list[list[int]] = []
        self.answers: list[list[int]] = []
        for row in range(rows):
            words = torch.randint(WORDS.start, WORDS.stop, (8,), generator=generator).tolist()
            self.prompts.append([BOS] + [IMAGE] * 4 + words[: 2 + row % 3])
            self.answers.append([*words[5 : 6 + row % 3], END])

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = list(indices)
        whole = [torch.tensor(self.prompts[i] + self.answers[i]) for i in rows]
        masked = [torch.tensor([-100] * len(self.prompts[i]) + self.answers[i]) for i in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        input_ids = pad(whole, batch_first=True, padding_value=PAD)
        return {
            "input_ids": input_ids,
            "attention_mask": pad([torch.ones_like(ids) for ids in whole], batch_first=True),
            "pixel_values": self.pictures[rows],
            "labels": pad(masked, batch_first=True, padding_value=-100),
        }


def fingerprint(model: torch.nn.Module) -> bytes:
    """SHA-256 over everything in the model that is not LoRA, whatever wrapper it is in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
