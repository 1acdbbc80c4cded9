"""Ways to spoil a message: its bytes as they travel, or the values that they encode. A generator makes all choices."""

import random
from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from typing import Any

import cbor2

from fedvlm_secure.secagg.envelope import join, split

Slot = tuple[Any, Any]  # a list or map, and the index or key of one of its values

EDGES = (0, 1, 23, 24, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 63, (1 << 64) - 1)
HOSTILE: tuple[Callable[[], Any], ...] = (
    *(lambda edge=edge: edge for edge in EDGES),
    *(lambda size=size: bytes(size) for size in (0, 1, 31, 32, 33, 64, 1216, 5000)),
    *(lambda text=text: text for text in ("", "server", "cohort", "É\0\n", "x" * 4096)),
    *(lambda flag=flag: flag for flag in (None, True, False)),
    *(lambda odd=odd: odd for odd in (-1, -(1 << 64), 1 << 64, 1.5, float("nan"))),
    list,
    dict,
    lambda: nested(20),
    lambda: [0] * 3000,
    lambda: [[]] * 500,
    lambda: {f"c{number:02d}": b"" for number in range(500)},
)
BOMBS: tuple[bytes, ...] = (
    b"\x81" * 50_000,  # nesting
    b"\xa1\x60" * 50_000,
    b"\xd8\x1c" * 5_000 + b"\x80",  # shared references
    b"\x9b" + b"\xff" * 8,  # lengths that are claimed and not there
    b"\xbb" + b"\x7f" + b"\xff" * 7,
    b"\x5b" + b"\xff" * 8,
    b"\x7b" + b"\x00\x00\x00\x7f" + b"\xff" * 4,
    b"\x9a\x00\x0f\xff\xff" + b"\x80" * 50_000,
    b"\x99\xff\xff" + b"\x00" * 0xFFFF,  # many tiny values
    b"\x99\xff\xff" + b"\xa0" * 0xFFFF,
    b"\x9f" + b"\x00" * 1000 + b"\xff",  # indefinite lengths
    b"\xbf\x60\x00\xff",
    b"\xa2\x60\x00\x60\x00",  # one key twice
    b"\xf7",  # no value of ours
    b"",
)


def nested(depth: int) -> Any:
    """An empty list inside ``depth`` others."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def spoil_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """``data`` after one to three accidents or attacks on the way; ``other`` is a genuine message to splice in."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_ACCIDENTS)(rng, data, other) if data else other
    return data


def spoil_tree(rng: random.Random, tree: Any, names: Sequence[str]) -> None:
    """Change one to three of the values in ``tree``, in place; ``names`` are those that a liar would try."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        slots = list(_slots(tree))
        if slots:
            rng.choice(_CHANGES)(rng, rng.choice(slots), slots, names)


def encode_loosely(rng: random.Random, value: Any) -> bytes:
    """Mostly the canonical encoding of ``value``, sometimes another one of the same."""
    if rng.random() < 0.02:
        return rng.choice(
            (
                lambda: cbor2.dumps(_reversed(value)),
                lambda: cbor2.dumps(value, indefinite_containers=True),
                lambda: cbor2.dumps(cbor2.CBORTag(55799, value)),
            )
        )()
    return cbor2.dumps(value, canonical=True)


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


def _slots(value: Any) -> Iterator[Slot]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _slots(inner)


# Accidents: what happens to bytes.


def _flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _overwrite(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place, count = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 32))
    patch = rng.choice((b"\0" * count, b"\xff" * count, rng.randbytes(count)))
    return data[:place] + patch + data[place + count :]


def _insert(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 40))) + data[place:]


def _delete(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _duplicate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 3)) + data[end:]


def _truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice((b"\0", bytes(4), b"\0\0\0\1x", rng.randbytes(9), other))


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + other[min(len(other), rng.choice((place, rng.randint(0, len(other))))) :]


def _length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Four bytes, at a frame's header as likely as anywhere, claim another length."""
    headers, start = [0], 0
    while start + 4 < len(data):
        headers.append(start)
        start += 4 + int.from_bytes(data[start : start + 4])
    place = rng.choice((rng.choice(headers), rng.randrange(len(data))))
    claimed = rng.choice((0, 1, len(data), abs(len(data) - 4), 0xFFFFFFFF, 1 << 31, rng.getrandbits(32)))
    return data[:place] + claimed.to_bytes(4) + data[place + 4 :]


