import json
from pathlib import Path

import pytest

from fedvlm_secure.primitives.sealing import PUBLIC_BYTES, SealError, SealingKey, check_public, seal
from fedvlm_secure.primitives.secret import Secret

KEY = SealingKey(Secret(bytes(range(32))))
VECTORS = Path(__file__).parents[1] / "vectors" / "sealed-box.json"


def test_stored_boxes_open():
    """Encapsulation takes no injected randomness, so the vectors fix what the receiver does."""
    for vector in json.loads(VECTORS.read_text())["boxes"]:
        key = SealingKey(Secret(bytes.fromhex(vector["seed"])))
        assert key.public.hex() == vector["public"]
        context = [bytes.fromhex(part["bytes"]) if "bytes" in part else part["text"] for part in vector["context"]]
        opened = key.open(bytes.fromhex(vector["box"]), vector["purpose"], *context)
        assert opened.reveal().hex() == vector["plaintext"]


@pytest.mark.parametrize("plaintext", [b"", b"x", bytes(1000)])
def test_round_trip(plaintext):
    assert len(KEY.public) == PUBLIC_BYTES
    box = seal(KEY.public, Secret(plaintext), "purpose", b"context", 5)
    assert KEY.open(box, "purpose", b"context", 5).reveal() == plaintext
    assert box != seal(KEY.public, Secret(plaintext), "purpose", b"context", 5)


@pytest.mark.parametrize(
    "context", [("other", b"c"), ("purpose", b"d"), ("purpose",), ("purpose", b"c", b""), ("p", "c")]
)
def test_context_is_bound(context):
    box = seal(KEY.public, Secret(b"x"), "purpose", b"c")
    with pytest.raises(SealError):
        KEY.open(box, *context)


def test_malformed_boxes():
    box = seal(KEY.public, Secret(b"x" * 32), "purpose")
    wrong = [b"", b"\0", box[:-1], box + b"\0", box[1:], bytes(len(box)), b"\xff" * len(box), box * 40]
    wrong += [box[:length] for length in (16, 32, 1088, 1119, 1120, 1121, 1136)]
    flipped = [box[:i] + bytes([box[i] ^ 1]) + box[i + 1 :] for i in (0, 1087, 1088, 1119, 1120, len(box) - 1)]
    for bad in wrong + flipped:
        with pytest.raises(SealError):
            KEY.open(bad, "purpose")
    with pytest.raises(SealError):
        SealingKey(Secret(bytes(32))).open(box, "purpose")


def test_malformed_keys():
    public = KEY.public
    check_public(public)
    low_order = [bytes(32), b"\x01" + bytes(31)]
    for bad in [
        b"",
        public[:-1],
        public + b"\0",
        b"\xff" * 1184 + public[1184:],
        *(public[:1184] + low for low in low_order),
    ]:
        with pytest.raises(SealError):
            check_public(bad)
        with pytest.raises(SealError):
            seal(bad, Secret(b"x"), "purpose")
