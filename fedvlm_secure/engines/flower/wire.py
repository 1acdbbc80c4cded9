"""How protocol messages travel inside Flower's: a header that routes, and the protocol's own bytes as an array.

Flower cuts arrays, and nothing else, into chunks below the limits of its transport, so an upload of any length passes.
Nothing in the header is trusted. What counts is signed and lies in the bytes.
"""

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.wire import Limits, WireError
from fedvlm_secure.secagg.envelope import NETWORK

RECORD, BYTES = "fedvlm-secure", "fedvlm-secure.bytes"
HELLO, ROUND, FINISH, REFUSAL = "hello", "round", "finish", "refusal"

_LIMITS = Limits(max_bytes=1 << 16, max_depth=4, max_items=64)
_STYPE = "fedvlm-secure"  # not numpy's: Flower leaves the bytes alone


@dataclass(frozen=True, slots=True)
class Header:
    """What a Flower message is about.

    Attributes:
        kind: :data:`HELLO`, :data:`ROUND`, :data:`FINISH` or :data:`REFUSAL`.
        protocol, phase, place: of a round; ``place`` is (round, attempt).
        text: who answers a hello, or why a request was refused.
    """

    kind: str
    protocol: str = ""
    phase: str = ""
    place: tuple[int, ...] = (0, 0)
    text: str = ""


def put(header: Header, body: bytes = b"", content: RecordDict | None = None) -> RecordDict:
    """Header and body as a message's content, beside what ``content`` holds."""
    whole = RecordDict() if content is None else RecordDict(dict(content))
    whole[RECORD] = ConfigRecord({"header": pack(header, _LIMITS)})
    whole[BYTES] = ArrayRecord({"body": raw(body)})
    return whole


def raw(data: bytes) -> Array:
    """Bytes as Flower carries them."""
    return Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)


def take(content: RecordDict) -> tuple[Header, bytes] | None:
    """Header and body in a message's content; None if there are none.

    Raises:
        ProtocolError: they are not what :func:`put` makes.
    """
    if RECORD not in content:
        return None
    try:
        record, arrays = content[RECORD], content[BYTES]
        if not isinstance(record, ConfigRecord) or not isinstance(arrays, ArrayRecord):
            raise WireError("records of another kind")
        packed = record["header"]
        if not isinstance(packed, bytes):
            raise WireError("no header")
        return unpack(Header, packed, _LIMITS), arrays["body"].data
    except (KeyError, WireError) as error:
        detail = f"a Flower message that is no message of this toolkit: {error}"
        raise ProtocolError("P-1.1", party=NETWORK, phase="transport", detail=detail) from None


def without(content: RecordDict) -> RecordDict:
    """A message's content as the app that trains sees it."""
    return RecordDict({key: record for key, record in content.items() if key not in (RECORD, BYTES)})