def _frames(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The frames in another order, one missing, one twice, or one from another message."""
    try:
        frames, others = split(data), split(other)
    except ValueError:
        return _flip(rng, data, other)
    place = rng.randrange(len(frames))
    match rng.randrange(4):
        case 0:
            rng.shuffle(frames)
        case 1:
            del frames[place]
        case 2:
            frames.insert(rng.randrange(len(frames)), frames[place])
        case _:
            frames[place] = rng.choice(others)
    return join(frames)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 1, 4, 32, 1 + len(data) // 2)))


_ACCIDENTS = (
    _flip,
    _overwrite,
    _insert,
    _delete,
    _duplicate,
    _truncate,
    _extend,
    _splice,
    _length,
    _frames,
    lambda rng, data, other: other,
)


# Changes: what a liar does to values. Each takes a slot, and all slots of the same tree.


def _hostile(rng: random.Random, slot: Slot, slots: list[Slot], names: Sequence[str]) -> None:
    container, key = slot
    container[key] = rng.choice(HOSTILE)()


def _near(rng: random.Random, slot: Slot, slots: list[Slot], names: Sequence[str]) -> None:
    """Another value of the same type, close to the true one."""
    container, key = slot
    container[key] = nearby(rng, container[key], names)


def nearby(rng: random.Random, value: Any, names: Sequence[str]) -> Any:
    """Another value of the same type, close to ``value``; lists and maps lose, gain or reorder something."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice((value + 1, max(0, value - 1), value * 2, value // 2, rng.choice(EDGES)))
        case bytes():
            return _same_length(rng, value) if rng.random() < 0.8 else spoil_bytes(rng, value, b"")
        case str():
            return rng.choice((rng.choice(names), value[:-1], value + "x", value.upper()))
        case list():
            return _other_list(rng, value, names)
        case dict():
            return _other_map(rng, value, names)
    return b""


def _same_length(rng: random.Random, value: bytes) -> bytes:
    patch = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * len(value)
    return rng.choice((patch, _flip(rng, value, b"") if value else patch, value[::-1]))


def _other_list(rng: random.Random, value: list[Any], names: Sequence[str]) -> list[Any]:
    value = list(value)
    place = rng.randint(0, len(value))
    match rng.randrange(5):
        case 0:
            value[place : place + rng.choice((1, 2, 4))] = []
        case 1:
            value.insert(place, rng.choice((deepcopy(value[place - 1]) if value else 0, rng.choice(names))))
        case 2:
            rng.shuffle(value)
        case 3:
            value = sorted({*names, *(item for item in value if isinstance(item, str))})
        case _:
            value = sorted([*(item for item in value if isinstance(item, str)), rng.choice(names)])
    return value


def _other_map(rng: random.Random, value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    value = copy(value)
    keys = list(value)
    for key in rng.sample(keys, min(len(keys), rng.choice((0, 1, 1, 2, 4)))):
        inner = value.pop(key)
        if rng.random() < 0.4:
            value[rng.choice(names)] = inner
    if rng.random() < 0.3:
        value[rng.choice((*names, "extra"))] = deepcopy(rng.choice(list(value.values()))) if value else 0
    return value


def _remove(rng: random.Random, slot: Slot, slots: list[Slot], names: Sequence[str]) -> None:
    container, key = slot
    del container[key]


def _swap(rng: random.Random, slot: Slot, slots: list[Slot], names: Sequence[str]) -> None:
    """One value takes the place of another, or both change places."""
    (container, key), (other, other_key) = slot, rng.choice(slots)
    mine, theirs = deepcopy(container[key]), deepcopy(other[other_key])
    container[key] = theirs
    if rng.random() < 0.5 and other is container:
        other[other_key] = mine


_CHANGES = (_hostile, _near, _near, _near, _near, _remove, _swap)
