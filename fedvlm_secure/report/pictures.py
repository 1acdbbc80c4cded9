"""One upload as two pictures of bytes: what the hospital had to send, and what the server was sent."""

import base64
import binascii
import io
import math
from collections import Counter
from dataclasses import dataclass

from PIL import Image

from fedvlm_secure.report.reading import Line, RunRecord, number, text

_ACROSS = 64  # bytes, or what of them makes whole numbers
_MOST = 4096


@dataclass(frozen=True, slots=True)
class Picture:
    """Bytes as grey squares.

    Attributes:
        uri: a PNG as a data URI, a pixel a byte.
        across, down: pixels.
        entropy: bits a byte, of the bytes' frequencies; 8 at most.
        chi_squared: against equal frequencies of all 256 values.
    """

    uri: str
    across: int
    down: int
    entropy: float
    chi_squared: float


@dataclass(frozen=True, slots=True)
class Upload:
    """The beginning of one upload.

    Attributes:
        form: what ``sent`` is: ``"words"`` of the masked ring, or the ``"update"`` in float32.
        value_bytes: bytes a number in ``sent``.
        alike: the share of bytes that are the same in both at the same place; 1/256 of unrelated ones.
        random_entropy: what so many random bytes have on average.
    """

    hospital: str
    round: float | None
    form: str
    value_bytes: int
    count: int
    sent: Picture
    received: Picture
    alike: float
    random_entropy: float


def upload(run: RunRecord) -> Upload | None:
    """The upload that a simulated run has kept the beginning of; None if there is none, or not both halves of it."""
    hospital = text(run.first_bytes.get("hospital"))
    own: Line = next((site.first_bytes for site in run.sites if site.name == hospital), {})
    sent, received = _bytes(own), _bytes(run.first_bytes)
    same = all(number(own.get(key)) == number(run.first_bytes.get(key)) for key in ("round", "attempt"))
    wide = int(number(own.get("value-bytes")) or 0)
    if not same or not 1 <= wide <= 8:
        return None
    across = wide * (_ACROSS // wide)
    count = min(len(sent), len(received), _MOST) // across * across
    if not count:
        return None
    before, after = sent[:count], received[:count]
    return Upload(
        hospital=hospital,
        round=number(own.get("round")),
        form="words" if own.get("form") == "words" else "update",
        value_bytes=wide,
        count=count,
        sent=_picture(before, across),
        received=_picture(after, across),
        alike=sum(one == other for one, other in zip(before, after, strict=True)) / count,
        # Miller (1955): frequencies of few draws look less even than they are, by (values - 1) / 2n nats.
        random_entropy=8 - 255 / (2 * count * math.log(2)),
    )


def _bytes(half: Line) -> bytes:
    try:
        return base64.b64decode(text(half.get("bytes")), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _picture(content: bytes, across: int) -> Picture:
    size, counts = (across, len(content) // across), Counter(content)
    file = io.BytesIO()
    Image.frombytes("L", size, content).save(file, "PNG")
    shares = [count / len(content) for count in counts.values()]
    expected = len(content) / 256
    return Picture(
        uri=f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}",
        across=size[0],
        down=size[1],
        entropy=-sum(share * math.log2(share) for share in shares) + 0.0,
        chi_squared=sum((counts[value] - expected) ** 2 / expected for value in range(256)),
    )
