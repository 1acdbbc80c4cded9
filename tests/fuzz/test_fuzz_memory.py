"""What a message may cost: memory in proportion to its size, little before its signature is checked, none that stays.

Times the message's size in bytes, besides :data:`CONSTANT`. What is not signed is cut into frames (about 210 bytes for
each, however short) and copied a few times. What is signed becomes Python objects: a map of one or two bytes takes up
to a hundred times as much, and a message may hold 2^20 values.
"""

import gc
import random
import tracemalloc
from collections.abc import Iterator

import cbor2
import pytest
from fuzz_envelopes import Signed, unfold
from fuzz_scenes import COHORTS, Scene, scenes, small_scale
from fuzz_targets import ClientTarget, ServerTarget, SessionTarget
from secagg_kit import identity

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.primitives.wire import encode
from fedvlm_secure.secagg.envelope import MAX_FRAMES, _signed, join

UNSIGNED, FRAMES, SIGNED = 6, 64, 100
CONSTANT = 1 << 17
MANY = 5000

VALUES = {"lists": b"\x80", "maps": b"\xa0", "maps in maps": b"\xa1\x60\xa0", "numbers": b"\x00", "texts": b"\x60"}
BODIES = {
    **{f"many {name}": b"\x9a" + MANY.to_bytes(4) + value * MANY for name, value in VALUES.items()},
    "nesting": b"\x81" * MANY,
    "a length that is only claimed": b"\x9b" + b"\x00\x00\x00\xff" * 2,
    "one long string": b"\x59" + MANY.to_bytes(2) + bytes(MANY),
    "survivors": cbor2.dumps({"survivors": ["c00"] * MANY}, canonical=True),
    "digests": cbor2.dumps({"digests": [bytes(32)] * MANY}, canonical=True),
    "shares": cbor2.dumps({"mask_seed": {}, "self_mask": {f"{n:05d}": b"" for n in range(MANY)}}, canonical=True),
    "consents": cbor2.dumps({"dropped": [], "consents": {f"{n:05d}": bytes(64) for n in range(MANY)}}, canonical=True),
    "digests of keys": cbor2.dumps(
        {"keys": {}, "others": {f"{n:05d}": bytes(32) for n in range(MANY)}}, canonical=True
    ),
}


@pytest.fixture(scope="module")
def rounds():
    with small_scale():
        yield scenes(random.Random(5), COHORTS[0])


@pytest.fixture(params=[0, 1, 2, 3, 4, 5])
def scene(rounds: list[Scene], request) -> Scene:
    return rounds[request.param]


@pytest.fixture(params=[ClientTarget, ServerTarget])
def target(scene: Scene, request) -> SessionTarget:
    return request.param(scene)


def peak(target: SessionTarget, message: bytes) -> int:
    """Bytes that the handler takes at most while it refuses a message."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert isinstance(target.handle(message), ProtocolError)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        target.renew()


def sealed(envelope: Signed, body: bytes, signed: bool) -> bytes:
    fields = {**envelope, "body": body, "signature": bytes(64)}
    if signed:
        covered = _signed(*(fields[name] for name in ("phase", "plan", "sender", "recipient", "body")))
        fields["signature"] = identity(envelope.signer).sign("envelope", covered)
    return join([encode(fields)])


def test_a_signed_body(target):
    envelope = unfold(target.genuine)[0]
    for name, body in BODIES.items():
        message = sealed(envelope, body, signed=True)
        assert peak(target, message) < SIGNED * len(message) + CONSTANT, name


def test_before_a_signature_is_checked(target):
    envelope = unfold(target.genuine)[0]
    for name, body in BODIES.items():
        for message in (join([body]), sealed(envelope, body, signed=False)):
            assert peak(target, message) < UNSIGNED * len(message) + CONSTANT, name


def test_empty_frames(rounds):
    """Where any number of chunks may follow the envelope."""
    target = ServerTarget(rounds[1])
    for count in (1000, 2 * MAX_FRAMES):
        assert peak(target, bytes(4) * count) < FRAMES * 4 * min(count, MAX_FRAMES) + CONSTANT
    assert peak(target, b"\xff" * 4 + bytes(100)) < CONSTANT


def test_nothing_stays(target):
    """Ever more refused messages leave no more behind than the first ones; what grows once is a cache."""
    messages = list(refused_without_closing(target, 15))
    tracemalloc.start()
    try:
        kept = []
        for times in (1, 4, 4):
            for message in messages * times:
                target.handle(message)
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert min(kept[1] - kept[0], kept[2] - kept[1]) < 20_000


def refused_without_closing(target: SessionTarget, count: int) -> Iterator[bytes]:
    rng = random.Random(6)
    while count:
        message = target.spoil(rng, [target.genuine]).message
        if (
            isinstance(target.handle(message), ProtocolError)
            and (target.scene.client if isinstance(target, ClientTarget) else target.scene.server).to_bytes()
            == target.state
        ):
            count -= 1
            yield message
        else:
            target.renew()
