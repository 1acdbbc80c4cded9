"""A run directory as values: what is missing is None, what is damaged is a :class:`MisuseError`.

Nothing in a run is trusted: site names, descriptions and reasons come from other parties and figures may be missing or
of another type. Every value therefore passes through :func:`number`, :func:`text` or :func:`names` before it is shown.
"""

import json
import math
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm_secure.errors import MisuseError, one_line

Line = Mapping[str, Any]
FIRST_BYTES = "first-bytes.json"


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """One hospital's folder: its own summary and its own metrics, no other party's.

    Attributes:
        first_bytes: of a simulated run: how one upload began before masking; empty but at one hospital.
    """

    name: str
    summary: Line
    metrics: tuple[Line, ...]
    first_bytes: Line = field(default_factory=dict)

    def stage(self, stage: str, split: str | None = None) -> list[Line]:
        """The metrics of a stage, such as ``"adopted"``, in the order of the rounds."""
        found = [m for m in self.metrics if m.get("stage") == stage and (split is None or m.get("split") == split)]
        return sorted(found, key=lambda line: number(line.get("round")) or 0)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run directory. ``summary`` is None while the run is unfinished.

    Attributes:
        first_bytes: of a simulated run: how one upload began as the server received it; else empty.
    """

    settings_text: str
    settings: Line
    metrics: tuple[Line, ...]
    summary: Line | None
    sites: tuple[SiteRecord, ...]
    first_bytes: Line = field(default_factory=dict)

    def fact(self, key: str) -> Any:
        """A value of the summary, else of ``[aggregation]``, ``[adapter]`` or the top of the settings, else None."""
        for table in (self.summary, mapping(self.settings, "aggregation"), mapping(self.settings, "adapter")):
            if table and table.get(key) is not None:
                return table[key]
        return self.settings.get(key)


def load(run: Path) -> RunRecord:
    """Read a run directory, finished or not.

    Raises:
        MisuseError: it is no run directory, nothing has been recorded in it yet, or a file of it is damaged.
    """
    settings = run / "settings.toml"
    if not settings.is_file():
        raise MisuseError(f"{run} is not a run directory: it holds no settings.toml")
    settings_text = _text_of(settings)
    try:
        tables = tomllib.loads(settings_text)
    except tomllib.TOMLDecodeError as error:
        raise MisuseError(f"{settings} is damaged: {one_line(error)}") from None
    metrics, sites = _lines(run / "coordinator" / "metrics.jsonl"), load_sites(run)
    if not metrics and not sites:
        raise MisuseError(f"{run} has nothing to report yet: neither coordinator/metrics.jsonl nor a site's figures")
    summary, received = (_object(run / "coordinator" / name) for name in ("summary.json", FIRST_BYTES))
    return RunRecord(settings_text, tables, metrics, summary, sites, received or {})


def load_sites(run: Path) -> tuple[SiteRecord, ...]:
    """The hospitals' folders that hold figures, by name; empty where this run directory is the server's alone."""
    folders = sorted(path for path in (run / "sites").glob("*") if path.is_dir())
    records = (
        SiteRecord(
            text(path.name),
            _object(path / "summary.json") or {},
            _lines(path / "metrics.jsonl"),
            _object(path / FIRST_BYTES) or {},
        )
        for path in folders
    )
    return tuple(record for record in records if record.summary or record.metrics)


def number(value: Any) -> float | None:
    """A finite figure, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def text(value: Any) -> str:
    """A string whose control, direction and surrogate characters are visible as U+FFFD; empty for anything else."""
    if not isinstance(value, str):
        return ""
    hidden = {character for character in value if unicodedata.category(character) in ("Cc", "Cf", "Cs")}
    return value.translate({ord(character): " " if character in "\n\t" else "\ufffd" for character in hidden})


def names(value: Any) -> tuple[str, ...]:
    """A list of strings; whatever is none is left out."""
    return tuple(text(entry) for entry in value if isinstance(entry, str)) if isinstance(value, list) else ()


def mapping(line: Line, key: str) -> Line:
    """The table under ``key``, empty if there is none."""
    value = line.get(key)
    return value if isinstance(value, Mapping) else {}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"{path} cannot be read: {one_line(error)}") from None


def _object(path: Path) -> Line | None:
    return _parsed(_text_of(path), str(path)) if path.exists() else None


def _lines(path: Path) -> tuple[Line, ...]:
    if not path.exists():
        return ()
    lines = enumerate(_text_of(path).split("\n"), start=1)  # splitlines() would also split at U+2028 inside a string
    return tuple(_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip())


def _parsed(content: str, where: str) -> Line:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{where} is damaged: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise MisuseError(f"{where} is damaged: it holds no JSON object")
    return value
