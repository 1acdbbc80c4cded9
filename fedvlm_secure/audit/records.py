"""What the auditor reads: a run directory as the server hands it over, and logs as clients hand them over."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.log import ClientLog
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.protocols import PROTOCOLS
from fedvlm_secure.secagg.roster import Roster, read_roster
from fedvlm_secure.secagg.transcript import Transcript

_NAME = re.compile(r"round-(\d{4,})-attempt-(\d+)\.cbor")


@dataclass(frozen=True)
class Attempt:
    """One attempt as the server has recorded it.

    Attributes:
        where: how findings name it.
        place: (round, attempt), by the file's name.
    """

    where: str
    place: tuple[int, int]
    transcript: Transcript
    plan: Plan

    @cached_property
    def hash(self) -> bytes:
        """The plan's hash, of its recorded bytes."""
        return digest("plan", self.transcript.plan)


@dataclass(frozen=True)
class Records:
    """A run as far as it can be read.

    Attributes:
        unreadable: files that are damaged, each with what is wrong with it.
        settings: what the run was asked to be; None if that cannot be read.
    """

    folder: RunDirectory
    roster: Roster
    attempts: tuple[Attempt, ...]
    logs: tuple[ClientLog, ...]
    unreadable: tuple[tuple[str, str], ...]
    settings: Settings | None

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """What the server has recorded of the attempts in ``metrics.jsonl``, in order."""
        return lines_of(self.folder.coordinator.metrics.path)

    def line_of(self, attempt: Attempt) -> dict[str, Any] | None:
        """What it has recorded of one attempt, if it has."""
        return self._lines.get(attempt.place)

    @cached_property
    def _lines(self) -> dict[tuple[int, int], dict[str, Any]]:
        found = dict[tuple[int, int], dict[str, Any]]()
        for line in self.lines:
            place = line.get("round"), line.get("attempt")
            if isinstance(place[0], int) and isinstance(place[1], int):
                found.setdefault((place[0], place[1]), line)
        return found


def read(path: Path, logs: Sequence[Path]) -> Records:
    """Read everything that there is.

    Raises:
        MisuseError: ``path`` is no finished run's directory, its roster is damaged, or a log is no client's log.
    """
    folder = RunDirectory(path)
    if not (folder.roster.exists() and (folder.coordinator.path / "transcript").is_dir()):
        raise MisuseError(f"{path} is no run directory with a roster and transcripts")
    attempts, unreadable = _attempts(folder)
    roster = read_roster(folder.roster.read_bytes())
    return Records(folder, roster, attempts, tuple(map(_log, logs)), tuple(unreadable), _settings(folder))


def _attempts(folder: RunDirectory) -> tuple[tuple[Attempt, ...], list[tuple[str, str]]]:
    found, unreadable = [], []
    for path in sorted((folder.coordinator.path / "transcript").iterdir()):
        where, named = path.relative_to(folder.path).as_posix(), _NAME.fullmatch(path.name)
        if named is None:
            unreadable.append((where, "is no transcript by its name"))
            continue
        try:
            if path.is_symlink() or not path.is_file():
                raise WireError("is no file")
            transcript = Transcript.from_bytes(path.read_bytes())
            plan = unpack(Plan, transcript.plan, STATE_LIMITS)
            if plan.protocol not in PROTOCOLS:
                raise WireError(f"protocol {plan.protocol[:40]!r} is not known")
        except (OSError, WireError, MisuseError) as error:
            unreadable.append((where, str(error)))
            continue
        found.append(Attempt(where, (int(named[1]), int(named[2])), transcript, plan))
    return tuple(sorted(found, key=lambda attempt: attempt.place)), unreadable


def _log(path: Path) -> ClientLog:
    try:
        return ClientLog.from_bytes(path.read_bytes())
    except (OSError, WireError) as error:
        raise MisuseError(f"{path} is no client's log: {error}") from None


def json_of(path: Path) -> Any:
    """The JSON value in a file that anybody may have written; None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` that are what they should be."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError):
        return []
    return [line for line in found if isinstance(line, dict)]


def _settings(folder: RunDirectory) -> Settings | None:
    try:
        return Settings.from_toml(folder.settings)
    except (MisuseError, OSError, ValueError, RecursionError):
        return None
