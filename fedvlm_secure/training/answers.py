"""The model's answers to a batch of picture questions, and the loss of each row.

The loss of a batch is the mean over rows of each row's own mean over its answer tokens. The usual mean over
all tokens of the batch would let one row's length change another row's gradient, and per-row clipping for
differential privacy would then bound nothing.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import peft
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training.context import HIDDEN, IGNORED, continue_from

FEATURES = "image_features"
LISTED_FEATURES = "image_features_listed"  # of models that take their pictures' features as a list


class Split(Protocol):
    """Encoded rows, such as :class:`fedvlm_secure.data.EncodedSplit`."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the model's forward takes for these rows, and ``labels`` [B, T]: −100 except on answer tokens.

        A label is the token at its place in ``decoder_input_ids`` or, without these, in ``input_ids``; the model says
        it one place earlier. In place of pictures there may be ``image_features`` or ``image_features_listed``, [B,
        image tokens, hidden], and in place of everything what
        :class:`~fedvlm_secure.training.context.ContextSplit` gives.
        """
        ...


def answer_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Run ``model`` and return its predictions for the answer tokens only.

    Returns:
        logits, float [B, K, vocabulary], and targets, int64 [B, K], where K is the longest answer (end token
        included) and −100 fills up shorter ones.

    Raises:
        MisuseError: a row has no answer token.
    """
    base = bare(model)
    device = next(base.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    if HIDDEN in batch:
        return continue_from(base, batch)
    labels = batch.pop("labels")[:, 1:]
    answered = labels != IGNORED
    lengths = answered.sum(dim=1)
    if not lengths.all():
        raise MisuseError("a row of the batch has no answer token")
    # A stable sort brings each row's answer positions to the front, in order.
    positions = answered.logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
    inputs = model_inputs(batch)
    if accepts(base, "logits_to_keep"):
        logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    else:
        logits = torch.take_along_dim(model(**inputs, use_cache=False).logits, positions[..., None], dim=1)
    return logits, labels.gather(1, positions)


def model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the model's forward takes for a batch without its labels."""
    inputs: dict[str, Any] = dict(batch)
    features: Any = inputs.pop(FEATURES, None)
    if LISTED_FEATURES in inputs:
        features = list(inputs.pop(LISTED_FEATURES))
    if features is not None:
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    return inputs


def sample_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each row's mean cross-entropy over its answer tokens, float32 [B]; arguments as from :func:`answer_logits`."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1) / (targets != IGNORED).sum(dim=1)


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside peft's wrapper, or ``model`` itself."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def accepts(model: torch.nn.Module, argument: str) -> bool:
    """Whether the model's forward names ``argument``."""
    return argument in inspect.signature(model.forward).parameters
