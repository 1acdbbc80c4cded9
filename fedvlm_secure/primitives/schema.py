"""Frozen dataclasses to and from the plain values of :mod:`wire`, checked field by field against their annotations.

Messages and durable states are such dataclasses. A field is ``int``, ``bool``, ``str``, ``bytes``, :class:`Secret`, a
nested dataclass, ``tuple[T, ...]``, ``dict[str, T]`` or ``T | None``; ``Annotated[bytes, 32]`` fixes a length.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.wire import DEFAULT_LIMITS, Limits, WireError, decode, encode

T = TypeVar("T")
Digest = Annotated[bytes, 32]

_Reader = Callable[[Any, str], Any]
_AS_THEY_ARE = (bytes, str, bool, types.NoneType)


def to_wire(value: Any) -> Any:
    """The plain value for ``value``: a dataclass becomes a map from field name to plain value.

    Raises:
        WireError: the format has no place for something in it.
    """
    if isinstance(value, _AS_THEY_ARE):
        return value
    if isinstance(value, int) and 0 <= value < 1 << 64:
        return value
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, tuple | list):
        return [to_wire(item) for item in value]
    if isinstance(value, dict):
        return {key: to_wire(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {name: to_wire(getattr(value, name)) for name in _names(typing.cast(typing.Hashable, type(value)))}
    raise WireError(f"no wire form for a {type(value).__name__}, or for its value")


def from_wire(cls: type[T], value: Any) -> T:
    """The dataclass ``cls`` from a plain value.

    Raises:
        WireError: a field is missing, unknown, of another type or of another length.
    """
    result: T = _reader(typing.cast(typing.Hashable, cls))(value, cls.__name__)
    return result


def pack(value: Any, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Canonical bytes of a dataclass."""
    return encode(to_wire(value), limits)


def unpack(cls: type[T], data: bytes | memoryview, limits: Limits = DEFAULT_LIMITS) -> T:
    """The dataclass ``cls`` from canonical bytes; raises :class:`WireError`."""
    return from_wire(cls, decode(data, limits))


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.cache
def _reader(annotation: Any) -> _Reader:
    if dataclasses.is_dataclass(annotation):
        return _dataclass_reader(typing.cast(type, annotation))
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _sized_reader(_reader(arguments[0]), arguments[1])
    if origin is tuple:
        return _tuple_reader(_reader(arguments[0]))
    if origin is dict:
        return _dict_reader(_reader(arguments[1]))
    if origin in (types.UnionType, typing.Union):
        return _optional_reader(_reader(next(a for a in arguments if a is not types.NoneType)))
    if annotation is Secret:
        return lambda value, where: Secret(_exactly(bytes, value, where))
    if annotation in (int, bool, str, bytes):
        return lambda value, where: _exactly(annotation, value, where)
    raise TypeError(f"no wire form for {annotation!r}")


def _exactly(expected: type, value: Any, where: str) -> Any:
    if type(value) is not expected:
        raise WireError(f"{where} is a {type(value).__name__}, not a {expected.__name__}")
    return value


def _sized_reader(inner: _Reader, size: int) -> _Reader:
    def read(value: Any, where: str) -> Any:
        value = inner(value, where)
        if len(value) != size:
            raise WireError(f"{where} has {len(value)} bytes, not {size}")
        return value

    return read


def _tuple_reader(inner: _Reader) -> _Reader:
    return lambda value, where: tuple(inner(item, f"{where}[]") for item in _exactly(list, value, where))


def _dict_reader(inner: _Reader) -> _Reader:
    return lambda value, where: {k: inner(v, f"{where}[{k[:64]!r}]") for k, v in _exactly(dict, value, where).items()}


def _optional_reader(inner: _Reader) -> _Reader:
    return lambda value, where: None if value is None else inner(value, where)


def _dataclass_reader(cls: type) -> _Reader:
    hints = typing.get_type_hints(cls, include_extras=True)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(cls)}

    def read(value: Any, where: str) -> Any:
        fields = _exactly(dict, value, where)
        if fields.keys() != readers.keys():
            odd = sorted(fields.keys() ^ readers.keys())[:4]
            raise WireError(f"{where} has other fields than it should: {', '.join(map(repr, odd))[:200]}")
        return cls(**{name: reader(fields[name], f"{where}.{name}") for name, reader in readers.items()})

    return read
