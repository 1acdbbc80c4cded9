"""The run directory: who may write where, files that are whole or absent, and the signed manifest.

Each Participant writes its own folder, the Coordinator's holds sums only. A ``state`` folder holds keys and unfinished
work; it is private to its owner and not part of the manifest.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm_secure.errors import MisuseError, one_line
from fedvlm_secure.federation import keyfile
from fedvlm_secure.files import write
from fedvlm_secure.primitives.signing import Identity, SignatureError, verify

MANIFEST = "manifest.json"
_SIGNED = ("signer", "signature")
DEPLOYMENT = "flower"  # the folder of a run's processes on this machine, with everybody's keys; not part of the run


@dataclass(frozen=True, slots=True)
class Metrics:
    """A ``metrics.jsonl``: one JSON object a line. A line recorded twice, as by a resumed run, is there once."""

    path: Path

    def record(self, key: tuple[str, ...], **values: Any) -> None:
        """Append a line, or replace the one whose values under ``key`` are equal."""
        lines = [line for line in self.lines() if any(line.get(name) != values[name] for name in key)]
        # JSON has no NaN and no infinity: a loss that is neither number is null.
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in [*lines, finite])
        write(self.path, text.encode())

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, slots=True)
class Folder:
    """One party's folder inside a run."""

    path: Path

    @property
    def state(self) -> Path:
        """Keys and unfinished work, private to the owner."""
        return self.path / "state"

    @property
    def metrics(self) -> Metrics:
        """The party's own figures."""
        return Metrics(self.path / "metrics.jsonl")

    def identity(self) -> Identity:
        """The party's keys, made at first use."""
        path = self.state / "identity.key"
        return keyfile.load(path) if path.exists() else keyfile.create(path)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """``runs/NAME``: settings, the coordinator's folder and one folder a site."""

    path: Path

    @property
    def settings(self) -> Path:
        """The settings, every value spelt out."""
        return self.path / "settings.toml"

    @property
    def roster(self) -> Path:
        """The signed roster of the run."""
        return self.path / "roster.cbor"

    @property
    def coordinator(self) -> Folder:
        """The server's folder: sums only."""
        return Folder(self.path / "coordinator")

    def site(self, name: str) -> Folder:
        """One hospital's folder."""
        return Folder(self.path / "sites" / name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process away from this run meanwhile; raises :class:`MisuseError` if one is at it."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MisuseError(f"another process is working on {self.path}; wait for it, or end it") from None
            yield
        finally:
            with suppress(OSError):  # leave nothing behind where nothing was written
                self.path.rmdir()
            os.close(descriptor)

    def finished_files(self) -> Iterator[Path]:
        """Every file that the manifest covers, sorted."""
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and not self._is_private(path) and path != self.path / MANIFEST:
                yield path

    def _is_private(self, path: Path) -> bool:
        """Whether the path lies in a party's state, or a deployment; a hospital may itself be called ``state``."""
        of_the_server, *rest = path.relative_to(self.path).parts
        if of_the_server == DEPLOYMENT:
            return True
        return (rest[:1] if of_the_server == "coordinator" else rest[1:2]) == ["state"]

    def sign_manifest(self, identity: Identity) -> None:
        """Hash every finished file and sign the list."""
        hashes = {
            path.relative_to(self.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.finished_files()
        }
        signature = identity.sign("manifest", _canonical(hashes))
        write(self.path / MANIFEST, _manifest(hashes, identity.public, signature))

    def verify_manifest(self, signer_key: bytes | None = None) -> None:
        """Raise :class:`MisuseError` unless every finished file is as it was when the manifest was signed.

        Args:
            signer_key: who must have signed it. If None, whoever the manifest names: that finds damage, not a run
                forged as a whole.
        """
        place = self.path / MANIFEST
        try:
            content = place.read_bytes()
            manifest = json.loads(content)
            files, signer, signature = manifest["files"], *(bytes.fromhex(manifest[key]) for key in _SIGNED)
            verify(signer, "manifest", _canonical(files), signature)
            as_written = _manifest(files, signer, signature) == content
        except (OSError, KeyError, TypeError, ValueError, RecursionError, SignatureError) as error:
            raise MisuseError(f"{place} is damaged: {one_line(error)}") from None
        if not isinstance(files, dict):
            raise MisuseError(f"{place} is damaged: it lists no files")
        if not as_written:
            raise MisuseError(f"{place} is damaged: it is not written as it was")
        if signer != (signer_key or signer):
            raise MisuseError(f"{place} is signed by {signer.hex()[:16]}…, not by the roster's server")
        odd_ones = (path for path in sorted(self.path.rglob("*")) if path.is_symlink() or not _is_plain(path))
        if (strange := next((path for path in odd_ones if not self._is_private(path)), None)) is not None:
            raise MisuseError(f"{strange} is neither a file nor a folder; a run directory holds nothing else")
        present = {path.relative_to(self.path).as_posix(): path for path in self.finished_files()}
        if odd := sorted(present.keys() ^ files.keys()):
            raise MisuseError(f"{self.path}: {odd[0]} was added or removed after the manifest was signed")
        for name, path in present.items():
            if hashlib.sha256(path.read_bytes()).hexdigest() != files[name]:
                raise MisuseError(f"{path} was changed after the manifest was signed")


def _is_plain(path: Path) -> bool:
    return path.is_file() or path.is_dir()


def _manifest(files: dict[str, str], signer: bytes, signature: bytes) -> bytes:
    content = {"files": files, "signer": signer.hex(), "signature": signature.hex()}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _canonical(value: dict[str, str]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
