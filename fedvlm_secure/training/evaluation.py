"""Exact-match accuracy, counted in whole numbers so that hospitals' counts add up inside the secure sum."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training.answers import IGNORED, Split, answer_logits, sample_losses


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counters of one evaluation.

    Attributes:
        correct: rows whose whole answer, end token included, is the model's first choice.
        asked: rows.
        loss_sum: sum over rows of each row's mean cross-entropy over its answer tokens, in nats.
    """

    correct: int
    asked: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """``correct / asked``."""
        return self.correct / self.asked

    @property
    def loss(self) -> float:
        """``loss_sum / asked``, nats."""
        return self.loss_sum / self.asked


def evaluate(model: torch.nn.Module, split: Split, batch_size: int = 128) -> Evaluation:
    """Ask ``model`` every row of ``split``.

    A row counts as correct when, given the answer so far, the model's first choice is the answer's next token,
    at every token. By induction that is when greedy generation would write exactly this answer and stop.

    Raises:
        MisuseError: ``split`` is empty, or ``batch_size`` is below 1.
    """
    if len(split) == 0:
        raise MisuseError("there are no rows to evaluate")
    if batch_size < 1:
        raise MisuseError(f"evaluation batch_size must be at least 1, not {batch_size}")
    correct, loss_sum = 0, 0.0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(split), batch_size):
            indices = range(start, min(start + batch_size, len(split)))
            logits, targets = answer_logits(model, split.batch(indices))
            right = (logits.argmax(dim=-1) == targets) | (targets == IGNORED)
            correct += int(right.all(dim=1).sum())
            loss_sum += float(sample_losses(logits, targets).double().sum())
    return Evaluation(correct, len(split), loss_sum)


def row_losses(model: torch.nn.Module, split: Split, batch_size: int = 128) -> NDArray[np.float64]:
    """Each row's mean cross-entropy over its answer tokens, in nats: float64 [rows]."""
    losses = []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(split), batch_size):
            batch = split.batch(range(start, min(start + batch_size, len(split))))
            losses.append(sample_losses(*answer_logits(model, batch)).double().cpu().numpy())
    return np.concatenate(losses) if losses else np.zeros(0)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
