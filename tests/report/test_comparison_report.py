"""A comparison's table, figure and page, from files alone."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report import SiteRow, comparison, comparison_page
from fedvlm_secure.report.comparison import load
from fedvlm_secure.report.study import site_figures

ROWS = {"big": 4000, "small <b>": 400}
# Final accuracies of (big, small) for seeds 0, 1, 2.
FINAL = {
    ("hospitals", "plora"): [(0.90, 0.80), (0.92, 0.82), (0.94, 0.84)],
    ("hospitals", "lora"): [(0.80, 0.50), (0.82, 0.52), (0.84, 0.54)],
    ("hospitals", "local"): [(0.85, 0.60), (0.85, 0.60), (0.85, 0.60)],
    ("hospitals-iid", "plora"): [(0.90, 0.90), (0.90, 0.90), (0.90, 0.90)],
    ("hospitals-iid", "lora"): [(0.90, 0.90), (0.90, 0.90), (0.90, 0.90)],
}
BASE, GUESS = 0.0, 0.25


def cell(level: str, strategy: str, seed: int, finals: tuple[float, float], validation: float = 0.5) -> dict:
    rows = [SiteRow(s, "what <i>it</i> is", n, GUESS, BASE, a) for (s, n), a in zip(ROWS.items(), finals, strict=True)]
    return {
        "data": level,
        "strategy": strategy,
        "seed": seed,
        "tuned": ["training.learning-rate=0.002"],
        "sites": [site_figures(row) for row in rows],
        "newcomer": {"rows": 240, "steps": 60, "question-only": 0.25, "zero-shot": 0.40, "trained": 0.70},
        "validation": validation,
        "shared-parameters": 55296,
        "upload-bytes": 338000.0,
        "training-seconds": 240.0,
        "protocol": "pairwise",
        "versions": {"fedvlm-secure": "9.9"},
        "insecure": [],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "study"
    cells = {
        f"{level}-{strategy}-seed-{seed}": cell(level, strategy, seed, finals)
        for (level, strategy), each in FINAL.items()
        for seed, finals in enumerate(each)
    }
    tuning = {
        f"tune-{strategy}-{place}": cell("hospitals", strategy, 1000, (0.1, 0.1), validation)
        | {"tuned": [f"training.learning-rate=0.00{place + 1}"], "newcomer": None}
        for strategy in ("plora", "lora", "local")
        for place, validation in enumerate((0.41, 0.62))
    }
    (folder / "cells").mkdir(parents=True)
    for name, figures in {**cells, **tuning}.items():
        (folder / "cells" / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")
    asked = {
        "command": "fedvlm-secure compare --seeds 3",
        "levels": ["hospitals", "hospitals-iid"],
        "strategies": ["plora", "lora", "local"],
        "candidates": [["training.learning-rate=0.001"], ["training.learning-rate=0.002"]],
        "settings": 'rounds = 12\ndata = "hospitals"\n',
        "tuning": list(tuning),
        "cells": [*cells, "hospitals-iid-local-seed-0"],
    }
    (folder / "study.json").write_text(json.dumps(asked), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return comparison_page.write(folder).read_text(encoding="utf-8")


def test_the_lead_is_relative_and_paired_by_seed(folder):
    study = load(folder)
    ratios = [0.85 / 0.65, 0.87 / 0.67, 0.89 / 0.69]
    assert study.lead("hospitals", "plora", "lora").mean == pytest.approx(sum(ratios) / 3 - 1)
    assert study.lead("hospitals-iid", "plora", "lora").mean == 0.0
    assert study.accuracy("hospitals", "plora").mean == pytest.approx(0.87)


def test_rows_hold_the_worst_the_small_and_the_newcomer(folder):
    plora, lora, local = comparison_page.rows(load(folder), "hospitals")
    assert [row["strategy"] for row in (plora, lora, local)] == ["plora", "lora", "local"]
    assert plora["worst"].mean == plora["small"].mean == pytest.approx(0.82)
    assert (plora["zero_shot"].mean, plora["trained"].mean) == (pytest.approx(0.4), pytest.approx(0.7))
    assert (lora["lead"], plora["upload"].mean, plora["seconds"].mean) == (None, 338000.0, 240.0)
    assert len(list(comparison_page.rows(load(folder), "hospitals-iid"))) == 2


def test_the_csv_has_a_line_a_cell_and_hospital_and_one_for_the_newcomer(folder, page):
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == comparison.COLUMNS
    assert len(lines) == 15 * 3
    first, _, newcomer = lines[:3]
    assert (first["data"], first["strategy"], first["site"], first["test_accuracy"]) == (
        "hospitals",
        "plora",
        "big",
        "0.9",
    )
    assert (newcomer["site"], newcomer["zero_shot_accuracy"], newcomer["test_accuracy"]) == ("newcomer", "0.4", "0.7")


def test_the_page_says_what_was_compared(page):
    for words in (
        "+29.9 ± ",
        "87.0 ± 5.0",
        "338\u202fkB",
        "55,296",
        "12 rounds",
        "15 of 16 cells",
        "not for diagnosis",
    ):
        assert words in page, words
    assert "<i>it</i>" not in page
    assert "small &lt;b&gt;" in page


def test_the_page_shows_what_tuning_chose(page):
    tuning = page[page.index('id="tuning"') :]
    assert tuning.count("<strong>62.0\u202f%</strong>") == 3
    assert "41.0" in tuning


def test_the_figure_is_a_file_of_its_own(folder, page):
    ET.fromstring((folder / "comparison.svg").read_text(encoding="utf-8"))
    assert "src=" not in page
    assert "http:" not in page


def test_equal_studies_give_equal_bytes(folder, page):
    assert comparison_page.write(folder).read_text(encoding="utf-8") == page


def test_a_damaged_cell_is_named(folder, tmp_path):
    path = tmp_path / "cell.json"
    path.write_text('{"data": "hospitals", "strategy": "plora"}')
    with pytest.raises(MisuseError, match="delete it"):
        comparison.read_cell(path)
