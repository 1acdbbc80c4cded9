"""Whole runs on a hospital's own files: a folder of pictures with a CSV."""

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_kit import final_state
from own_kit import published, shard

from fedvlm_secure import data
from fedvlm_secure.engines import local
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.privacy.ledger import Ledger, fingerprint

Make = Callable[..., Settings]


class Listener(Observer):
    def __init__(self) -> None:
        self.skips: list[str] = []

    def skipped(self, what: str) -> None:
        self.skips.append(what)


@pytest.fixture
def own(settings: Make, csv_folder: Path) -> Make:
    return lambda *overrides: settings(f"data={csv_folder}", "rows.on-bad-row=skip", *overrides)


def test_two_rounds_on_a_folder_of_pictures(own: Make, csv_folder: Path, tmp_path: Path) -> None:
    heard = Listener()
    result = local.run(own(), tmp_path / "run", observer=heard)
    assert [row.site for row in result.sites] == ["clinic-a", "clinic-b", "clinic-c", "clinic-d"]
    rows = data.load(str(csv_folder), rows=data.RowSettings(on_bad_row="skip"))
    assert {row.site: row.rows for row in result.sites} == {
        site: len(split) for site, split in data.by_site(rows["train"]).items()
    }
    assert all(row.final is not None for row in result.sites)
    (said,) = heard.skips
    assert said.startswith(f"2 rows of {csv_folder} cannot be used and are skipped, the first: rows.csv line 162")
    assert final_state(local.run(own(), tmp_path / "again").folder) == final_state(result.folder)


def test_a_bad_row_ends_the_run_unless_it_may_be_skipped(own: Make, tmp_path: Path) -> None:
    with pytest.raises(
        MisuseError, match=r"rows\.csv line 162: picture outside the folder \(\.\./rows\.csv\); mend it"
    ):
        local.run(own("rows.on-bad-row=refuse"), tmp_path / "run")


def test_a_folder_for_each_site(settings: Make, csv_folder: Path, tmp_path: Path) -> None:
    lines = (csv_folder / "rows.csv").read_text().splitlines()
    places = {}
    for number, site in enumerate(("north", "st.-mary", "west")):
        folder = tmp_path / site
        folder.mkdir()
        (folder / "rows.csv").write_text("\n".join([lines[0], *lines[1 + 40 * number : 41 + 40 * number]]))
        for picture in range(40 * number, 40 * number + 40):
            (folder / f"{picture:03d}.png").write_bytes((csv_folder / f"{picture:03d}.png").read_bytes())
        places[site] = str(folder)
    chosen = settings("rounds=1", "training.steps=1")
    chosen = Settings.from_tables(chosen.model_dump(by_alias=True) | {"data": places})
    result = local.run(chosen, tmp_path / "run")
    assert [row.site for row in result.sites] == ["north", "st.-mary", "west"]
    assert all(row.final is not None for row in result.sites)
    assert Settings.from_toml(result.folder / "settings.toml") == chosen
    (tmp_path / "west/rows.csv").write_text("\n".join(lines[:1] + lines[81:82]))
    with pytest.raises(MisuseError, match=r"site 'west' of \[data\] has no rows in the split"):
        local.run(chosen, tmp_path / "again")


def test_published_shards_by_origin(settings: Make, tmp_path: Path) -> None:
    shard(tmp_path / "data/train-00000-of-00001.parquet", [published(number) for number in range(240)])
    half = ("device=cpu", "dtype=bfloat16")
    result = local.run(settings(f"data={tmp_path}", "rounds=1", "training.steps=1", *half), tmp_path / "run")
    assert [row.site for row in result.sites] == ["google-landmark", "mscoco", "vqa-v2"]
    assert all(row.final is not None for row in result.sites)


def test_a_kept_encoding_is_that_of_the_same_rows(own: Make, tmp_path: Path) -> None:
    encoded: local.Encoded = {}
    dealt = ("rows.partition=iid", "rows.sites=3", "rounds=1", "training.steps=1")
    local.run(own(*dealt), tmp_path / "one", encoded=encoded)
    local.run(own(*dealt, "rows.seed=1"), tmp_path / "two", encoded=encoded)
    assert len(encoded) == 6


def test_the_ledger_charges_own_rows_by_patient(own: Make, tmp_path: Path) -> None:
    private = ("privacy.mode=record", "privacy.noise-multiplier=2", "adapter.init=random", "adapter.layers=1")
    unit = ("privacy.unit=patient", f"privacy.ledger={tmp_path / 'ledgers'}")
    chosen = own(*private, *unit, "rounds=1", "training.steps=1")
    local.run(chosen, tmp_path / "run")
    wanted = data.RowSettings(on_bad_row="skip", unit="patient")
    rows = data.load(str(chosen.data), rows=wanted)
    for site, train in data.by_site(rows["train"]).items():
        releases = list(Ledger(tmp_path / "ledgers" / f"{site}.sqlite", accountant="prv").releases())
        assert {(each.fingerprint, each.unit) for each in releases} == {
            (fingerprint(data.row_digests(train)), "patient")
        }
