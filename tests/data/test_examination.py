"""What an examination says of a data set, without a model: tokens are counted by the length of the question here."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from own_kit import published, shard

from fedvlm_secure import data
from fedvlm_secure.data.own import RowSettings
from fedvlm_secure.errors import MisuseError


def look(place: Path | str, **settings: Any) -> dict[str, Any]:
    return data.check(str(place), RowSettings(**settings), lambda row: len(row["question"]), 12)


def test_a_sound_data_set(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", [published(number) for number in range(300)])
    found = look(tmp_path)
    assert found["problems"] == []
    assert (found["rows"], found["faults"]) == (300, {"count": 0, "reasons": {}, "rows": []})
    loaded = data.load(str(tmp_path))
    assert found["splits"] == {split: len(rows) for split, rows in loaded.items()}
    for split, rows in loaded.items():
        assert {site: len(own) for site, own in data.by_site(rows).items()} == {
            site: counts[split] for site, counts in found["sites"].items()
        }
    assert found["answers"]["question answering"]["rows"] == found["answers"]["detailed description"]["rows"] == 150
    assert found["answers"]["question answering"]["top"] == {"It is 0.": 50, "It is 1.": 50, "It is 2.": 50}
    assert found["tokens"] == {"limit": 12, "shortest": 10, "median": 12, "longest": 12, "over": []}
    assert found["labels"]["by"] == "chosen"
    assert sum(found["labels"]["sites"]["mscoco"].values()) == sum(found["sites"]["mscoco"].values())


def test_what_keeps_a_run_from_starting(tmp_path: Path) -> None:
    rows = [published(number) for number in range(300)]
    rows[7]["chosen"] = rows[9]["chosen"] = ""
    rows[11]["question"] = "x" * 40
    rows[13]["origin_dataset"] = "seen once"
    shard(tmp_path / "a.parquet", rows)
    found = look(tmp_path)
    assert found["rows"] == 298
    assert found["faults"]["reasons"] == {"empty answer": 2}
    assert [each["where"] for each in found["faults"]["rows"]] == ["a.parquet row 7", "a.parquet row 9"]
    assert found["tokens"]["over"] == [{"where": "a.parquet row 11", "tokens": 40}]
    refused, *lonely, long = found["problems"]
    assert refused.startswith('2 rows cannot be used; mend them, or skip them with rows.on-bad-row = "skip"')
    assert len(lonely) == 2
    assert all("site 'seen-once' has no rows in the split" in problem for problem in lonely)
    assert long == "1 rows have more than 12 tokens, the first: a.parquet row 11; shorten them"
    assert look(tmp_path, on_bad_row="skip")["problems"] == [*lonely, long]


def test_sites_that_cannot_be_dealt_are_a_problem_among_others(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", [published(number) for number in range(6)])
    found = look(tmp_path, partition="iid", sites=50)
    assert found["rows"] == 6
    assert found["sites"] == {}
    assert "cannot deal 3 pictures" in found["problems"][0]


def test_nothing_fit_and_nothing_there(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", [published(0, chosen="")])
    assert look(tmp_path)["problems"] == ["no row can be used; the first fault: a.parquet row 0: empty answer"]
    with pytest.raises(MisuseError, match="is not known"):
        look(tmp_path / "none")


def test_a_saved_data_set(data_folder: Path, tmp_path: Path) -> None:
    found = look(data_folder, max_rows=80)
    # The same plain picture is in all three: they are split already, and nothing moves or drops a row.
    assert found["splits"] == {"train": 48, "validation": 16, "test": 16}
    assert (found["faults"]["count"], found["warnings"]) == (0, [])
    rows = datasets.DatasetDict.load_from_disk(str(data_folder))
    moved = rows["test"].select(range(2)).map(lambda row: {"image_path": "train/a/0", "chosen": ""})
    rows["test"] = datasets.concatenate_datasets([rows["test"], moved.select([0])])
    rows["validation"] = rows["validation"].map(lambda row, at: {"image_path": f"train/a/{at}"}, with_indices=True)
    rows.save_to_disk(str(tmp_path / "odd"))
    odd = look(tmp_path / "odd")
    assert odd["problems"][0] == (
        "1 rows have faults, and a saved data set is used as it is; the first: test row 32: empty answer"
    )
    assert odd["warnings"] == ["24 values of 'image_path' are in several splits: tests will say too much"]


def test_a_place_for_each_site(tmp_path: Path) -> None:
    for site, count in (("north", 60), ("south", 40)):
        shard(tmp_path / site / "a.parquet", [published(number) for number in range(count)])
    shard(tmp_path / "empty/a.parquet", [published(0, chosen="")])
    place = {"north": str(tmp_path / "north"), "south": str(tmp_path / "south/a.parquet")}
    found = data.check(place, RowSettings(), lambda row: 3, 12)
    assert (found["data"], found["rows"], found["problems"], found["warnings"]) == ("[data]", 100, [], [])
    loaded = data.load(place)
    for split, rows in loaded.items():
        assert {site: len(own) for site, own in data.by_site(rows).items()} == {
            site: counts[split] for site, counts in found["sites"].items()
        }
    found = data.check(place | {"west": str(tmp_path / "empty")}, RowSettings(on_bad_row="skip"), lambda row: 3, 12)
    assert [fault["where"] for fault in found["faults"]["rows"]] == ["west: a.parquet row 0"]
    assert found["problems"] == [f"site 'west' has no rows in the split '{split}'" for split in loaded]


def test_many_answers_are_put_together(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", [published(number, chosen=str(number % 9)) for number in range(90)])
    counts = look(tmp_path)["labels"]["sites"]["mscoco"]
    assert len(counts) == 6
    assert list(counts)[-1] == "(other)"
    many = [published(number, origin_split=f"type {number}") for number in range(90)]
    shard(tmp_path / "a.parquet", many)
    assert list(look(tmp_path)["answers"]) == ["all"]
