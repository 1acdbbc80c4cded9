"""What can be read at all, and from where."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_kit import published, shard

from fedvlm_secure.data.raw import BadRow, Raw, find
from fedvlm_secure.errors import MisuseError


def rows(place: Path) -> list[Raw | BadRow]:
    return list(find(str(place))[1])


def faults(place: Path) -> list[str]:
    return [str(row) for row in rows(place) if isinstance(row, BadRow)]


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_as_spreadsheets_write_it(tmp_path: Path, sign: str, encoding: str) -> None:
    lines = [["image", "question", "answer"], ["a.png", '"Which side,\nplease; say?"', "links – göß"]]
    (tmp_path / "rows.csv").write_text("\r\n".join(sign.join(line) for line in lines), encoding, newline="")
    (found,) = rows(tmp_path)
    assert found == Raw(
        "rows.csv line 3",
        {"image": "a.png", "question": "Which side,\nplease; say?", "answer": "links – göß"},
        tmp_path,
    )


def test_broken_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,question,answer\nx,y,z,more\nx,y,z\n")
    (tmp_path / "b.csv").write_text('image,question,answer\nx,"y"y,z\n')
    (tmp_path / "c.csv").write_bytes("image,question,answer\nx,y,gr\xfcn\n".encode("latin-1"))
    (tmp_path / "d.csv").write_text("picture,question,answer\n")
    assert faults(tmp_path / "a.csv") == ["a.csv line 2: more fields than the header names"]
    assert len(rows(tmp_path / "a.csv")) == 2
    assert faults(tmp_path / "b.csv")[0].startswith("b.csv: no CSV from some row on")
    assert faults(tmp_path / "c.csv") == ["c.csv: the text is not UTF-8 from some row on"]
    assert faults(tmp_path / "d.csv") == ["d.csv: no column 'image'"]


def test_lines_of_json(tmp_path: Path) -> None:
    good = json.dumps({"image": "a.png", "question": "q", "answer": "a"})
    deep = "[" * 100_000
    (tmp_path / "rows.jsonl").write_text(f"{good}\n\n[1]\n{good[:-1]}\n{deep}\n{good}\n")
    assert faults(tmp_path) == [f"rows.jsonl line {line}: no JSON object" for line in (3, 4, 5)]
    assert [row.where for row in rows(tmp_path) if isinstance(row, Raw)] == ["rows.jsonl line 1", "rows.jsonl line 6"]


def test_shards_are_read_in_order_from_the_top_or_from_data(tmp_path: Path) -> None:
    for part in (1, 0):
        shard(tmp_path / f"set/data/train-{part:05d}-of-00002.parquet", [published(2 * part), published(2 * part + 1)])
    name, _ = find(str(tmp_path / "set"))
    assert name == "set"
    assert [row.values["idx"] for row in rows(tmp_path / "set") if isinstance(row, Raw)] == ["0", "1", "2", "3"]
    alone = rows(tmp_path / "set/data/train-00001-of-00002.parquet")
    assert [row.where for row in alone] == [f"train-00001-of-00002.parquet row {row}" for row in (0, 1)]


def test_a_shard_without_a_column_or_cut_short(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "question": ["q"]}), tmp_path / "a.parquet")
    whole = shard(tmp_path / "b.parquet", [published(0)]).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    first, second = faults(tmp_path)
    assert first == "a.parquet: no column 'answer'"
    assert second.startswith("b.parquet: unreadable parquet")


def test_a_shard_is_not_read_further_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "a.parquet", [published(number) for number in range(500)])
    read = []

    class Batches(pq.ParquetFile):
        def iter_batches(self, *given: Any, **named: Any) -> Iterator[Any]:
            for batch in super().iter_batches(*given, **named):
                read.append(len(batch))
                yield batch

    monkeypatch.setattr(pq, "ParquetFile", Batches)
    _, found = find(str(tmp_path))
    for _ in range(10):
        next(found)
    assert sum(read) < 100


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"holds no data set: no file ending in \.csv, \.jsonl, \.parquet"):
        find(str(tmp_path))
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(MisuseError, match="name one file"):
        find(str(tmp_path))
    (tmp_path / "a.pickle").touch()
    with pytest.raises(MisuseError, match="no file that can be read"):
        find(str(tmp_path / "a.pickle"))
    for nothing in ("hospital", "/no/where", "a/b/c"):
        with pytest.raises(MisuseError, match=r"is not known; choices: hospitals, .*easy-vqa"):
            find(nothing)


def test_the_hub_streams_and_leaves_pictures_undecoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    shard(tmp_path / "train.parquet", [published(number) for number in range(6)])

    def load_dataset(name: str, **named: object) -> datasets.IterableDatasetDict:
        asked.append((name, named))
        stored = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path))
        return datasets.IterableDatasetDict({"train": stored.to_iterable_dataset()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    name, found = find("openbmb/RLAIF-V-Dataset")
    assert (name, asked) == ("RLAIF-V-Dataset", [])
    first = next(found)
    assert isinstance(first, Raw)
    assert asked == [("openbmb/RLAIF-V-Dataset", {"streaming": True})]  # and no leave to run code
    assert (first.where, first.folder) == ("openbmb/RLAIF-V-Dataset train row 0", None)
    assert set(first.values["image"]) == {"bytes", "path"}


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **named: object) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        MisuseError, match="'my/rows' is no file or folder here, and cannot be read from the hub: no route"
    ):
        next(find("my/rows")[1])
