import tracemalloc
from dataclasses import dataclass
from typing import Annotated

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.wire import Limits, WireError, decode, encode

plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, (1 << 64) - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
DEEP = Limits(max_depth=64)


@dataclass(frozen=True)
class Weight:
    value: int


@given(plain)
def test_round_trip_and_library_agree(value):
    data = encode(value, DEEP)
    assert decode(data, DEEP) == value
    assert cbor2.loads(data) == value
    assert data == cbor2.dumps(value, canonical=True)


@given(st.binary(max_size=60))
def test_whatever_decodes_is_canonical(data):
    try:
        value = decode(data)
    except WireError:
        return
    assert encode(value) == data


@given(plain, st.data())
def test_a_changed_message_is_refused_or_another_value(value, data):
    encoded = bytearray(encode(value, DEEP))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        other = decode(bytes(encoded), DEEP)
    except WireError:
        return
    assert encode(other, DEEP) == bytes(encoded) != encode(value, DEEP)


@pytest.mark.parametrize(
    "data",
    {
        "empty": b"",
        "trailing": b"\x01\x01",
        "truncated text": b"\x64abc",
        "truncated header": b"\x19\x01",
        "long form of a small number": b"\x18\x05",
        "eight bytes for 1": b"\x1b" + bytes(7) + b"\x01",
        "negative": b"\x20",
        "half float": b"\xf9\x3c\x00",
        "double": cbor2.dumps(1.5),
        "undefined": b"\xf7",
        "simple value": b"\xf8\xff",
        "tag": b"\xc1\x01",
        "bignum": cbor2.dumps(1 << 64),
        "indefinite array": b"\x9f\x01\xff",
        "indefinite bytes": b"\x5f\x41a\xff",
        "reserved": b"\x1c",
        "break": b"\xff",
        "map with number key": b"\xa1\x01\x02",
        "map with array key": b"\xa1\x80\x02",
        "repeated key": b"\xa2\x61a\x01\x61a\x02",
        "unsorted keys": b"\xa2\x61b\x01\x61a\x02",
        "invalid UTF-8": b"\x61\xff",
        "shared reference": cbor2.dumps([1]) and b"\xd8\x1c\x80",
    }.values(),
)
def test_refused(data):
    with pytest.raises(WireError):
        decode(data)


@pytest.mark.parametrize(
    "value", [1.0, -1, 1 << 64, {1, 2}, object(), bytearray(1), [[1.0]], {"a": {"b": -1}}, Weight(1.5), [Weight(-1)]]
)
def test_no_wire_form(value):
    with pytest.raises(WireError):
        pack(value)


@pytest.mark.parametrize("value", [1.0, -1, 1 << 64, {1: 2}, {b"a": 1}, {1, 2}, [[1.0]], {"a": {3: 4}}])
def test_what_the_library_encodes_is_not_decoded(value):
    with pytest.raises(WireError):
        decode(encode(value))


def test_limits():
    limits = Limits(max_bytes=20, max_depth=2, max_items=4)
    for good in ([1, 2, 3], [[1]], {"a": 1}, b"x" * 19):
        assert decode(encode(good, limits), limits) == good
    for bad in ([1, 2, 3, 4], [[[1]]], {"a": [[]], "b": 1}, b"x" * 20):
        with pytest.raises(WireError):
            decode(encode(bad), limits)
    with pytest.raises(WireError):
        encode(b"x" * 20, limits)


@pytest.mark.parametrize(
    "data",
    [
        b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff",
        b"\x5b\x7f" + b"\xff" * 7,
        b"\xbb\x7f" + b"\xff" * 7,
        b"\x81" * 100_000,
        b"\x9a\x00\x10\x00\x00" + b"\x80" * (1 << 20),  # a list of a million empty lists: 64 MiB if it were decoded
    ],
)
def test_hostile_sizes_cost_no_memory(data):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(data, Limits(max_items=1000))
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@dataclass(frozen=True)
class Inner:
    size: Annotated[bytes, 3]


@dataclass(frozen=True)
class Message:
    number: int
    flag: bool
    names: tuple[str, ...]
    table: dict[str, Inner]
    secret: Secret
    maybe: bytes | None


MESSAGE = Message(3, True, ("a", "b"), {"x": Inner(b"abc")}, Secret(b"s"), None)


def test_schema_round_trip():
    assert unpack(Message, pack(MESSAGE)) == MESSAGE


@pytest.mark.parametrize(
    "change",
    [
        {"number": True},
        {"number": "3"},
        {"flag": 1},
        {"names": "ab"},
        {"names": ["a", 1]},
        {"table": {"x": {"size": b"ab"}}},
        {"table": {"x": {"size": b"abc", "more": 1}}},
        {"table": {"x": b"abc"}},
        {"secret": "s"},
        {"maybe": 0},
        {"more": 1},
    ],
)
def test_schema_refuses(change):
    with pytest.raises(WireError):
        unpack(Message, encode(decode(pack(MESSAGE)) | change))
    fields = decode(pack(MESSAGE))
    del fields["maybe"]
    with pytest.raises(WireError):
        unpack(Message, encode(fields))
