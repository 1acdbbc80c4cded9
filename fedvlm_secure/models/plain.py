"""Rows of models that are asked without a chat: the bare question, and the answer behind it or in a decoder.

Both classes are a :class:`fedvlm_secure.data.collate.RowWriter` around the model's own processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from fedvlm_secure.errors import MisuseError

_IGNORED = -100
_PADDED = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Suffixed:
    """PaliGemma: the answer and an end-of-sequence token behind the question, in one sequence.

    ``token_type_ids`` are 1 on the answer and 0 before it, where attention goes both ways.
    """

    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def rows(self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]) -> Tensors:
        """Return ``input_ids``, ``attention_mask``, ``token_type_ids``, ``labels`` (int64 [n, T]), ``pixel_values``."""
        batch = dict(self._processed(images, questions, suffix=list(answers)))
        batch["labels"] = batch["input_ids"].masked_fill(batch["token_type_ids"] != 1, _IGNORED)
        return batch

    def asked(self, image: Image.Image, question: str) -> tuple[Tensors, int]:
        """What ``generate`` takes, one row, and how many tokens of what it returns come before the answer."""
        batch = dict(self._processed([image], [question]))
        batch.pop("labels", None)  # all of them ignored
        return batch, batch["input_ids"].shape[1]

    def _processed(self, images: Sequence[Image.Image], questions: Sequence[str], **suffix: Any) -> Any:
        text = [self.processor.image_token + question for question in questions]
        return _called(self.processor, text, images, **suffix)


@dataclass(frozen=True)
class Decoded:
    """Florence-2 and BLIP: an encoder reads picture and question, a decoder writes the answer.

    Attributes:
        start: tokens that the decoder is given before the answer.
        end: the token that ends an answer.
        positions: how many tokens the encoder and the decoder have positions for.
    """

    processor: Any
    start: tuple[int, ...]
    end: int
    positions: int

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def rows(self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]) -> Tensors:
        """Return ``input_ids``, ``attention_mask`` [n, T], ``decoder_input_ids``, ``labels`` [n, K], ``pixel_values``.

        ``labels[:, k]`` is ``decoder_input_ids[:, k]`` on the answer, which the decoder says one place earlier.

        Raises:
            MisuseError: a question or an answer is longer than ``positions``.
        """
        batch = self._read(images, questions)
        said = [[*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end] for answer in answers]
        longest = max(map(len, said))
        self._check("an answer", len(self.start) + longest)
        fill, masked = self.tokenizer.pad_token_id or 0, [_IGNORED] * len(self.start)
        batch["decoder_input_ids"] = torch.tensor([[*self.start, *s] + [fill] * (longest - len(s)) for s in said])
        batch["labels"] = torch.tensor([[*masked, *s] + [_IGNORED] * (longest - len(s)) for s in said])
        return batch

    def asked(self, image: Image.Image, question: str) -> tuple[Tensors, int]:
        """What ``generate`` takes, one row, and how many tokens of what it returns come before the answer."""
        batch = self._read([image], [question])
        if len(self.start) > 1:  # the first of them the model sets itself
            batch["decoder_input_ids"] = torch.tensor([self.start])
        return batch, len(self.start)

    def _read(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Tensors:
        batch = dict(_called(self.processor, list(questions), images))
        self._check("a question", batch["input_ids"].shape[1])
        return batch

    def _check(self, what: str, tokens: int) -> None:
        if tokens > self.positions:
            raise MisuseError(f"{what} has {tokens} tokens; this model has places for {self.positions}: shorten it")


def _called(processor: Any, text: Sequence[str], images: Sequence[Image.Image], **more: Any) -> Any:
    try:
        return processor(text=text, images=list(images), **_PADDED, **more)
    except ValueError as error:  # such as a task token of Florence-2 amid other words
        raise MisuseError(f"the model's processor cannot read a question: {' '.join(str(error).split())}") from error
