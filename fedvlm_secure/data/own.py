"""A hospital's own rows, or RLAIF-V's shards, as rows with :data:`~fedvlm_secure.data.rows.FEATURES`.

A row is fit for use if it has a question, an answer and a picture that decodes; each is looked at once, as it streams
by. Rows about one picture stay together: a picture in both train and test would make the test say too much.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image, ImageOps

from fedvlm_secure.data.raw import ANSWERS, BadRow, Found, Place, Raw, called, find, no_column
from fedvlm_secure.data.rows import COLUMNS, FEATURES
from fedvlm_secure.data.sites import SPLIT_SHARES
from fedvlm_secure.data.units import IMAGE, ROW, picture_digest
from fedvlm_secure.errors import MisuseError

SKIP, REFUSE = "skip", "refuse"
QUESTION_TYPE = "question-type"  # is no column: what `origin_split` says of it
# No format that starts another program to be drawn, as PostScript does.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Which rows are used, and which site holds which; the settings' table ``[rows]`` documents the first eight.

    Attributes:
        unit: the privacy unit; a column of this name is kept.
    """

    partition: str = "natural"
    by: str | None = None
    sites: int = 8
    alpha: float = 0.5
    seed: int = 0
    group: str = "image_path"
    max_rows: int | None = None
    on_bad_row: str = REFUSE
    unit: str = IMAGE

    def __post_init__(self) -> None:
        if IMAGE in (self.group, *(self.by or "").split("+")):
            raise MisuseError("rows.group and rows.by name columns of text; for the picture itself, name image_path")

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that rows need beyond :data:`FEATURES`; they are strings too."""
        asked = (*(self.by or "").split("+"), self.group, self.unit)
        return tuple(dict.fromkeys(name for name in asked if name not in ("", QUESTION_TYPE, IMAGE, ROW, *FEATURES)))


def read(place: Place, settings: RowSettings) -> tuple[datasets.DatasetDict, list[BadRow]]:
    """Return the rows at ``place`` in the splits ``train``, ``validation`` and ``test``, and what was skipped.

    Pictures that lie in files of their own stay there; those out of shards and the hub are held in memory, so take a
    part of a large data set by ``max_rows``.

    Args:
        place: see :func:`~fedvlm_secure.data.raw.find`; a site with a place of its own holds its rows, and no others.

    Raises:
        MisuseError: there is no such data set, no row of it can be used, or one cannot and is to be refused.
    """
    schema = _features(settings).arrow_schema
    chunks: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLIT_SHARES}
    tables: dict[str, list[pa.Table]] = {split: [schema.empty_table()] for split in SPLIT_SHARES}
    bad: list[BadRow] = []
    lacking = set() if isinstance(place, str) else {*place}

    def flush(split: str) -> None:
        tables[split].append(pa.Table.from_pylist(chunks[split], schema=schema))
        chunks[split].clear()

    for row in rows_at(place, settings):
        if isinstance(row, BadRow):
            if settings.on_bad_row == REFUSE:
                raise MisuseError(
                    f'{called(place)}: {row}; mend it, or set rows.on-bad-row = "skip"; '
                    "`fedvlm-secure data check` lists all that is wrong"
                )
            bad.append(row)
            continue
        lacking.discard(row.values["site"])
        chunks[row.split].append(row.values)
        if len(chunks[row.split]) == _CHUNK:
            flush(row.split)
    for split in SPLIT_SHARES:
        flush(split)
    if lacking or not any(len(table) for parts in tables.values() for table in parts):
        site = f": site {min(lacking)!r}" if lacking else ""
        first = f"; the first fault: {bad[0]}" if bad else ""
        raise MisuseError(f"{called(place)}{site} has no row that can be used{first}")
    return datasets.DatasetDict({split: _data_set(parts) for split, parts in tables.items()}), bad


def _data_set(parts: list[pa.Table]) -> datasets.Dataset:
    # Left to itself, `datasets` would hash all pictures for a name that nobody asks for.
    return datasets.Dataset(pa.concat_tables(parts), fingerprint=datasets.fingerprint.generate_random_fingerprint())


@dataclass(frozen=True, slots=True)
class FitRow:
    """A row that can be used: where it was found, its split, and its columns as `datasets` stores them."""

    where: str
    split: str
    values: dict[str, Any]


def rows_at(place: Place, settings: RowSettings) -> Iterator[FitRow | BadRow]:
    """Give the rows of :func:`fit_rows`, those of sites with places of their own one site after the other.

    Raises:
        MisuseError: while rows are read: there is no such data set.
    """
    if isinstance(place, str):
        name, found = find(place)
        yield from fit_rows(found, name, settings)
        return
    for site, own in place.items():
        for row in rows_at(own, settings):
            where = f"{site}: {row.where}"
            if isinstance(row, FitRow):
                yield replace(row, where=where, values=row.values | {"site": site})
            else:
                yield replace(row, where=where)


def fit_rows(found: Found, name: str, settings: RowSettings) -> Iterator[FitRow | BadRow]:
    """Give every row that can be used, and in between those that cannot; stop at ``max_rows``.

    Args:
        name: stands in ``ds_name``, and in ``origin_dataset`` where rows do not fill it in.
    """
    splits, taken = _Splits(settings.group), 0
    for raw in found:
        if isinstance(raw, BadRow):
            yield raw
            continue
        try:
            row = _row(raw, name, settings, splits)
        except _UnfitError as unfit:
            yield BadRow(raw.where, unfit.why, unfit.detail)
            continue
        yield row
        taken += 1
        if taken == settings.max_rows:  # before the next row is fetched, which may be a download
            return


class _UnfitError(Exception):
    """Why a row cannot be used."""

    def __init__(self, why: str, detail: str = "") -> None:
        self.why, self.detail = why, detail
        super().__init__(why)


def _features(settings: RowSettings) -> datasets.Features:
    return datasets.Features({**FEATURES, **{name: datasets.Value("string") for name in settings.kept}})


def _row(raw: Raw, name: str, settings: RowSettings, splits: "_Splits") -> FitRow:
    values = raw.values
    if "image" not in values:
        raise _UnfitError(no_column("image"))
    answer = next((column for column in ANSWERS if column in values), ANSWERS[-1])
    row: dict[str, Any] = {
        column: _text(values, column) for column in (*COLUMNS, "site") if column not in ("image", "chosen")
    }
    row |= {column: _needed(values, column, column) for column in settings.kept}
    row |= {"question": _needed(values, "question", "question"), "chosen": _needed(values, answer, "answer")}
    row["image"], picture, path = _picture(values["image"], raw.folder)
    digest = picture_digest(picture)
    row["image_path"] = row["image_path"] or path or digest.hex()
    row["ds_name"], row["origin_dataset"] = row["ds_name"] or name, row["origin_dataset"] or name
    row["idx"] = row["idx"] or raw.where
    split = raw.split or splits.of(row[settings.group], digest, _text(values, "split"))
    return FitRow(raw.where, split, row)


def _needed(values: Mapping[str, Any], column: str, called: str) -> str:
    if column not in values:
        raise _UnfitError(no_column(column))
    text = _text(values, column)
    if not text:
        raise _UnfitError(f"empty {called}")
    return text


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if value is None or value != value:  # a number that is none
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _UnfitError(f"{column!r} is no text")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, as JSON can spell it
        raise _UnfitError(f"{column!r} is no text") from None
    return text


def _picture(value: Any, folder: Path | None) -> tuple[dict[str, Any], Image.Image, str]:
    """Return a picture as `datasets` stores it, decoded, and its path relative to ``folder`` if it is a file there."""
    given, path = _parts(value)
    if given:
        return {"bytes": given, "path": None}, _decoded(io.BytesIO(given), path), ""
    if not path:
        raise _UnfitError("no picture")
    if folder is None:
        raise _UnfitError("no picture", f"only its path, {path}")
    root = folder.resolve()
    file = _inside(root, path)
    return {"bytes": None, "path": str(file)}, _decoded(file, path), file.relative_to(root).as_posix()


def _parts(value: Any) -> tuple[bytes, str]:
    """Return a picture's bytes and path, of which a row needs one."""
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue(), ""
    fields = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
    given, path = fields.get("bytes") or b"", fields.get("path") or ""
    if not isinstance(given, bytes) or not isinstance(path, str):
        raise _UnfitError("'image' is no picture")
    return given, path.strip()


