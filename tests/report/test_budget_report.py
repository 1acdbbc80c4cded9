"""A study's table, figures and page, from files alone."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report import SiteRow, budget, budget_page
from fedvlm_secure.report.budget import load
from fedvlm_secure.report.study import estimate, site_figures

ROWS = {"big": 4000, "small <b>": 400}
# Final accuracies of (big, small) for seeds 0, 1, 2.
FINAL = {
    ("plora", None): [(0.80, 0.60), (0.82, 0.62), (0.84, 0.64)],
    ("plora", 4.0): [(0.76, 0.40), (0.78, 0.40), (0.80, 0.40)],
    ("plora", 1.0): [(0.50, 0.20), (0.52, 0.24), (0.60, 0.16)],
    ("lora", None): [(0.70, 0.50), (0.72, 0.52), (0.74, 0.54)],
    ("lora", 4.0): [(0.60, 0.50), (0.60, 0.52), (0.60, 0.54)],
    ("lora", 1.0): [(0.50, 0.20), (0.52, 0.24), (0.60, 0.16)],
    ("local", None): [(0.66, 0.44), (0.66, 0.44), (0.66, 0.44)],
}
BASE, GUESS = 0.20, 0.10


def study(folder: Path, seeds: int = 3, leave_out: tuple[str, ...] = ()) -> Path:
    cells = {}
    for (strategy, epsilon), finals in FINAL.items():
        for seed, accuracies in enumerate(finals[:seeds]):
            name = f"{strategy}-epsilon-{epsilon}-seed-{seed}"
            rows = [SiteRow(s, "", n, GUESS, BASE, a) for (s, n), a in zip(ROWS.items(), accuracies, strict=True)]
            spent = (
                99.0 if epsilon is None else epsilon - 0.0104 + 0.001 * seed
            )  # what a run without DP states is nothing
            privacy = {"epsilon": spent, "delta": 1e-5, "noise-multiplier": 2.5, "unit": "image"}
            privacy["sentences"] = ["One picture's rows <i>come or go</i>."]
            cells[name] = {
                "strategy": strategy,
                "epsilon": epsilon,
                "seed": seed,
                "sites": [site_figures(row) for row in rows],
                "privacy": privacy,
                "versions": {"fedvlm-secure": "9.9"},
                "insecure": [],
            }
    (folder / "cells").mkdir(parents=True)
    for name, cell in cells.items():
        if name not in leave_out:
            (folder / "cells" / f"{name}.json").write_text(json.dumps(cell), encoding="utf-8")
    asked = {
        "command": "fedvlm-secure budget --epsilons 1,4,none",
        "epsilons": [1.0, 4.0, None],
        "strategies": ["plora", "lora"],
        "settings": 'data = "hospitals"\n',
        "cells": list(cells),
    }
    (folder / "study.json").write_text(json.dumps(asked), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("budget") / "study")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return budget_page.write(folder).read_text(encoding="utf-8")


class Tables(HTMLParser):
    """The cells of every table with an id, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._into: list[list[str]] | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self._into = self.tables.setdefault(dict(attrs)["id"], [])
        elif tag == "tr" and self._into is not None:
            self._into.append([])
        elif tag in ("td", "th") and self._into is not None:
            self._into[-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self._into = None

    def handle_data(self, data):
        if self._into and self._into[-1]:
            self._into[-1][-1] += data.strip()


def test_intervals_are_students():
    # Quantiles of t at 0.975 from printed tables: 12.706, 4.303 and 2.262 for 1, 2 and 9 degrees of freedom.
    assert estimate([1.0, 3.0]).half == pytest.approx(12.706, rel=1e-4)
    assert estimate([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    values = [float(value) for value in range(10)]
    assert estimate(values).half == pytest.approx(2.262 * math.sqrt(55 / 6) / math.sqrt(10), rel=1e-3)
    assert estimate(values).mean == 4.5
    assert estimate([0.5]).half is None


def test_a_seed_is_the_unit_of_chance(folder):
    found = load(folder)
    at = found.accuracy("plora", 1.0)  # seeds: 0.35, 0.38, 0.38
    assert at.mean == pytest.approx(0.37)
    assert at.half == pytest.approx(4.3027 * 0.0173205 / math.sqrt(3), rel=1e-3)
    assert found.base == pytest.approx(BASE)
    assert found.question_only == pytest.approx(GUESS)


def test_the_gain_that_is_kept_is_a_ratio_seed_by_seed(folder):
    found = load(folder)
    shares = [(0.58 - BASE) / (0.70 - BASE), (0.59 - BASE) / (0.72 - BASE), (0.60 - BASE) / (0.74 - BASE)]
    assert found.kept("plora", 4.0).mean == pytest.approx(sum(shares) / 3)
    large = found.of_sites(lambda row: row.rows >= 3000)
    shares = [(0.76 - BASE) / (0.80 - BASE), (0.78 - BASE) / (0.82 - BASE), (0.80 - BASE) / (0.84 - BASE)]
    assert large.kept("plora", 4.0).mean == pytest.approx(sum(shares) / 3)


def test_no_share_of_a_gain_that_is_none(tmp_path):
    folder = study(tmp_path / "s")
    path = folder / "cells" / "plora-epsilon-None-seed-1.json"
    cell = json.loads(path.read_text())
    for site in cell["sites"]:
        site["final"] = BASE - 0.01
    path.write_text(json.dumps(cell))
    assert load(folder).kept("plora", 4.0) is None
    path.unlink()
    assert load(folder).kept("plora", 4.0) is None
    assert load(folder).kept("lora", 4.0) is not None


def test_differences_are_paired_by_seed(folder):
    found = load(folder)
    lead = found.difference("plora", "lora", 4.0)  # 0.03, 0.03, 0.03: a pair differs by the same at every seed
    assert (lead.mean, lead.half) == (pytest.approx(0.03), pytest.approx(0.0, abs=1e-12))
    assert found.difference("plora", "lora", 1.0).mean == 0.0


def test_the_csv_is_tidy(folder, page):
    with (folder / "budget.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(FINAL) * 3 * len(ROWS)
    assert list(lines[0]) == list(budget.COLUMNS)
    wanted = {"strategy": "plora", "epsilon_target": "4", "seed": "2", "site": "big"}
    (line,) = [line for line in lines if wanted.items() <= line.items()]
    assert float(line["epsilon_spent"]) == pytest.approx(3.9916)
    assert (line["delta"], line["noise_multiplier"], line["rows"]) == ("1e-05", "2.5", "4000")
    assert (float(line["test_accuracy"]), line["base_accuracy"], line["question_only"]) == (0.8, "0.2", "0.1")
    free = [line for line in lines if line["epsilon_target"] == "none"]
    assert {line["strategy"] for line in free} == {"plora", "lora", "local"}
    assert {(line["epsilon_spent"], line["delta"], line["noise_multiplier"]) for line in free} == {("", "", "")}


def test_the_page_shows_the_table_with_intervals(page):
    rows = {(row[0], row[1]): row[2:] for row in Tables(page).tables["results"][1:]}
    assert set(rows) == {(s, e) for s in ("plora", "lora") for e in ("1", "4", "none")} | {("local", "none")}
    assert rows["plora", "1"][0] == "37.0 ± 4.3\u202f%"
    assert rows["plora", "1"][1] == "+17.0 ± 4.3"
    assert rows["local", "none"][:2] == ["55.0 ± 0.0\u202f%", "+35.0 ± 0.0"]
    assert rows["plora", "none"][2] == "–"
    assert rows["plora", "4"][-1] == "3"


def test_the_page_favours_nobody_without_reason(page):
    rows = {row[1]: row for row in Tables(page).tables["differences"][1:]}
    assert rows["4"][2:] == ["+3.0 ± 0.0", "plora"]
    assert rows["1"][3] == "open"


def test_every_hospital_by_size(page):
    rows = Tables(page).tables["sites"][1:]
    assert [row[0] for row in rows] == list(ROWS)
    assert rows[1][4] == "44.0 ± 0.0\u202f%"
    assert page.count("<svg") == 1 + len(ROWS)


def test_the_page_says_what_holds_and_what_does_not(page):
    rows = {row[0]: row for row in Tables(page).tables["privacy"][1:]}
    assert rows["4"][1:] == ["3.992", "1e-05", "2.5"]  # the largest of the cells, rounded up
    text = re.sub(r"<[^>]*>|\s+", " ", page)
    assert "This study as a whole guarantees nothing about its rows" in text
    assert "not for diagnosis" in text
    assert "One picture&#39;s rows &lt;i&gt;come or go&lt;/i&gt;." in page
    assert "fedvlm-secure 9.9" in text
    assert "fedvlm-secure budget --epsilons 1,4,none" in text


def test_a_study_with_noise_everywhere_spends_the_sum(tmp_path):
    folder = study(
        tmp_path / "s",
        leave_out=tuple(f"{s}-epsilon-None-seed-{i}" for s in ("plora", "lora", "local") for i in range(3)),
    )
    text = " ".join(budget_page.write(folder).read_text(encoding="utf-8").split())
    total = sum(2 * (epsilon - 0.0104 + 0.001 * seed) for epsilon in (1.0, 4.0) for seed in range(3))
    assert f"up to the sum of their ε, {math.ceil(1000 * total) / 1000:.3f}" in text
    assert "guarantees nothing" not in text


def test_nothing_is_fetched_and_names_are_escaped(page):
    assert not re.search(r"https?://|@import|url\((?!#)|<script|<link|<img", page)
    assert "small <b>" not in page
    assert "#0102" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_two_writes_are_byte_equal_and_leave_pyplot_alone(folder, page):
    before, drawing = dict(mpl.rcParams), (folder / "budget.svg").read_bytes()
    assert budget_page.write(folder).read_text(encoding="utf-8") == page
    assert (folder / "budget.svg").read_bytes() == drawing
    assert dict(mpl.rcParams) == before


def test_the_figure_stands_alone(folder, page):
    text = (folder / "budget.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    assert "#0072b2" in text
    used = {
        element.get("{http://www.w3.org/1999/xlink}href") for element in root.iter("{http://www.w3.org/2000/svg}use")
    }
    ids = {f"#{element.get('id')}" for element in root.iter()}
    assert used
    assert used <= ids
    words = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"1", "4", "none", "plora", "lora", "question only", "base model", "local only, without DP"} <= words


def test_one_seed_has_no_interval(tmp_path):
    page = budget_page.write(study(tmp_path / "s", seeds=1)).read_text(encoding="utf-8")
    assert "±" not in page.replace("“±”", "")
    assert "One seed" in page


def test_an_unfinished_study_says_so(tmp_path):
    page = budget_page.write(study(tmp_path / "s", leave_out=("plora-epsilon-4.0-seed-1",))).read_text(encoding="utf-8")
    assert "20 of 21 cells have results" in page
    rows = {(row[0], row[1]): row for row in Tables(page).tables["results"][1:]}
    assert rows["plora", "4"][-1] == "2"


def test_a_hospital_without_a_figure_is_no_zero(tmp_path):
    folder = study(tmp_path / "s")
    path = folder / "cells" / "plora-epsilon-4.0-seed-0.json"
    cell = json.loads(path.read_text())
    cell["sites"][0]["final"] = None
    path.write_text(json.dumps(cell))
    assert load(folder).accuracy("plora", 4.0) is None
    assert ",big,4000,,0.2,0.1\n" in budget.table(load(folder))
    budget_page.write(folder)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"strategy": "plora", "seed": 0, "sites": []}',  # without "epsilon" it would pass for a run without noise
        '{"strategy": "plora", "seed": 0, "sites": [], "epsilon": "4"}',
    ],
)
def test_damaged_figures_are_refused(tmp_path, damage):
    folder = study(tmp_path / "s")
    (folder / "cells" / "plora-epsilon-4.0-seed-0.json").write_text(damage)
    with pytest.raises(MisuseError, match=r"plora-epsilon-4\.0-seed-0"):
        load(folder)


def test_no_study_no_page(tmp_path):
    with pytest.raises(MisuseError, match=r"study\.json"):
        budget_page.write(tmp_path)
