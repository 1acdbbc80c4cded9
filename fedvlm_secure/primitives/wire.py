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

# For what a party saved itself, such as a server's state with every client's parcels.
STATE_LIMITS = Limits(max_bytes=1 << 40, max_depth=16, max_items=1 << 32)

_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP, _SIMPLE = 0, 2, 3, 4, 5, 7  # CBOR's major types; the others are refused
_ALLOWED = frozenset((_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP, _SIMPLE))
_FALSE_TRUE_NULL = (20, 21, 22)


def encode(value: Any, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The canonical encoding of ``value``, which this program has put together of allowed types itself.

    Only :func:`decode` looks at every value: a receiver does that anyway, and to do it twice is what a message costs.

    Raises:
        WireError: the encoding is too long.
    """
    data: bytes = cbor2.dumps(value, canonical=True)
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
    _walk(data, limits)
    try:
        value = cbor2.loads(data)
        canonical = cbor2.dumps(value, canonical=True)
    except Exception as error:  # noqa: BLE001  # the library raises many types on hostile bytes; all mean the same here
        raise WireError(f"not CBOR: {type(error).__name__}") from None
    if canonical != data:
        raise WireError("not the canonical encoding")
    return value


def _walk(data: bytes, limits: Limits) -> None:
    """Walk over the headers only, so that hostile bytes are refused before any value is made of them."""
    if len(data) > limits.max_bytes:
        raise WireError(f"{len(data)} bytes exceed the limit of {limits.max_bytes}")
    position, seen = 0, 0
    lacking, is_map = 1, False  # of the innermost open array or map: how many values it still lacks
    outer: list[tuple[int, bool]] = []  # the same of those around it
    while lacking or outer:
        if not lacking:
            lacking, is_map = outer.pop()
            continue
        seen += 1
        if seen > limits.max_items or len(outer) > limits.max_depth:
            raise WireError(f"more than {limits.max_items} values, or nested deeper than {limits.max_depth}")
        major, argument, position = _header(data, position)
        if is_map and lacking % 2 == 0 and major != _TEXT:
            raise WireError("a map key that is not text")
        lacking -= 1
        if major in (_BYTES, _TEXT):
            position += argument
        elif major in (_ARRAY, _MAP):
            outer.append((lacking, is_map))
            lacking, is_map = (argument * 2, True) if major == _MAP else (argument, False)
    if position != len(data):
        raise WireError("truncated or trailing bytes")


def _header(data: bytes, position: int) -> tuple[int, int, int]:
    """Major type, argument, and where the header ends (RFC 8949, section 3)."""
    if position >= len(data):
        raise WireError("truncated")
    major, info = data[position] >> 5, data[position] & 31
    position += 1
    if major not in _ALLOWED:
        raise WireError("no place for negative integers and tags")
    if major == _SIMPLE and info not in _FALSE_TRUE_NULL:
        raise WireError("no place for floats and other simple values")
    if info < 24:
        return major, info, position
    if info > 27:
        raise WireError("no place for indefinite lengths")
    width = 1 << (info - 24)
    return major, int.from_bytes(data[position : position + width]), position + width
