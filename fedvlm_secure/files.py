"""Files that are whole or not there, whenever the machine stops."""

import json
import os
from pathlib import Path
from typing import Any

from fedvlm_secure.errors import MisuseError

PRIVATE, PUBLIC = 0o600, 0o644


def write(path: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write ``path`` whole or not at all, and durably: the old content stays until the new one is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if mode == PRIVATE else 0o777)
    scratch = path.with_name(path.name + ".part")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    # The new name has to be on disk too: a latch that a power failure takes back would be none.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any, mode: int = PUBLIC) -> None:
    """``value`` as indented JSON."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), mode)


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; raises :class:`MisuseError` if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from None
