"""Builds a data set at first use and keeps it as Arrow files.

The cache key holds a digest of the code that makes the rows and the versions of the packages they come from, so a
changed rule or source never meets old rows. A build appears under its final name only when it is complete.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets

from fedvlm_secure.data.rows import FEATURES, to_split
from fedvlm_secure.data.sites import SPLIT_SHARES
from fedvlm_secure.errors import MisuseError

NAMES = ("hospitals", "easy-vqa")
_BUILDERS: Mapping[str, str] = {"hospitals": "fedvlm_secure.data.hospitals", "easy-vqa": "fedvlm_secure.data.easyvqa"}
_MAKERS = ("looks.py", "sources.py", "sites.py", "rows.py", "hospitals.py", "easyvqa.py")
_PACKAGES = ("easy-vqa", "nilearn", "scikit-image", "scikit-learn", "numpy", "pillow")


def load(name: str, cache_dir: Path | None = None) -> datasets.DatasetDict:
    """Return a data set with the splits ``train``, ``validation`` and ``test``, building it at first use.

    Args:
        name: ``"hospitals"``, ``"easy-vqa"``, or a folder that ``DatasetDict.save_to_disk`` has written, with the
            columns of :data:`~fedvlm_secure.data.rows.FEATURES`.
        cache_dir: where builds are kept; default ``$FEDVLM_SECURE_CACHE``, else ``fedvlm-secure`` under
            ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        MisuseError: the name is not known, a package that holds the pictures is missing, or a folder holds no such
            data set.
    """
    if name not in NAMES:
        return _from_folder(name)
    folder = (cache_dir or default_cache()) / f"{name}-{content_version()}"
    if not folder.is_dir():
        build: Callable[[], Mapping[str, list[dict[str, Any]]]] = import_module(_BUILDERS[name]).build
        _write(datasets.DatasetDict({split: to_split(rows) for split, rows in build().items()}), folder)
    loaded = datasets.load_from_disk(str(folder))
    assert isinstance(loaded, datasets.DatasetDict)
    return loaded


def _from_folder(name: str) -> datasets.DatasetDict:
    if not (Path(name) / "dataset_dict.json").is_file():
        choices = ", ".join(NAMES)
        raise MisuseError(f"data set {name!r} is not known; choices: {choices}, or a folder of a saved DatasetDict")
    loaded = datasets.DatasetDict.load_from_disk(name)
    for split in SPLIT_SHARES:
        columns = set(loaded[split].column_names) if split in loaded else set()
        if missing := sorted(set(FEATURES) - columns):
            raise MisuseError(f"the data set in {name} has no column {missing[0]!r} in a split named {split!r}")
    return loaded


def default_cache() -> Path:
    """Return the cache folder that the environment names, without creating it."""
    if own := os.environ.get("FEDVLM_SECURE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvlm-secure"


def content_version() -> str:
    """Return 12 hexadecimal digits that change whenever the rows could."""
    digest = hashlib.sha256()
    for maker in _MAKERS:
        digest.update((Path(__file__).parent / maker).read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{package} missing\n".encode())
    return digest.hexdigest()[:12]


def _write(built: datasets.DatasetDict, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        disable = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            built.save_to_disk(str(unfinished / "data"))
        finally:
            if disable:
                datasets.enable_progress_bars()
        try:
            (unfinished / "data").rename(folder)
        except OSError:
            # Another process was faster; both built the same rows.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
