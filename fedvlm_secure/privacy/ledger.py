"""A hospital's own account of what its data has released, across runs: it refuses what would go above a limit.

Kept in a file that only grows, see :mod:`fedvlm_secure.privacy.chain`: a release is charged before its training begins,
and noted again when its result is about to leave.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedvlm_secure.errors import MisuseError, PrivacyBudgetExhaustedError
from fedvlm_secure.privacy import chain
from fedvlm_secure.privacy.accounting import Event, Unprotected, epsilon, event_as_dict, event_from_dict
from fedvlm_secure.privacy.chain import Chain, Head, anchor_of


@dataclass(frozen=True, slots=True)
class Release:
    """One training whose result may leave the hospital, or has.

    Attributes:
        fingerprint: of the data set, see :func:`fingerprint`.
        run: the run's random identifier; its name may come again.
        tries: how often the round was trained: a further training after an answered upload is a further release.
        unit: what the guarantee is about: ``"image"``, ``"row"``, a column, or ``"hospital"``.
        event: what was spent.
        time: when it was reserved, in seconds since 1970.
        released: its result was on the way; otherwise it is reserved, which costs the same.
        result: the name of that result.
    """

    fingerprint: str
    run: str
    round: int
    tries: int
    unit: str
    delta: float
    event: Event
    time: int
    released: bool = False
    result: str = ""

    @property
    def key(self) -> tuple[str, int, int]:
        """(run, round, tries)."""
        return self.run, self.round, self.tries

    def same_charge(self, other: "Release") -> bool:
        """Whether both stand for the same spending, whenever it was written down."""
        return replace(self, time=0, released=False, result="") == replace(other, time=0, released=False, result="")


def fingerprint(rows: Iterable[bytes]) -> str:
    """The identity of a data set: 64 hex digits, equal for the same rows in any order.

    Rows that are added or removed make another data set, with an account of its own; nothing here knows that the two
    overlap.

    Args:
        rows: one digest of 32 bytes a row, of everything that training reads from it.
    """
    listed = sorted(rows)
    if any(len(row) != 32 for row in listed):
        raise MisuseError("a row's digest has 32 bytes; take its SHA-256")
    return hashlib.sha256(b"fedvlm-secure/v1/data-set" + b"".join(listed)).hexdigest()


class _Book:
    """What a chain of entries says."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.releases: dict[tuple[str, int, int], Release] = {}
        for content in chain.contents():
            if content["kind"] == "reserve":
                release = _from_reservation(content)
                self.releases[release.key] = release
            elif content["kind"] == "release":
                key = content["run"], content["round"], content["tries"]
                self.releases[key] = replace(self.releases[key], released=True, result=content["result"])

    def of(self, fingerprint: str) -> list[Release]:
        """The data set's releases."""
        return [release for release in self.releases.values() if release.fingerprint == fingerprint]


