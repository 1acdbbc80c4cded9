"""Gives data sets by name or place. Those that come with the package are built at first use and kept as Arrow files.

The cache key holds a digest of the code that makes the rows and the versions of the packages they come from, so a
changed rule or source never meets old rows. A build appears under its final name only when it is complete.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from fedvlm_secure.data.levels import level_of
from fedvlm_secure.data.own import RowSettings, read
from fedvlm_secure.data.partition import partition
from fedvlm_secure.data.raw import BadRow, Place
from fedvlm_secure.data.rows import FEATURES, to_split
from fedvlm_secure.data.sites import SPLIT_SHARES
from fedvlm_secure.errors import MisuseError

_MAKERS = ("looks.py", "sources.py", "sites.py", "levels.py", "rows.py", "hospitals.py", "easyvqa.py")
_PACKAGES = ("easy-vqa", "nilearn", "scikit-image", "scikit-learn", "numpy", "pillow")

Builder = Callable[[], Mapping[str, list[dict[str, Any]]]]


def load(place: Place, cache_dir: Path | None = None, rows: RowSettings | None = None) -> datasets.DatasetDict:
    """Return a data set with the splits ``train``, ``validation`` and ``test``, building it at first use.

    Args:
        place: one of :data:`NAMES`, a simulated one followed by ``"-newcomer"`` (its ninth hospital); a folder that
            ``DatasetDict.save_to_disk`` has written, with the columns of :data:`~fedvlm_secure.data.rows.FEATURES`; or
            own rows, see :func:`~fedvlm_secure.data.raw.find`. Or a place of own rows for each site, by its name: then
            nothing is partitioned.
        cache_dir: where builds are kept; default ``$FEDVLM_SECURE_CACHE``, else ``fedvlm-secure`` under
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
        rows: which rows are used, and at which site.

    Raises:
        MisuseError: the name is not known, a package that holds the pictures is missing, a folder holds no such data
            set, or its rows cannot be used as ``rows`` asks.
    """
    return load_counted(place, cache_dir, rows)[0]


def load_counted(
    place: Place, cache_dir: Path | None = None, rows: RowSettings | None = None
) -> tuple[datasets.DatasetDict, list[BadRow]]:
    """Return what :func:`load` returns, and the rows that were skipped because they cannot be used."""
    settings = RowSettings() if rows is None else rows
    stored = stored_splits(place, cache_dir, settings.max_rows)
    loaded, bad = read(place, settings) if stored is None else (stored, [])
    return (partition(loaded, settings) if isinstance(place, str) else loaded), bad


def stored_splits(name: Place, cache_dir: Path | None = None, most: int | None = None) -> datasets.DatasetDict | None:
    """Return a data set that comes with the package or that ``datasets`` has saved in splits, None of any other.

    Of more than ``most`` rows, about as many are taken evenly from each split: stored rows are often sorted by site.
    """
    if not isinstance(name, str):
        return None
    build = _builder(name)
    if build is None and not (Path(name) / "dataset_dict.json").is_file():
        return None
    splits = _saved(name) if build is None else _built(name, build, cache_dir)
    total = sum(len(rows) for rows in splits.values())
    if most is None or total <= most:
        return splits
    return datasets.DatasetDict(
        {split: rows.select(np.arange(0, len(rows), total / most).astype(int)) for split, rows in splits.items()}
    )


def _built(name: str, build: Builder, cache_dir: Path | None) -> datasets.DatasetDict:
    folder = (cache_dir or default_cache()) / f"{name}-{content_version()}"
    if not folder.is_dir():
        _write(datasets.DatasetDict({split: to_split(rows) for split, rows in build().items()}), folder)
    loaded = datasets.load_from_disk(str(folder))
    assert isinstance(loaded, datasets.DatasetDict)
    return loaded


def _builder(name: str) -> Builder | None:
    """What makes the rows of a built-in data set; None if it is none."""
    if level_of(name) is not None:
        return partial(import_module("fedvlm_secure.data.hospitals").build, name)
    return import_module("fedvlm_secure.data.easyvqa").build if name == "easy-vqa" else None


def _saved(name: str) -> datasets.DatasetDict:
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
