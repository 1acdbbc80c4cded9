"""Which site holds which row."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from own_kit import published, shard

from fedvlm_secure import data
from fedvlm_secure.data.own import RowSettings
from fedvlm_secure.data.partition import PARTITIONERS, question_type, sites_of
from fedvlm_secure.errors import MisuseError

ANSWERS = ("red", "green", "blue", "grey")


def columns(count: int = 400, **other: list[str]) -> dict[str, list[str]]:
    """Rows of which two each are about one picture, with answers that differ between pictures."""
    pictures = [number // 2 for number in range(count)]
    made = {
        "site": ["" for _ in pictures],
        "chosen": [ANSWERS[picture % 4] for picture in pictures],
        "origin_dataset": [("MSCOCO", "VQA v2")[picture % 2] for picture in pictures],
        "origin_split": [json.dumps({"type": ("question answering", "short")[row % 2]}) for row in range(count)],
        "image_path": [f"{picture}.png" for picture in pictures],
    }
    return made | other


def settings(partition: str, **other: Any) -> RowSettings:
    return RowSettings(partition, **({"sites": 4} | other))


def skew(sites: list[str], labels: list[str]) -> float:
    """How far the sites' shares of labels are from those of all, from 0 to 1: the mean total variation."""
    overall, total = Counter(labels), len(labels)
    distances = []
    for site in set(sites):
        own = Counter(label for at, label in zip(sites, labels, strict=True) if at == site)
        distances.append(sum(abs(own[label] / own.total() - overall[label] / total) for label in overall) / 2)
    return sum(distances) / len(distances)


def test_natural_sites() -> None:
    rows = columns(4, site=["North", "St. Mary's", "North", "North"])
    assert sites_of(rows, RowSettings()) == ["north", "st.-mary-s", "north", "north"]
    assert sites_of(columns(4), RowSettings()) == ["mscoco", "mscoco", "vqa-v2", "vqa-v2"]
    by_type = sites_of(columns(4), RowSettings(by="question-type"))
    assert by_type == ["question-answering", "short"] * 2
    both = sites_of(columns(4), RowSettings(by="origin_dataset+question-type"))
    assert both == ["mscoco-question-answering", "mscoco-short", "vqa-v2-question-answering", "vqa-v2-short"]


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        (["North", ""], "1 rows have '' there, which names no site"),
        (["North", "??"], "which names no site"),
        (["North", "north"], "'North' and 'north' would both be the site 'north'"),
    ],
)
def test_sites_that_cannot_be_told(sites: list[str], reason: str) -> None:
    with pytest.raises(MisuseError, match=reason):
        sites_of(columns(2, site=sites), RowSettings())


def test_question_types() -> None:
    assert question_type('{"model": "m", "type": "detailed description"}') == "detailed description"
    assert question_type("plane") == "plane"
    assert question_type("{}") == question_type("") == ""


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_every_row_is_dealt_and_pictures_stay_together(kind: str) -> None:
    rows = columns(394)  # divides by nothing
    dealt = sites_of(rows, settings(kind))
    assert set(dealt) == {"site-1", "site-2", "site-3", "site-4"}
    assert len(set(zip(dealt, rows["image_path"], strict=True))) == 197
    assert dealt == sites_of(rows, settings(kind))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shard"])
def test_another_seed_is_another_deal(kind: str) -> None:
    assert sites_of(columns(), settings(kind, seed=1)) != sites_of(columns(), settings(kind))


def test_partitions_are_as_skewed_as_they_say() -> None:
    rows = columns(2000)
    even, mild, strong = (
        skew(sites_of(rows, made), rows["chosen"])
        for made in (settings("iid"), settings("dirichlet", alpha=100.0), settings("dirichlet", alpha=0.1, seed=3))
    )
    assert even < 0.1
    assert mild < 0.2 < 0.4 < strong
    for kind in ("pathological", "shard"):
        held = set(zip(sites_of(rows, settings(kind)), rows["chosen"], strict=True))
        assert Counter(Counter(site for site, _ in held).values()).keys() <= {1, 2}
    origins = sites_of(rows, settings("pathological", by="origin_dataset", sites=2))
    assert skew(origins, rows["origin_dataset"]) < 0.1


def test_a_deal_that_cannot_be() -> None:
    with pytest.raises(MisuseError, match=r"cannot deal 5 pictures with 4 values in 'chosen' to 8 sites"):
        sites_of(columns(10), settings("iid", sites=8))
    many = columns(400, chosen=[str(row) for row in range(400)])  # every answer is one of its own
    for kind in ("dirichlet", "pathological"):
        with pytest.raises(MisuseError, match=r"with 200 values in 'chosen' .* name another column in rows\.by"):
            sites_of(many, settings(kind))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(MisuseError, match=r"pip install 'fedvlm-secure\[partition\]'"):
        sites_of(columns(), settings("iid"))


def test_splits_keep_their_rows_whoever_holds_them(tmp_path: Path, data_folder: Path) -> None:
    shard(tmp_path / "a.parquet", [published(number) for number in range(200)])
    natural = data.load(str(tmp_path))
    dealt = data.load(str(tmp_path), rows=settings("iid"))
    assert set(natural["train"]["site"]) == {"mscoco", "vqa-v2", "google-landmark"}
    for split, rows in natural.items():
        assert dealt[split].remove_columns("site").to_dict() == rows.remove_columns("site").to_dict()
        assert set(dealt[split]["site"]) == {"site-1", "site-2", "site-3", "site-4"}
    saved = data.load(str(data_folder), rows=settings("iid", sites=2))
    assert {site: len(rows) for site, rows in data.by_site(saved["train"]).items()}.keys() == {"site-1", "site-2"}
    with pytest.raises(MisuseError, match="asks for 'ward', which is no column"):
        data.load(str(data_folder), rows=RowSettings(by="ward"))


def test_fewer_rows_of_a_saved_data_set_are_of_all_its_sites(data_folder: Path) -> None:
    few = data.load(str(data_folder), rows=RowSettings(max_rows=40))
    assert {split: len(rows) for split, rows in few.items()} == {"train": 24, "validation": 8, "test": 8}
    assert all(len(data.by_site(rows)) == 4 for rows in few.values())
    unchanged = data.load(str(data_folder))["train"]["site"]
    assert list(unchanged) == [f"site-{letter}" for letter in "abcd" for _ in range(24)]