class Ledger:
    """A hospital's ledger; every call sees and leaves it whole, whatever other processes do.

    Args:
        path: the file, made if there is none. Only its owner can read it.
        limit: the largest ε that a data set's releases may come to altogether, at the δ of the request; None for none.
        accountant: see :mod:`fedvlm_secure.privacy.accounting`.
        create: make a new file; otherwise a missing one is refused.

    Raises:
        MisuseError: the file cannot be used, or is another program's.
        VerificationError: it was changed or rolled back (L-1, L-2); so does every other method.
    """

    def __init__(self, path: Path, limit: float | None = None, accountant: str = "prv", *, create: bool = True) -> None:
        self._path, self._limit, self._accountant = path, limit, accountant
        if not create and not path.exists() and not anchor_of(path).exists():
            raise MisuseError(f"there is no ledger {path}")
        self.head()

    def head(self) -> Head:
        """How far the ledger has come, for a run to remember."""
        with self._opened() as book:
            return book.chain.head

    def extends(self, head: Head) -> None:
        """Raise :class:`VerificationError` (L-3) unless the ledger still holds what it held at ``head``."""
        with self._opened() as book:
            if not book.chain.contains(head):
                raise chain.refusal("L-3", f"{self._path} no longer holds what was seen in it; restore the newest copy")

    def check(self) -> Head:
        """Verify the whole file and its anchor: returns the head, raises :class:`VerificationError`."""
        return self.head()

    def releases(self) -> tuple[Release, ...]:
        """Everything charged so far, in order."""
        with self._opened() as book:
            return tuple(book.releases.values())

    def entries(self) -> tuple[tuple[str, bytes], ...]:
        """The chain itself: each entry's JSON text, and its SHA-256 over that of the entry before and the text."""
        with self._opened() as book:
            return tuple(book.chain.entries)

    def spent(self, fingerprint: str, delta: float) -> float:
        """ε at ``delta`` of all releases of the data set, reserved ones included."""
        with self._opened() as book:
            return self._total(book.of(fingerprint), delta)

    def would_spend(self, fingerprint: str, event: Event, unit: str, delta: float) -> float:
        """ε at ``delta`` after ``event`` too; raises :class:`MisuseError` if it has another unit than those before."""
        with self._opened() as book:
            before = book.of(fingerprint)
            _check_unit(before, event, unit)
            return self._total(before, delta, event)

    def reserve(
        self, run: str, round: int, tries: int, *, fingerprint: str, event: Event, unit: str, delta: float
    ) -> float:
        """Charge a release before its training begins; on disk when this returns.

        The same call for the same (run, round, tries) is charged once. That holds because a training is repeated under
        its key only if it was lost before its result was kept: at most one result ever leaves, with noise of its own,
        and which one does not depend on the rows. Once :meth:`release` has been called a result may have left, and the
        key is used up.

        A reserved release counts in full from now on, whether or not anything leaves: whoever is killed anywhere after
        this has counted too much at worst.

        Returns:
            ε of everything the data set has released, this included, at the smallest δ asked for so far.

        Raises:
            PrivacyBudgetExhaustedError: that would be above the limit; nothing was written.
            MisuseError: the key stands for something else or is used up, or the data set's releases have another unit.
        """
        wanted = Release(fingerprint, run, round, tries, unit, delta, event, int(time.time()))
        with self._opened() as book:
            known = book.releases.get(wanted.key)
            if known is not None:
                _check_repeated(known, wanted)
            before = [each for each in book.of(fingerprint) if each.key != wanted.key]
            _check_unit(before, event, unit)
            # At the strictest δ that was ever asked for: at a larger one the same releases would seem to cost less.
            strictest = min([delta, *(each.delta for each in before)])
            total = self._total(before, strictest, event)
            if self._limit is not None and total > self._limit:
                raise PrivacyBudgetExhaustedError(_exhausted(replace(wanted, delta=strictest), total, self._limit))
            if known is None:
                book.chain.append(_reservation(wanted))
            return total

    def release(self, run: str, round: int, tries: int, *, result: str = "") -> None:
        """Note that the result is kept and about to leave: call it once that is so, and before anything is sent.

        Args:
            result: names the result, such as its digest in hex.

        Raises:
            MisuseError: it was never reserved, or another result has left under its charge; it must not leave.
        """
        with self._opened() as book:
            known = book.releases.get((run, round, tries))
            if known is None:
                raise MisuseError(f"round {round} of run {run} was never charged in {self._path}; reserve it first")
            if not known.released:
                book.chain.append({"kind": "release", "run": run, "round": round, "tries": tries, "result": result})
            elif known.result != result:
                raise MisuseError(f"round {round}, try {tries} has left with another result; this one was not charged")

    def _total(self, releases: Iterable[Release], delta: float, *more: Event) -> float:
        return epsilon([*(each.event for each in releases), *more], delta, self._accountant)

    @contextmanager
    def _opened(self) -> Iterator[_Book]:
        with chain.opened(self._path) as entries:
            yield _Book(entries)


def _reservation(release: Release) -> dict[str, Any]:
    return {
        "kind": "reserve",
        "data-set": release.fingerprint,
        "run": release.run,
        "round": release.round,
        "tries": release.tries,
        "unit": release.unit,
        "delta": release.delta,
        "event": event_as_dict(release.event),
        "time": release.time,
    }


def _from_reservation(values: dict[str, Any]) -> Release:
    return Release(
        values["data-set"],
        values["run"],
        values["round"],
        values["tries"],
        values["unit"],
        values["delta"],
        event_from_dict(values["event"]),
        values["time"],
    )


def _check_repeated(known: Release, wanted: Release) -> None:
    if not known.same_charge(wanted):
        raise MisuseError(f"round {wanted.round}, try {wanted.tries} was charged for something else; count a new try")
    if known.released:
        raise MisuseError(
            f"round {wanted.round}, try {wanted.tries} has been released; training it again is a new try to be charged"
        )


def _exhausted(wanted: Release, total: float, limit: float) -> str:
    what = f"round {wanted.round} would bring this data set's epsilon to {total:.4g} at delta {wanted.delta:g}"
    if isinstance(wanted.event, Unprotected):
        what = f"round {wanted.round} would be trained without differential privacy, or with no noise"
    return f"{what}, and this hospital's limit is {limit:g}; nothing was trained for it"


def _check_unit(before: Iterable[Release], event: Event, unit: str) -> None:
    """An ε about rows and one about pictures bound different things: no sum of the two bounds either."""
    units = {each.unit for each in before if not isinstance(each.event, Unprotected)}
    if not isinstance(event, Unprotected) and units - {unit}:
        raise MisuseError(
            f"this data set's releases so far protect the unit {min(units - {unit})!r}, and epsilon of different units "
            f"does not add up; keep that unit instead of {unit!r}"
        )
