import io

import datasets
import numpy as np
import pytest
from PIL import Image

from fedvlm_secure.data.units import row_digests, units_of
from fedvlm_secure.errors import MisuseError


def picture(shade: int, kind: str = "PNG") -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def rows() -> datasets.Dataset:
    columns = {
        "image": [picture(10), picture(20), picture(10, "BMP"), picture(30)],
        "question": ["a", "b", "c", "d"],
        "chosen": ["1", "2", "3", "4"],
        "patient": ["p2", "p1", "p2", "p2"],
        "visit": ["v1", "", "v1", "v2"],
    }
    texts = {name: datasets.Value("string") for name in columns if name != "image"}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), **texts}))


def test_units_group_what_belongs_together(rows: datasets.Dataset) -> None:
    assert units_of(rows, "row").tolist() == [0, 1, 2, 3]
    assert units_of(rows, "image").tolist() == [0, 1, 0, 2]  # however the picture was saved
    assert units_of(rows, "patient").tolist() == [0, 1, 0, 0]


def test_a_unit_that_is_no_column_or_not_filled_in(rows: datasets.Dataset) -> None:
    with pytest.raises(MisuseError, match=r"no column of the rows; choices: image, row, or one of .*patient"):
        units_of(rows, "person")
    with pytest.raises(MisuseError, match="row 1 has nothing"):
        units_of(rows, "visit")


def test_a_missing_number_is_no_unit() -> None:
    patients = datasets.Dataset.from_dict({"patient": [1.0, float("nan"), 1.0], "visits": [[1], [2], [3]]})
    with pytest.raises(MisuseError, match="row 1 has nothing"):
        units_of(patients, "patient")
    with pytest.raises(MisuseError, match="more than text and numbers"):
        units_of(patients, "visits")


def test_a_rows_digest_follows_picture_question_and_answer(rows: datasets.Dataset) -> None:
    digests = list(row_digests(rows))
    assert len(set(digests)) == 4
    assert list(row_digests(rows.select([2, 0]))) == [digests[2], digests[0]]
    other = rows.map(lambda row: {**row, "chosen": row["question"], "question": row["chosen"]})
    assert not set(row_digests(other)) & set(digests)
