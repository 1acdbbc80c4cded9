"""Rows to tensors: one picture and one question in, the loss on the answer only.

Training loops use :func:`encode` once and then ``EncodedSplit.batch``: processing pictures anew at every step would
dominate the cost of a LoRA step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import torch
from torch.nn.functional import pad

from fedvlm_secure.errors import MisuseError

IGNORED = -100
# By token, so padded and cut with the text; the last only of processors that tell prompt from answer (PaliGemma), whose
# models would otherwise attend differently in batches with and without padding.
_BY_TOKEN = ("input_ids", "attention_mask", "labels", "token_type_ids")
Batch = dict[str, torch.Tensor]


def prompt(processor: Any, question: str, answer: str | None = None) -> str:
    """Return the chat text of a question about one picture, up to where the answer starts or up to its end of turn."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    if answer is None:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return str(processor.apply_chat_template(turns)).rstrip("\n")


@dataclass
class Collator:
    """Turns a list of rows into one batch of tensors, padded on the right.

    Args:
        processor: a Hugging Face processor with a chat template.
        max_length: the longest row allowed, in tokens, picture tokens included.
    """

    processor: Any
    max_length: int = 512
    _answer_lengths: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return ``input_ids``, ``attention_mask``, ``labels`` (int64 [n, length]) and ``pixel_values`` (float32).

        ``pixel_attention_mask`` is there only where a picture is smaller than its frame, ``token_type_ids`` only where
        the processor gives them. ``labels`` are -100 except
        on the answer's tokens and its end of turn.

        Raises:
            MisuseError: a row is longer than ``max_length``, or the chat template rewrites the question when an
                answer follows, so that the answer cannot be told from the question.
        """
        asked = [(row["question"], row["chosen"]) for row in rows]
        batch = self.processor(
            text=[prompt(self.processor, *pair) for pair in asked],
            images=[[row["image"].convert("RGB")] for row in rows],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        lengths = batch["attention_mask"].sum(dim=1)
        if int(lengths.max()) > self.max_length:
            raise MisuseError(f"a row has {int(lengths.max())} tokens, more than max_length = {self.max_length}")
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for place, pair in enumerate(asked):
            end = int(lengths[place])
            start = end - self._answer_length(*pair)
            labels[place, start:end] = batch["input_ids"][place, start:end]
        kept = [name for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values") if name in batch]
        tensors = {name: batch[name] for name in kept} | {"labels": labels}
        mask = batch.get("pixel_attention_mask")
        return tensors if mask is None or bool(mask.all()) else tensors | {"pixel_attention_mask": mask}

    def _answer_length(self, question: str, answer: str) -> int:
        key = (question, answer)
        if key not in self._answer_lengths:
            tokenizer = self.processor.tokenizer
            before = tokenizer(prompt(self.processor, question))["input_ids"]
            whole = tokenizer(prompt(self.processor, question, answer))["input_ids"]
            if whole[: len(before)] != before:
                raise MisuseError(f"the chat template changes the question {question!r} when an answer follows it")
            self._answer_lengths[key] = len(whole) - len(before)
        return self._answer_lengths[key]


@dataclass(frozen=True)
class EncodedSplit(torch.utils.data.Dataset[Batch]):
    """A whole split as tensors, first dimension the row; see :class:`Collator` for names and dtypes."""

    tensors: Batch

    def __len__(self) -> int:
        return len(self.tensors["input_ids"])

    def __getitem__(self, row: int) -> Batch:
        return {name: tensor[row] for name, tensor in self.tensors.items()}

    def batch(self, indices: Sequence[int] | torch.Tensor) -> Batch:
        """Return the rows at the indices (int64 [n]) as one batch, cut to the longest row among them."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        picked = {name: tensor[chosen] for name, tensor in self.tensors.items()}
        length = int(picked["attention_mask"].sum(dim=1).max())
        for name in picked.keys() & set(_BY_TOKEN):
            picked[name] = picked[name][:, :length]
        return picked

    def to(self, device: str | torch.device) -> "EncodedSplit":
        """Return the same rows on a device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


def encode(split: datasets.Dataset, processor: Any, max_length: int = 512) -> EncodedSplit:
    """Process a whole split once; 4 s for the largest hospital, 50 KB a row with 64x64 pictures.

    Raises:
        MisuseError: the split is empty, or see :class:`Collator`.
    """
    if not len(split):
        raise MisuseError("there is nothing to encode: the split has no rows")
    collate = Collator(processor, max_length)
    parts = [
        collate([split[place] for place in range(at, min(at + 256, len(split)))]) for at in range(0, len(split), 256)
    ]
    longest = max(part["input_ids"].shape[1] for part in parts)
    fill = {"input_ids": processor.tokenizer.pad_token_id or 0, "labels": IGNORED}
    for part in parts:
        for name in part.keys() & set(_BY_TOKEN):
            part[name] = pad(part[name], (0, longest - part[name].shape[1]), value=fill.get(name, 0))
        if any("pixel_attention_mask" in other for other in parts):
            pixels = part["pixel_values"]
            full = torch.ones(*pixels.shape[:2], *pixels.shape[-2:], dtype=torch.int64)
            part.setdefault("pixel_attention_mask", full)
    return EncodedSplit({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
