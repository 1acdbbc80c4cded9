"""Rows as others store them, one at a time: CSV, JSON Lines, parquet shards, the hub, a saved DatasetDict.

Nothing is judged here but whether a file can be read at all; :mod:`fedvlm_secure.data.own` says which rows are fit.
Formats are plain data: none of them can bring code along.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from fedvlm_secure.data.levels import LEVELS
from fedvlm_secure.errors import MisuseError, one_line

Place = str | Mapping[str, str]
"""Where rows are: one place that :func:`find` knows or, under ``[data]``, one for each site by its name."""


def called(place: Place) -> str:
    """Return what a data set is called in front of people."""
    return place if isinstance(place, str) else "[data]"


NAMES = (*LEVELS, "easy-vqa")  # the data sets that come with the package
ANSWERS = ("chosen", "answer")  # RLAIF-V's name, and the one people use
_NEEDED = (("image",), ("question",), ANSWERS)
_BATCH = 64  # rows of a shard in memory at a time


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as it was found.

    Attributes:
        where: file and place: the line of a text file, counted from 1; the row of a shard, counted from 0.
        folder: what picture paths are relative to; None where pictures must come along.
        split: which split of a saved DatasetDict holds it; None of all else.
    """

    where: str
    values: Mapping[str, Any]
    folder: Path | None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, or a whole file, that cannot be used: where it is, and why in a few words that are equal for equal faults.

    ``detail`` says more, such as the picture's name.
    """

    where: str
    why: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" + (f" ({self.detail})" if self.detail else "")


Found = Iterator[Raw | BadRow]


def find(place: str) -> tuple[str, Found]:
    """Return a short name for the data set at ``place`` and its rows, read as they are asked for.

    Args:
        place: a ``.csv``, ``.jsonl`` or ``.parquet`` file; a folder that holds files of one of these kinds, at its top
            or in ``data/``; or a hub id, ``owner/name``, whose splits are read one after the other.

    Raises:
        MisuseError: there is no such data set; or, while rows are read, the hub cannot be reached.
    """
    path = Path(place).expanduser()
    if path.exists():
        files = [path] if path.is_file() else _shards(path)
        if path.is_file() and path.suffix.lower() not in _READERS:
            raise MisuseError(f"data set {place!r} is no file that can be read; choices: {', '.join(_READERS)}")
        if not files:
            raise MisuseError(f"the folder {place!r} holds no data set: no file ending in {', '.join(_READERS)}")
        return path.resolve().stem if path.is_file() else path.resolve().name, _files(files)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", place):
        return place.split("/")[1], _hub(place)
    raise MisuseError(f"data set {place!r} is not known; choices: {', '.join(NAMES)}, a file, a folder, or a hub id")


def saved(splits: datasets.DatasetDict, place: str) -> Found:
    """Give the rows of a data set that is split already."""
    for split, rows in splits.items():
        for number, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
            yield Raw(f"{split} row {number}", row, Path(place), split)


def _shards(folder: Path) -> list[Path]:
    for place in (folder, folder / "data"):
        files = [file for file in sorted(place.glob("*")) if file.suffix.lower() in _READERS and file.is_file()]
        if kinds := sorted({file.suffix.lower() for file in files}):
            if len(kinds) > 1:
                raise MisuseError(f"the folder {str(place)!r} holds {' and '.join(kinds)} files; name one file of them")
            return files
    return []


def _files(files: list[Path]) -> Found:
    for file in files:
        yield from _READERS[file.suffix.lower()](file)


def _csv(file: Path) -> Found:
    # What spreadsheets write: a byte order mark, and a semicolon where the comma is the decimal sign.
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=max(",;\t", key=header.count), skipinitialspace=True, strict=True)
            if lacking := _lacking(reader.fieldnames or ()):
                yield BadRow(file.name, lacking)
                return
            for values in reader:
                where = f"{file.name} line {reader.line_num}"
                if None in values:
                    yield BadRow(where, "more fields than the header names")
                else:
                    yield Raw(where, values, file.parent)
    except UnicodeDecodeError:
        yield BadRow(file.name, "the text is not UTF-8 from some row on")
    except csv.Error as error:
        yield BadRow(file.name, "no CSV from some row on", one_line(error))


def _jsonl(file: Path) -> Found:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file.name} line {number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                values = None
            yield Raw(where, values, file.parent) if isinstance(values, dict) else BadRow(where, "no JSON object")


def _parquet(file: Path) -> Found:
    try:
        with pq.ParquetFile(file) as shard:
            if lacking := _lacking(shard.schema_arrow.names):
                yield BadRow(file.name, lacking)
                return
            number = 0
            for batch in shard.iter_batches(_BATCH):
                for values in batch.to_pylist():
                    yield Raw(f"{file.name} row {number}", values, file.parent)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        yield BadRow(file.name, "unreadable parquet", one_line(error)[:120])


def _hub(name: str) -> Found:
    try:
        for split, rows in datasets.load_dataset(name, streaming=True).items():
            features = rows.features or {}
            if isinstance(features.get("image"), datasets.Image):
                rows = rows.cast_column("image", datasets.Image(decode=False))  # noqa: PLW2901
            for number, values in enumerate(rows):
                yield Raw(f"{name} {split} row {number}", values, None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise MisuseError(
            f"data set {name!r} is no file or folder here, and cannot be read from the hub: {one_line(error)[:200]}"
        ) from error


def _lacking(columns: Any) -> str:
    """Say which column a file lacks, if any."""
    return next((no_column(names[-1]) for names in _NEEDED if not {*names} & {*columns}), "")


def no_column(name: str) -> str:
    """Say that a column is not there, in the words that are counted."""
    return f"no column {name!r}"


_READERS: Mapping[str, Callable[[Path], Found]] = MappingProxyType(
    {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
)
