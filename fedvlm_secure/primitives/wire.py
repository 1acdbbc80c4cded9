"""Canonical CBOR (RFC 8949, section 4.2) with limits: one value has one encoding, and nothing but plain data decodes.

Allowed are unsigned integers below 2^64, byte strings, text, booleans, null, arrays, and maps with text keys.
"""

from dataclasses import dataclass
from typing import Any

import cbor2


class WireError(ValueError):
    """The bytes are not the canonical encoding of an allowed value within the limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder accepts: size in bytes, nesting depth, and number of values altogether."""

    max_bytes: int = 64 << 20
    max_depth: int = 8
    max_items: int = 1 << 20


DEFAULT_LIMITS = Limits()


def encode(value: Any, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The canonical encoding of ``value``.

    Raises:
        WireError: ``value`` holds something the format has no place for, or is beyond the limits.
    """
    _count(value, limits, depth=0, seen=0)
    data = cbor2.dumps(value, canonical=True)
    if len(data) > limits.max_bytes:
        raise WireError(f"{len(data)} bytes exceed the limit of {limits.max_bytes}")
    return data


def decode(data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of which ``data`` is the canonical encoding.

    Raises:
        WireError: malformed, truncated, trailing or non-canonical bytes, a forbidden type, or beyond the limits.
    """
    if len(data) > limits.max_bytes:
        raise WireError(f"{len(data)} bytes exceed the limit of {limits.max_bytes}")
    data = bytes(data)
    try:
        value = cbor2.loads(data, max_depth=limits.max_depth + 1, allow_indefinite=False, allow_duplicate_keys=False)
    except Exception as error:  # noqa: BLE001  # the library raises many types on hostile bytes; all mean the same here
        raise WireError(f"not CBOR: {type(error).__name__}") from None
    if encode(value, limits) != data:
        raise WireError("not the canonical encoding")
    return value


def _count(value: Any, limits: Limits, depth: int, seen: int) -> int:
    """Check types, depth and number of values; returns the running number of values."""
    seen += 1
    if seen > limits.max_items:
        raise WireError(f"more than {limits.max_items} values")
    if depth > limits.max_depth:
        raise WireError(f"nested deeper than {limits.max_depth}")
    if value is None or isinstance(value, bool | bytes | str):
        return seen
    if isinstance(value, int):
        if not 0 <= value < 1 << 64:
            raise WireError("integer outside [0, 2^64)")
        return seen
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise WireError("a map key that is not text")
        return _count(list(value.values()), limits, depth, seen + len(value))
    if isinstance(value, list | tuple):
        for item in value:
            seen = _count(item, limits, depth + 1, seen)
        return seen
    raise WireError(f"no place for a value of type {type(value).__name__}")
