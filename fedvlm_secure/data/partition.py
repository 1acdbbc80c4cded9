"""Which site holds which row: by a column, as in the field, or drawn by one of ``flwr-datasets``' partitioners.

Partitioners deal whole groups (pictures, patients), so that no two sites get the same one.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np

from fedvlm_secure.data.own import QUESTION_TYPE, RowSettings
from fedvlm_secure.errors import MisuseError

NATURAL = "natural"
_PER_SITE = 2  # values or shards a site, as in the papers
Columns = Mapping[str, Sequence[str]]


def partition(splits: datasets.DatasetDict, settings: RowSettings) -> datasets.DatasetDict:
    """Return the same rows with ``site`` as the settings say.

    Raises:
        MisuseError: see :func:`sites_of`.
    """
    by = [name for name in (settings.by or "").split("+") if name not in ("", QUESTION_TYPE)]
    needed = dict.fromkeys(("site", "chosen", "origin_dataset", "origin_split", settings.group, *by))
    for name in needed:
        if lacking := [split for split, rows in splits.items() if name not in rows.column_names]:
            raise MisuseError(f"settings: [rows] asks for {name!r}, which is no column of the split {lacking[0]!r}")
    columns = {name: [value or "" for rows in splits.values() for value in rows[name][:]] for name in needed}
    sites = sites_of(columns, settings)
    if sites == columns["site"]:
        return splits
    dealt, start = datasets.DatasetDict(), 0
    for split, rows in splits.items():
        own = sites[start : start + len(rows)]
        dealt[split] = rows.remove_columns("site").add_column("site", own, feature=datasets.Value("string"))
        start += len(rows)
    return dealt


def sites_of(columns: Columns, settings: RowSettings) -> list[str]:
    """Return each row's site.

    Args:
        columns: ``site``, ``chosen``, ``origin_dataset``, ``origin_split`` and those that ``settings`` name; one string
            a row.

    Raises:
        MisuseError: a row has nothing in the column that says its site, two sites would get one name, or the rows
            cannot be dealt out as asked; a partitioner's package is missing.
    """
    if settings.partition == NATURAL:
        by = settings.by or ("site" if any(columns["site"]) else "origin_dataset")
        return _names(labels(columns, by), by)
    groups = [value or f"\0{row}" for row, value in enumerate(columns[settings.group])]  # one without is one of its own
    found = labels(columns, settings.by or "chosen")
    first = dict(zip(reversed(groups), reversed(found), strict=True))
    dealt = _dealt(first, settings)
    return [dealt[group] for group in groups]


def labels(columns: Columns, by: str) -> list[str]:
    """Return each row's value in the column ``by``, in ``question-type``, or in columns joined by ``+``."""
    parts = [
        [question_type(value) for value in columns["origin_split"]] if name == QUESTION_TYPE else columns[name]
        for name in by.split("+")
    ]
    return [" ".join(values) for values in zip(*parts, strict=True)]


def question_type(origin_split: str) -> str:
    """Return the question type that ``origin_split`` tells: RLAIF-V keeps it in JSON, beside the models it used."""
    try:
        told = json.loads(origin_split)
    except (ValueError, RecursionError):
        return origin_split
    return str(told.get("type", "")) if isinstance(told, dict) else origin_split


def _names(values: Sequence[str], by: str) -> list[str]:
    """Turn values into names that a party of the protocol can have."""
    names: dict[str, str] = {}
    for value in dict.fromkeys(values):
        name = re.sub(r"[^a-z0-9._-]+", "-", value.lower()).strip("._-")[:64].rstrip("._-")
        if not name:
            rows = sum(other == value for other in values)
            raise MisuseError(f"settings: [rows] by = {by!r}: {rows} rows have {value!r} there, which names no site")
        if name in names.values():
            other = next(known for known, same in names.items() if same == name)
            raise MisuseError(f"settings: [rows] by = {by!r}: {other!r} and {value!r} would both be the site {name!r}")
        names[value] = name
    return [names[value] for value in values]


def _dealt(label_of: Mapping[str, str], settings: RowSettings) -> dict[str, str]:
    """Deal the groups, each with its label, to sites."""
    if len(label_of) < settings.sites:
        raise MisuseError(_cannot(label_of, settings))
    groups = np.array(list(label_of), dtype=object)
    groups = groups[np.random.default_rng(settings.seed).permutation(len(groups))]  # IID takes them as they come
    table = datasets.Dataset.from_dict({"group": list(groups), "label": [label_of[group] for group in groups]})
    try:
        from flwr_datasets import partitioner as home
    except ImportError:
        raise MisuseError(
            f"rows.partition = \"{settings.partition}\" needs a package: pip install 'fedvlm-secure[partition]'"
        ) from None
    width, dealt = len(str(settings.sites)), {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is checked below
            drawn = PARTITIONERS[settings.partition](home, settings, len(table))
            drawn.dataset = table
            for number in range(settings.sites):
                for group in drawn.load_partition(number)["group"]:
                    dealt[group] = f"site-{number + 1:0{width}d}"
    except ValueError as error:
        raise MisuseError(_cannot(label_of, settings)) from error
    if len(dealt) < len(table) or len(set(dealt.values())) < settings.sites:
        raise MisuseError(_cannot(label_of, settings))
    return dealt


def _cannot(label_of: Mapping[str, str], settings: RowSettings) -> str:
    by, values = settings.by or "chosen", len(set(label_of.values()))
    return (
        f'settings: [rows] partition = "{settings.partition}" cannot deal {len(label_of)} pictures '
        f"with {values} values in {by!r} to {settings.sites} sites; lower rows.sites, raise rows.alpha, or name "
        "another column in rows.by"
    )


# In order: the module flwr_datasets.partitioner, the settings, how many groups there are.
_Make = Callable[[Any, RowSettings, int], Any]
PARTITIONERS: Mapping[str, _Make] = MappingProxyType(
    {
        "iid": lambda home, settings, groups: home.IidPartitioner(settings.sites),
        "dirichlet": lambda home, settings, groups: home.DirichletPartitioner(
            settings.sites, "label", settings.alpha, min_partition_size=1, seed=settings.seed
        ),
        "pathological": lambda home, settings, groups: home.PathologicalPartitioner(
            settings.sites, "label", _PER_SITE, "deterministic", seed=settings.seed
        ),
        # The size says how many shards there are, so that none is left over.
        "shard": lambda home, settings, groups: home.ShardPartitioner(
            settings.sites,
            "label",
            shard_size=max(1, groups // (_PER_SITE * settings.sites)),
            keep_incomplete_shard=True,
            seed=settings.seed,
        ),
    }
)
