"""What there is to know of a data set before a run: counts, faults, answers, lengths. No picture is held."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import datasets

from fedvlm_secure.data.own import REFUSE, FitRow, RowSettings, fit_rows, rows_at
from fedvlm_secure.data.partition import NATURAL, labels, sites_of
from fedvlm_secure.data.raw import BadRow, Place, called, saved
from fedvlm_secure.data.sites import SPLIT_SHARES
from fedvlm_secure.data.store import stored_splits
from fedvlm_secure.errors import MisuseError

OTHER = "(other)"
_TOP = 5
_MOST_TYPES = 20  # more are no types

Row = Mapping[str, Any]


def check(place: Place, settings: RowSettings, length: Callable[[Row], int], most_tokens: int) -> dict[str, Any]:
    """Look at every row that a run with these settings would see, and return what was found as plain values.

    Args:
        place: as for :func:`~fedvlm_secure.data.store.load`.
        length: a row's tokens; it gets the picture decoded, as training does.
        most_tokens: rows with more cannot be trained on.

    Returns:
        ``problems``: one sentence for everything that is to be mended before a run; empty if all is well. The rest are
        ``warnings`` and counts: ``splits``, ``sites``, ``faults``, ``answers`` by question type, ``tokens``, ``labels``
        by site.

    Raises:
        MisuseError: there is no such data set.
    """
    stored = stored_splits(place, most=settings.max_rows)
    found = rows_at(place, settings) if stored is None else fit_rows(saved(stored, called(place)), "", settings)
    decode = datasets.Image().decode_example
    rows: list[FitRow] = []
    tokens: list[int] = []
    faults: list[BadRow] = []
    for row in found:
        if isinstance(row, BadRow):
            faults.append(row)
            continue
        tokens.append(length({**row.values, "image": decode(row.values.pop("image"))}))
        rows.append(row)
    columns = {column: [row.values[column] for row in rows] for column in (rows[0].values if rows else ())}
    splits = [row.split for row in rows]
    problems = _faulty(faults, len(rows), settings, stored is not None)
    sites: list[str] = []
    try:
        if rows:
            sites = sites_of(columns, settings) if isinstance(place, str) else columns["site"]
    except MisuseError as reason:
        problems.append(str(reason))
    held = _held(sites, splits, () if isinstance(place, str) else place)
    problems += [
        f"site {site!r} has no rows in the split {split!r}"
        for site, counts in held.items()
        for split, count in counts.items()
        if not count
    ]
    long = [(row.where, count) for row, count in zip(rows, tokens, strict=True) if count > most_tokens]
    if long:
        problems.append(f"{len(long)} rows have more than {most_tokens} tokens, the first: {long[0][0]}; shorten them")
    by = settings.by or "chosen" if settings.partition != NATURAL else "chosen"
    return {
        "data": called(place),
        "rows": len(rows),
        "problems": problems,
        "warnings": _leaks(columns[settings.group], splits, settings.group) if rows else [],
        "splits": {split: splits.count(split) for split in SPLIT_SHARES},
        "sites": held,
        "faults": {
            "count": len(faults),
            "reasons": dict(Counter(fault.why for fault in faults).most_common()),
            "rows": [{"where": fault.where, "why": fault.why, "detail": fault.detail} for fault in faults],
        },
        "answers": _answers(columns) if rows else {},
        "tokens": _lengths(tokens, long, most_tokens),
        "labels": {"by": by, "sites": _labels(sites, labels(columns, by)) if sites else {}},
    }


def _faulty(faults: Sequence[BadRow], fit: int, settings: RowSettings, is_stored: bool) -> list[str]:
    if not fit:
        return ["no row can be used" + (f"; the first fault: {faults[0]}" if faults else "")]
    if faults and is_stored:
        return [f"{len(faults)} rows have faults, and a saved data set is used as it is; the first: {faults[0]}"]
    if faults and settings.on_bad_row == REFUSE:
        return [f'{len(faults)} rows cannot be used; mend them, or skip them with rows.on-bad-row = "skip"']
    return []


def _leaks(groups: Sequence[str], splits: Sequence[str], called: str) -> list[str]:
    """Say how many groups are in several splits, as only a data set that came in splits can have it."""
    held = Counter(group for group, _ in {*zip(groups, splits, strict=True)} if group)
    shared = sum(count > 1 for count in held.values())
    return [f"{shared} values of {called!r} are in several splits: tests will say too much"] if shared else []


def _held(sites: Sequence[str], splits: Sequence[str], expected: Iterable[str]) -> dict[str, dict[str, int]]:
    """Count rows by site and split."""
    counts = Counter(zip(sites, splits, strict=False))
    return {site: {split: counts[site, split] for split in SPLIT_SHARES} for site in sorted({*sites, *expected})}


def _answers(columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    kinds = labels(columns, "question-type")
    if len(set(kinds)) > _MOST_TYPES:
        kinds = [""] * len(kinds)
    by_kind: dict[str, Counter[str]] = {}
    for kind, answer in zip(kinds, columns["chosen"], strict=True):
        by_kind.setdefault(kind or "all", Counter())[answer] += 1
    return {
        kind: {"rows": counts.total(), "distinct": len(counts), "top": dict(counts.most_common(_TOP))}
        for kind, counts in by_kind.items()
    }


def _lengths(tokens: Sequence[int], long: Sequence[tuple[str, int]], most: int) -> dict[str, Any]:
    spread = {"shortest": min(tokens), "median": median(tokens), "longest": max(tokens)} if tokens else {}
    return {"limit": most, **spread, "over": [{"where": where, "tokens": count} for where, count in long]}


def _labels(sites: Sequence[str], found: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count each site's commonest values; what is not among the commonest of all is put together."""
    top = [value for value, _ in Counter(found).most_common(_TOP)]
    counts = Counter(zip(sites, (value if value in top else OTHER for value in found), strict=True))
    shown = [*top, OTHER] if len(set(found)) > len(top) else top
    return {site: {value: counts[site, value] for value in shown} for site in sorted({*sites})}
