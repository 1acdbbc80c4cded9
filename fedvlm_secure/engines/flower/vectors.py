"""Flower's arrays and metrics as what a round sums: one vector of floats, and exact counters."""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.kdf import digest

RESOLUTION = 1000
"""A metric is summed in steps of 1/1000, times the weight: exact from there on."""

Bounds = Mapping[str, int]
"""The largest value of each metric that is summed, in steps of 1/RESOLUTION, by name."""


def bounds_of(metrics: Mapping[str, float]) -> dict[str, int]:
    """Bounds from the largest values as people write them; raises :class:`MisuseError`."""
    for name, largest in metrics.items():
        if not 0 < largest < math.inf:
            raise MisuseError(f"metric {name!r} is bounded by {largest}; give its largest value, a positive number")
    return {name: math.ceil(largest * RESOLUTION) for name, largest in metrics.items()}


def size(arrays: ArrayRecord) -> int:
    """How many values there are, as the arrays' shapes say; raises :class:`MisuseError` if there is none."""
    values = sum(math.prod(array.shape) for array in arrays.values())
    if not values:
        raise MisuseError("there are no arrays to aggregate; put the model's into the message's ArrayRecord")
    return values


def flatten(arrays: ArrayRecord) -> NDArray[np.floating]:
    """All values, array by array: float32 [d], or float64 where an array is, so that a difference loses nothing.

    Raises:
        MisuseError: an array is not of floats, or there is no value.
    """
    size(arrays)
    parts = [_floats(name, array) for name, array in arrays.items()]
    return np.concatenate([part.ravel() for part in parts], dtype=np.result_type(np.float32, *parts))


def moved(arrays: ArrayRecord, mean: NDArray[np.float64]) -> ArrayRecord:
    """``arrays`` after adding a mean update [d]: same names, shapes and dtypes."""
    after, start = ArrayRecord(), 0
    for name, array in arrays.items():
        before = _floats(name, array)
        step = mean[start : start + before.size].reshape(before.shape)
        after[name] = Array((before.astype(np.float64) + step).astype(before.dtype))
        start += before.size
    return after


def model_digest(arrays: ArrayRecord) -> bytes:
    """32 bytes that say which arrays these are: names, dtypes, shapes and values."""
    items = []
    for name, array in arrays.items():
        values = _floats(name, array)
        contents = hashlib.sha256(np.ascontiguousarray(values).data).digest()
        items.append(digest("array", name, str(values.dtype), str(values.shape), contents))
    return digest("arrays", items)


def layout(size: int, bounds: Bounds, value_bits: int, weight_max: int) -> VectorLayout:
    """What a round sums: ``size`` floats, the weight, and each metric times the weight; raises :class:`MisuseError`."""
    summed = [Counter(f"metric {name}", bound * weight_max) for name, bound in bounds.items()]
    return VectorLayout(size, (Counter("weight", weight_max), *summed), value_bits, weight_max)


def counters(metrics: MetricRecord, weight: int, bounds: Bounds) -> dict[str, int]:
    """What a node adds beside its update.

    Raises:
        MisuseError: a metric is missing, negative or not a number.
    """
    own = {"weight": weight}
    for name, bound in bounds.items():
        value = metrics.get(name)
        if not isinstance(value, int | float) or not value >= 0:
            raise MisuseError(f"metric {name!r} is {value!r}; a summed metric is a number of at least 0")
        own[f"metric {name}"] = min(round(min(value, bound) * RESOLUTION), bound) * weight
    return own


def means(sums: Mapping[str, int], bounds: Bounds) -> dict[str, float]:
    """Each metric's weighted mean."""
    return {name: sums[f"metric {name}"] / RESOLUTION / sums["weight"] for name in bounds}


def weight_of(examples: object, rows_per_weight: int, weight_max: int) -> int:
    """A node's weight from the number of its examples: from 1 to ``weight_max``, which more examples count as.

    Raises:
        MisuseError: it is not a positive number.
    """
    if not isinstance(examples, int | float) or not 0 < examples < math.inf:
        raise MisuseError(f"the number of examples is {examples!r}; reply with a MetricRecord that holds it")
    return min(max(1, round(examples / rows_per_weight)), weight_max)


def _floats(name: str, array: Array) -> NDArray[np.floating]:
    values = array.numpy()
    if values.dtype not in (np.float16, np.float32, np.float64):
        raise MisuseError(f"array {name!r} is of {values.dtype}; arrays of floats are averaged, keep others at home")
    return values