def _inside(root: Path, path: str) -> Path:
    """Return the file at ``path``, with all links followed, if it lies in ``root``."""
    try:
        file = (root / path.replace("\\", "/")).resolve()
        there = file.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero in it, links in a circle
        raise _UnfitError("picture not found", path) from None
    if not file.is_relative_to(root):
        raise _UnfitError("picture outside the folder", path)
    if not there:
        raise _UnfitError("picture not found", path)
    return file


def _decoded(source: Path | io.BytesIO, called: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as opened:
                opened.load()
                picture: Image.Image = ImageOps.exif_transpose(opened)  # as `datasets` decodes it for training
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _UnfitError("unreadable picture: over Pillow's limit of pixels", called) from None
    except Exception:  # noqa: BLE001 - decoders raise whatever they stumble over
        raise _UnfitError("unreadable picture", called) from None
    if picture.mode[0] in "IF":
        # Cut to 8 bits they would come out white all over.
        raise _UnfitError("picture with more than 8 bits a channel", called)
    return picture


class _Splits:
    """Deals rows to splits, those of a group (a picture, a patient) or with the same picture to the same one."""

    def __init__(self, group: str) -> None:
        self._called = group
        self._groups: dict[str, str] = {}
        self._pictures: dict[bytes, str] = {}
        self._splits: dict[str, str] = {}

    def of(self, value: str, picture: bytes, given: str) -> str:
        """Return the split of a row; ``given`` is the one it asks for, if any."""
        if given and given not in SPLIT_SHARES:
            raise _UnfitError(f"'split' is none of {', '.join(SPLIT_SHARES)}", given)
        # A file that lies there under two names is one picture.
        group = self._groups.get(value) or self._pictures.get(picture) or value
        split = self._splits.get(group) or given or split_of(group)
        seen = self._splits.get(self._pictures.get(picture, group), split)
        if len(asked := {split, given or split, seen}) > 1:
            raise _UnfitError(f"same picture or {self._called!r} as a row in another split", ", ".join(sorted(asked)))
        self._groups[value], self._splits[group] = group, split
        self._pictures.setdefault(picture, group)
        return split


def split_of(group: str) -> str:
    """Return the split that a group of rows belongs to, for ever: it follows from its name alone."""
    digest = hashlib.sha256(f"fedvlm-secure split {group}".encode()).digest()
    place, end = int.from_bytes(digest[:8]) / 2**64, 0.0
    for split, share in SPLIT_SHARES.items():
        end += share
        if place < end:
            return split
    return split
