"""What the coordinator and every hospital compute alike for a round: the vector's layout and the model's hash."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from fedvlm_secure.adapters import AdapterSettings, SharedLayout
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import AggregationTable
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.training import Evaluation

# Losses are summed as whole thousandths of a nat, answers as whole numbers: exact, whatever the order of addition.
_LOSS_UNIT = 1000
_MOST_ANSWERS, _MOST_LOSS = 1 << 20, 1 << 30


def vector_layout(update: int, aggregation: AggregationTable) -> VectorLayout:
    """The layout of a round that shares ``update`` numbers."""
    counters = (
        Counter("weight", aggregation.weight_max),
        Counter("correct", _MOST_ANSWERS),
        Counter("asked", _MOST_ANSWERS),
        Counter("loss-milli", _MOST_LOSS),
    )
    return VectorLayout(update, counters, aggregation.value_bits, aggregation.weight_max)


def weight_of(rows: int, aggregation: AggregationTable) -> int:
    """A hospital's weight: its training rows in units of ``rows-per-weight``, at least 1.

    Raises:
        MisuseError: above ``weight-max``.
    """
    weight = max(1, round(rows / aggregation.rows_per_weight))
    if weight > aggregation.weight_max:
        raise MisuseError(
            f"{rows} training rows give a weight of {weight}, above aggregation.weight-max = {aggregation.weight_max}; "
            f"raise aggregation.rows-per-weight to {-(-rows // aggregation.weight_max)} or more at every site"
        )
    return weight


def counters(weight: int, evaluation: Evaluation) -> dict[str, int]:
    """What travels beside the update inside the protected vector."""
    return {
        "weight": weight,
        "correct": evaluation.correct,
        "asked": evaluation.asked,
        "loss-milli": min(round(evaluation.loss_sum * _LOSS_UNIT), _MOST_LOSS),
    }


def evaluation_of(sums: Mapping[str, int]) -> Evaluation:
    """The counters' sums, as an evaluation over all survivors' rows."""
    return Evaluation(sums["correct"], sums["asked"], sums["loss-milli"] / _LOSS_UNIT)


def model_hash(base: bytes, settings: AdapterSettings, layout: SharedLayout, shared: np.ndarray) -> bytes:
    """What a client is bound to: base model, tokenizer and processor, adapter settings, and the shared state.

    Args:
        base: :attr:`fedvlm_secure.models.LoadedModel.digest`, computed by this party over what it loaded.
        shared: float32 [layout.size], the shared part at the start of the round.
    """
    described = json.dumps(asdict(settings), sort_keys=True)
    return digest("model", base, described, layout.digest(), np.ascontiguousarray(shared, "<f4").tobytes())
