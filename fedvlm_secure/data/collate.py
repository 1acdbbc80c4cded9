"""Rows to tensors: one picture and one question in, the loss on the answer only.

Training loops use :func:`encode` once and then ``EncodedSplit.batch``: processing pictures anew at every step would
dominate the cost of a LoRA step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import datasets
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from fedvlm_secure.errors import MisuseError

IGNORED = -100
# By token, so padded and cut with the text. `token_type_ids` only of processors that tell prompt from answer
# (PaliGemma), whose models would otherwise attend differently in batches with and without padding; `mm_token_type_ids`
# only of those that tell text from picture (Qwen-VL).
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
# By token of the answer where it has a sequence of its own, and of the text else.
_BY_ANSWER = ("labels", "decoder_input_ids")
_PICTURES = ("pixel_values", "image_grid_thw")
Batch = dict[str, torch.Tensor]


@runtime_checkable
class RowWriter(Protocol):
    """A processor for models that are not asked in a chat; :mod:`fedvlm_secure.models.plain` has them."""

    tokenizer: Any

    def rows(self, images: Sequence[Any], questions: Sequence[str], answers: Sequence[str]) -> Batch:
        """Return what :class:`Collator` returns for RGB pictures, questions and answers, one of each a row."""
        ...


def prompt(processor: Any, question: str, answer: str | None = None) -> str:
    """Return the chat text of a question about one picture, up to where the answer starts or up to its end of turn.

    Where the template ends the answer's turn with none of the tokenizer's added tokens (LLaVA 1.5), the end-of-sequence
    token ends it: a model that never sees an end would not learn to stop.
    """
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    if answer is None:
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text, tokenizer = str(processor.apply_chat_template(turns)).rstrip("\n"), processor.tokenizer
    ended = tokenizer.eos_token is None or text.endswith(tuple(tokenizer.get_added_vocab()))
    return text if ended else text.rstrip() + str(tokenizer.eos_token)


@dataclass
class Collator:
    """Turns a list of rows into one batch of tensors, padded on the right.

    Args:
        processor: a Hugging Face processor with a chat template, or a :class:`RowWriter`: what
            :func:`fedvlm_secure.models.load` gives.
        max_length: the longest row allowed, in tokens, picture tokens included: LLaVA has 576 of a picture, SmolVLM up
            to some 1,100.
    """

    processor: Any
    max_length: int = 2048
    _answer_lengths: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return ``input_ids``, ``attention_mask``, ``labels`` (int64 [n, length]) and ``pixel_values`` (float32).

        ``labels`` are -100 except on the answer's tokens and its end of turn; they are aligned with ``input_ids`` or,
        where that is there, with ``decoder_input_ids`` [n, answer length]. ``pixel_attention_mask`` is there only
        where a picture is smaller than its frame, ``token_type_ids``, ``mm_token_type_ids`` and ``image_grid_thw`` [n,
        3] only where the processor gives them. With the last, ``pixel_values`` are [patches of all pictures, size].

        Raises:
            MisuseError: a row is longer than ``max_length``, the processor has no chat template, or that rewrites the
                question when an answer follows, so that the answer cannot be told from the question.
        """
        images = [row["image"].convert("RGB") for row in rows]
        if isinstance(self.processor, RowWriter):
            batch = self.processor.rows(images, [row["question"] for row in rows], [row["chosen"] for row in rows])
        else:
            batch = self._chat(images, [(row["question"], row["chosen"]) for row in rows])
        longest = int(batch["attention_mask"].sum(dim=1).max())
        if longest > self.max_length:
            raise MisuseError(
                f"a row has {longest} tokens, more than max_length = {self.max_length}; shorten its text, or have the "
                "model's processor make fewer tokens of a picture"
            )
        return batch

    def _chat(self, images: Sequence[Any], asked: Sequence[tuple[str, str]]) -> Batch:
        if not getattr(self.processor, "chat_template", True):
            raise MisuseError("this processor has no chat template; use the processor of fedvlm_secure.models.load")
        batch = self.processor(
            text=[prompt(self.processor, *pair) for pair in asked],
            images=[[image] for image in images],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        lengths = batch["attention_mask"].sum(dim=1)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for place, pair in enumerate(asked):
            end = int(lengths[place])
            start = end - self._answer_length(*pair)
            labels[place, start:end] = batch["input_ids"][place, start:end]
        tensors = {name: batch[name] for name in (*_BY_TOKEN, *_PICTURES) if name in batch} | {"labels": labels}
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
    """A whole split as tensors, first dimension the row; see :class:`Collator` for names and dtypes.

    Where the collator gives the patches of all pictures one after the other, with ``image_grid_thw``, they are here
    [rows, patches of the largest picture, size], filled up with zeros that no batch holds.
    """

    tensors: Batch

    def __len__(self) -> int:
        return len(self.tensors["input_ids"])

    def __getitem__(self, row: int) -> Batch:
        return {name: tensor[row] for name, tensor in self.tensors.items()}

    def batch(self, indices: Sequence[int] | torch.Tensor) -> Batch:
        """Return the rows at the indices (int64 [n]) as one batch, cut to the longest row among them."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        picked = {name: tensor[chosen] for name, tensor in self.tensors.items()}
        text = answer = int(picked["attention_mask"].sum(dim=1).max())
        if "decoder_input_ids" in picked:
            answer = int((picked["labels"] != IGNORED).any(dim=0).nonzero().max()) + 1
        for names, length in ((_BY_TOKEN, text), (_BY_ANSWER, answer)):
            for name in picked.keys() & set(names):
                picked[name] = picked[name][:, :length]
        if picked.keys() >= set(_PICTURES):
            picked["pixel_values"] = _one_after_the_other(**{name: picked[name] for name in _PICTURES})
        return picked

    def to(self, device: str | torch.device) -> "EncodedSplit":
        """Return the same rows on a device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


def encode(split: datasets.Dataset, processor: Any, max_length: int = Collator.max_length) -> EncodedSplit:
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
    for part in parts:
        if any("pixel_attention_mask" in other for other in parts):
            pixels = part["pixel_values"]
            full = torch.ones(*pixels.shape[:2], *pixels.shape[-2:], dtype=torch.int64)
            part.setdefault("pixel_attention_mask", full)
        if part.keys() >= set(_PICTURES):
            part["pixel_values"] = _picture_by_picture(**{name: part[name] for name in _PICTURES})
    padding = processor.tokenizer.pad_token_id or 0
    fill = {"input_ids": padding, "decoder_input_ids": padding, "labels": IGNORED}
    return EncodedSplit(
        {name: _below_one_another([part[name] for part in parts], fill.get(name, 0)) for name in parts[0]}
    )


def _below_one_another(tensors: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    """[rows, n, …] of several lengths n as one tensor, shorter ones filled up."""
    longest = max(tensor.shape[1] for tensor in tensors)
    before = (0, 0) * (tensors[0].ndim - 2)
    return torch.cat(
        [t if t.shape[1] == longest else pad(t, (*before, 0, longest - t.shape[1]), value=fill) for t in tensors]
    )


def _picture_by_picture(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
    """Patches of all pictures [sum, size] as [pictures, most, size]."""
    return pad_sequence(pixel_values.split(image_grid_thw.prod(dim=1).tolist()), batch_first=True)


def _one_after_the_other(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_picture_by_picture`."""
    counts = image_grid_thw.prod(dim=1, keepdim=True)
    return pixel_values[torch.arange(pixel_values.shape[1], device=counts.device) < counts]
