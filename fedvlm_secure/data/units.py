"""What one privacy unit is: all rows of a picture, one row, or all rows with the same value in a column."""

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.errors import MisuseError

IMAGE, ROW = "image", "row"


def units_of(split: datasets.Dataset, unit: str) -> NDArray[np.int64]:
    """Number each row's privacy unit, from 0 in order of first appearance; int64 [rows].

    Args:
        unit: ``"image"`` (rows whose pictures are equal, pixel by pixel), ``"row"``, or a column such as a patient's
            number.

    Raises:
        MisuseError: there is no such column, or a row has nothing in it.
    """
    if unit == ROW:
        return np.arange(len(split), dtype=np.int64)
    if unit == IMAGE:
        values: list[Any] = [picture_digest(row["image"]) for row in split]
    elif unit in split.column_names:
        values = list(split[unit])
    else:
        columns = ", ".join(split.column_names)
        raise MisuseError(f"privacy.unit = {unit!r} is no column of the rows; choices: image, row, or one of {columns}")
    if not all(isinstance(value, str | bytes | int | float | None) for value in values):
        raise MisuseError(f"privacy.unit = {unit!r} holds more than text and numbers; choose another column")
    # A number that is none is unequal to itself, and would make a unit of each row.
    if missing := [place for place, value in enumerate(values) if value in (None, "") or value != value]:
        raise MisuseError(f"privacy.unit = {unit!r}: row {missing[0]} has nothing in that column; fill it in")
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def row_digests(split: datasets.Dataset) -> Iterator[bytes]:
    """Give SHA-256 of each row: its picture's pixels, question and answer."""
    for row in split:
        digest = hashlib.sha256(picture_digest(row["image"]))
        for text in (row["question"], row["chosen"]):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        yield digest.digest()


def picture_digest(picture: Any) -> bytes:
    """Return SHA-256 of size, mode and pixels: a picture saved again in another format is the same picture."""
    described = f"{picture.mode} {picture.size}\n".encode()
    return hashlib.sha256(described + picture.tobytes()).digest()
