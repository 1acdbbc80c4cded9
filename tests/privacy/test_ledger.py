"""A hospital's ledger: what it charges, what it refuses, and what it notices."""

import json
import math
import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedvlm_secure.errors import MisuseError, PrivacyBudgetExhaustedError, VerificationError
from fedvlm_secure.privacy import chain
from fedvlm_secure.privacy.accounting import Event, SampledGaussian, Unprotected, epsilon
from fedvlm_secure.privacy.chain import Head
from fedvlm_secure.privacy.distributed import DistributedGaussian
from fedvlm_secure.privacy.ledger import Ledger, fingerprint

DATA, OTHER = "a" * 64, "b" * 64
EVENT = SampledGaussian(1.0, 1.0, 3)  # every unit in every step: exact, and quick to compose
DELTA = 1e-5


def spent(count: int, delta: float = DELTA) -> float:
    return epsilon([EVENT] * count, delta)


def reserve(ledger: Ledger, round: int, **changes: Any) -> float:
    charge: dict[str, Any] = {"fingerprint": DATA, "event": EVENT, "unit": "image", "delta": DELTA}
    run, tries = changes.pop("run", "run-1"), changes.pop("tries", 1)
    return ledger.reserve(run, round, tries, **(charge | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "st-mary.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(path)


def test_releases_add_up_across_runs_and_openings(path: Path, ledger: Ledger) -> None:
    assert ledger.spent(DATA, DELTA) == 0
    assert ledger.would_spend(DATA, EVENT, "image", DELTA) == spent(1)
    assert reserve(ledger, 1) == spent(1)
    ledger.release("run-1", 1, 1)
    assert reserve(Ledger(path), 2) == spent(2)
    assert reserve(Ledger(path), 1, run="run-2") == spent(3)
    assert reserve(Ledger(path), 1, run="run-3", fingerprint=OTHER) == spent(1)
    assert Ledger(path).spent(DATA, DELTA) == spent(3)
    assert Ledger(path).spent(DATA, 1e-7) == spent(3, 1e-7) > spent(3)
    assert ledger.would_spend(DATA, EVENT, "image", DELTA) == spent(4)
    assert ledger.spent(DATA, DELTA) == spent(3)


def test_what_was_written_is_read_again(path: Path, ledger: Ledger) -> None:
    event = SampledGaussian(0.1 + 0.2, 1 / 3, 60)
    reserve(ledger, 4, tries=2, event=event, unit="patient id")
    ledger.release("run-1", 4, 2)
    reserve(ledger, 1, run="run-2", fingerprint=OTHER, event=Unprotected())
    first, second = Ledger(path).releases()
    assert (first.key, first.fingerprint, first.unit, first.delta) == (("run-1", 4, 2), DATA, "patient id", DELTA)
    assert (first.event, first.released) == (event, True)
    assert (second.event, second.released) == (Unprotected(), False)
    assert second.time >= first.time > 1_600_000_000


def test_a_training_that_is_repeated_is_charged_once(path: Path, ledger: Ledger) -> None:
    assert reserve(ledger, 1) == reserve(Ledger(path), 1) == spent(1)
    assert len(ledger.releases()) == 1
    assert reserve(ledger, 1, tries=2) == spent(2)


@pytest.mark.parametrize(
    "change",
    [
        {"event": SampledGaussian(1.1, 1.0, 3)},
        {"event": SampledGaussian(1.0, 1.0, 2)},
        {"event": Unprotected()},
        {"fingerprint": OTHER},
        {"delta": 1e-6},
        {"unit": "row"},
    ],
)
def test_a_key_stands_for_one_charge(ledger: Ledger, change: dict[str, Any]) -> None:
    reserve(ledger, 1)
    before = ledger.head()
    with pytest.raises(MisuseError, match="something else"):
        reserve(ledger, 1, **change)
    assert ledger.head() == before


def test_what_was_released_is_not_trained_again_for_free(ledger: Ledger) -> None:
    reserve(ledger, 1)
    ledger.release("run-1", 1, 1)
    ledger.release("run-1", 1, 1)
    with pytest.raises(MisuseError, match="new try"):
        reserve(ledger, 1)
    assert reserve(ledger, 1, tries=2) == spent(2)


def test_nothing_is_released_that_was_not_charged(ledger: Ledger) -> None:
    reserve(ledger, 1)
    for key in (("run-1", 2, 1), ("run-1", 1, 2), ("run-2", 1, 1)):
        with pytest.raises(MisuseError, match="never charged"):
            ledger.release(*key)


def test_the_limit_holds_before_training(path: Path) -> None:
    ledger = Ledger(path, limit=(spent(2) + spent(3)) / 2)
    reserve(ledger, 1)
    reserve(ledger, 2)
    before = ledger.head()
    with pytest.raises(PrivacyBudgetExhaustedError, match="nothing was trained") as refused:
        reserve(ledger, 3)
    assert "\n" not in str(refused.value)
    assert ledger.head() == before
    assert reserve(ledger, 2) == spent(2)
    assert reserve(ledger, 1, run="run-2", fingerprint=OTHER) == spent(1)
    with pytest.raises(PrivacyBudgetExhaustedError):
        reserve(Ledger(path, limit=spent(1)), 2)
    assert reserve(Ledger(path, limit=spent(3)), 3) == spent(3)


def test_without_noise_no_limit_holds(path: Path) -> None:
    with pytest.raises(PrivacyBudgetExhaustedError, match="without differential privacy"):
        reserve(Ledger(path, limit=1e9), 1, event=Unprotected())
    assert reserve(Ledger(path), 1, event=Unprotected(), unit="none") == math.inf
    with pytest.raises(PrivacyBudgetExhaustedError):
        reserve(Ledger(path, limit=1e9), 2)


def test_units_do_not_mix(ledger: Ledger) -> None:
    reserve(ledger, 1)
    for act in (
        lambda: reserve(ledger, 2, unit="row"),
        lambda: ledger.would_spend(DATA, EVENT, "row", DELTA),
    ):
        with pytest.raises(MisuseError, match="'image'"):
            act()
    assert reserve(ledger, 2, unit="row", fingerprint=OTHER) == spent(1)


def test_the_files_are_for_their_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        reserve(Ledger(path), 1)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys([path.name, f"{path.name}.anchor", f"{path.name}.lock"], 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


class Copies:
    """The ledger's files as they were."""

    def __init__(self, path: Path) -> None:
        self.path, self.anchor = path, chain.anchor_of(path)
        self.file, self.mark = path.read_bytes(), self.anchor.read_bytes()


def test_a_file_that_was_rolled_back_is_refused(path: Path, ledger: Ledger) -> None:
    reserve(ledger, 1)
    old = Copies(path)
    reserve(ledger, 2)
    new = Copies(path)
    path.write_bytes(old.file)
    refuses(path, "L-2")
    path.unlink()
    refuses(path, "L-2")
    path.write_bytes(new.file)
    old.anchor.unlink()
    refuses(path, "L-2")
    for damaged in (
        b"",
        b"{}",
        b'{"entries":9,"sha256":""}',
        b'{"entries":0,"sha256":""}',
        b'{"entries":1,"sha256":""}',
    ):
        old.anchor.write_bytes(damaged)
        refuses(path, "L-2")
    old.anchor.write_bytes(new.mark)
    assert len(Ledger(path).releases()) == 2


def test_another_ledger_in_its_place_is_refused(path: Path, ledger: Ledger) -> None:
    reserve(ledger, 1)
    other = Ledger(path.with_name("other.sqlite"))
    reserve(other, 1)
    reserve(other, 2)
    path.write_bytes(path.with_name("other.sqlite").read_bytes())
    refuses(path, "L-2")


def test_a_run_notices_what_the_anchor_cannot(path: Path, ledger: Ledger) -> None:
    """File and anchor restored from one copy, or both deleted."""
    reserve(ledger, 1)
    old, then = Copies(path), ledger.head()
    reserve(ledger, 2)
    now = ledger.head()
    ledger.extends(then)
    ledger.extends(now)
    path.write_bytes(old.file)
    old.anchor.write_bytes(old.mark)
    Ledger(path).extends(then)
    for act in (now, Head(then.entries, bytes(32)), Head(0, b""), Head(-1, then.hash), Head(now.entries, b"")):
        with pytest.raises(VerificationError, match="L-3"):
            Ledger(path).extends(act)
    path.unlink()
    old.anchor.unlink()
    with pytest.raises(VerificationError, match="L-3"):
        Ledger(path).extends(then)


def test_a_crash_before_the_anchor_is_none_of_these(path: Path, ledger: Ledger) -> None:
    reserve(ledger, 1)
    old = Copies(path)
    reserve(ledger, 2)
    old.anchor.write_bytes(old.mark)
    assert Ledger(path).spent(DATA, DELTA) == spent(2)
    reserve(ledger, 3)
    assert json.loads(old.anchor.read_text())["entries"] == 4


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE entry SET content = replace(content, '\"steps\":3', '\"steps\":1') WHERE number = 2",
        "UPDATE entry SET content = CAST(content AS BLOB) WHERE number = 2",
        "UPDATE entry SET hash = zeroblob(32) WHERE number = 3",
        "DELETE FROM entry WHERE number = 2",
        "DELETE FROM entry WHERE number = 1",
        "DELETE FROM entry WHERE number >= 3",
        "DELETE FROM entry",
        "UPDATE entry SET number = number + 1 WHERE number = 4",
        "INSERT INTO entry SELECT 9, content, hash FROM entry WHERE number = 2",
    ],
)
def test_an_edited_file_is_refused(path: Path, ledger: Ledger, edit: str) -> None:
    for index in (1, 2, 3):
        reserve(ledger, index)
    with closing(sqlite3.connect(path)) as rows:
        assert rows.execute(edit).rowcount >= 1
        rows.commit()
    refuses(path, "L-1", "L-2")


def test_a_chain_made_anew_does_not_fit_the_anchor(path: Path, ledger: Ledger) -> None:
    for index in (1, 2):
        reserve(ledger, index)
    contents = [content for content, _ in ledger.entries()]
    contents[1] = contents[1].replace('"steps":3', '"steps":1')
    with closing(sqlite3.connect(path)) as rows:
        before = chain.GENESIS
        for number, content in enumerate(contents, 1):
            before = chain._link(before, content)
            rows.execute("UPDATE entry SET content = ?, hash = ? WHERE number = ?", (content, before, number))
        rows.commit()
    refuses(path, "L-2")


def test_damage_is_told_from_absence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no ledger"):
        Ledger(path, create=False)
    assert not path.parent.exists()
    reserve(Ledger(path), 1)
    whole = path.read_bytes()
    for broken in (whole[:100], b"", whole[:4096], b"x" * len(whole)):
        path.write_bytes(broken)
        with pytest.raises((MisuseError, VerificationError)):
            Ledger(path)
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as rows:
        rows.execute("CREATE TABLE entry (number)")
    with pytest.raises((MisuseError, VerificationError)):
        Ledger(other)


def test_a_full_disk_charges_nothing_and_breaks_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    reserve(ledger, 1)
    connect = chain._connect

    def cramped(place: Path) -> sqlite3.Connection:
        rows = connect(place)
        rows.execute("PRAGMA max_page_count = 1")
        return rows

    monkeypatch.setattr(chain, "_connect", cramped)
    charge = (reserve(ledger, index) for index in range(2, 200))
    with pytest.raises(MisuseError, match="full"):
        list(charge)
    monkeypatch.undo()
    rounds = [release.round for release in Ledger(path).releases()]
    assert rounds == list(range(1, len(rounds) + 1))
    assert reserve(ledger, len(rounds) + 1) == spent(len(rounds) + 1)


def test_an_anchor_that_could_not_be_written_charges_too_much_at_worst(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Path, content: bytes, mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain, "write", full)
    with pytest.raises(OSError, match="No space"):
        reserve(ledger, 1)
    monkeypatch.undo()
    assert Ledger(path).spent(DATA, DELTA) == spent(1)
    assert reserve(ledger, 1) == spent(1)


def test_threads_do_not_both_spend_the_last_of_it(path: Path) -> None:
    limit = (spent(3) + spent(4)) / 2
    ledgers = [Ledger(path, limit=limit) for _ in range(8)]
    outcomes: list[bool] = []

    def spend(number: int) -> None:
        try:
            reserve(ledgers[number], 1, run=f"run-{number}")
            outcomes.append(True)
        except PrivacyBudgetExhaustedError:
            outcomes.append(False)

    threads = [threading.Thread(target=spend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 5 + [True] * 3
    assert Ledger(path).spent(DATA, DELTA) == spent(3)


def test_a_file_in_use_is_waited_for_and_then_refused(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "WAIT_SECONDS", 0.05)
    with chain.opened(path), pytest.raises(MisuseError, match="another process"):
        ledger.head()
    ledger.head()


def test_the_fingerprint_is_of_the_rows_in_any_order() -> None:
    rows = [bytes([value]) * 32 for value in (1, 2, 3)]
    first = fingerprint(rows)
    assert len(first) == 64
    assert first == fingerprint(reversed(rows)) == fingerprint(iter(rows))
    others = [fingerprint(each) for each in ([], rows[:2], [*rows, rows[0]], [*rows[:2], rows[0]])]
    assert len({first, *others}) == 5
    with pytest.raises(MisuseError, match="SHA-256"):
        fingerprint([b"short"])


def test_every_event_survives_the_ledger(ledger: Ledger) -> None:
    sums = DistributedGaussian(1.0, 0.1, 2176, 1e-6 / 3, min_survivors=5, max_corrupt=1, answered=3)
    events: list[Event] = [SampledGaussian(0.1, 1e-9, 1 << 40), Unprotected(), sums]
    for index, event in enumerate(events, 1):
        reserve(ledger, index, event=event, fingerprint=f"{index:064}")
    assert [release.event for release in ledger.releases()] == events


def refuses(path: Path, *clauses: str) -> None:
    with pytest.raises(VerificationError) as refused:
        Ledger(path)
    assert refused.value.clause in clauses
