"""What docs/data-own.md shows is what happens."""

import csv
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from own_kit import picture

from fedvlm_secure.cli import main
from fedvlm_secure.data.own import FORMATS, QUESTION_TYPE, RowSettings
from fedvlm_secure.federation.settings import RowsTable, Settings

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/data-own.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def folder_of_the_example(folder: Path) -> None:
    """150 pictures of three clinics, two questions about each, and four rows that are no use."""
    (folder / "chest").mkdir(parents=True)
    with (folder / "rows.csv").open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["image", "question", "answer", "site", "patient"])
        for number in range(150):
            (folder / f"chest/{number:03d}.png").write_bytes(picture(number))
            whose = [("north", "south", "west")[number % 3], f"p{number // 3:02d}"]
            rows.writerow([f"chest/{number:03d}.png", "Which side?", ("left", "right")[number % 2], *whose])
            rows.writerow([f"chest/{number:03d}.png", "Is there an effusion?", "no" if number % 5 else "yes", *whose])
        (folder / "chest/150.png").write_bytes(picture(150)[:50])
        useless = (("chest/150", "left"), ("chest/151", "left"), ("../elsewhere", "left"), ("chest/000", ""))
        rows.writerows([f"{name}.png", "Which side?", answer, "north", "p00"] for name, answer in useless)


def test_the_example_of_data_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of_the_example(tmp_path / "scans")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks("console") if block.startswith("$ fedvlm-secure data check scans\n"))
    command, _, shown = block.partition("\n")
    monkeypatch.setattr(sys, "argv", command.removeprefix("$ ").split())
    with pytest.raises(SystemExit) as stop:
        main()
    assert capsys.readouterr().out == shown
    assert stop.value.code == 2


@pytest.mark.parametrize("block", blocks("toml"))
def test_the_settings_are_settings(block: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(block)
    settings = Settings.from_toml(tmp_path / "settings.toml")
    assert RowSettings(**settings.rows.model_dump(), unit=settings.privacy.unit)


def test_every_setting_format_and_partition_is_told() -> None:
    told = re.findall(r"`([^`\n]+)`", GUIDE)
    names = {f"rows.{field.alias}" for field in RowsTable.model_fields.values()}
    choices = {f'"{choice}"' for choice in get_args(RowsTable.model_fields["partition"].annotation)}
    assert names | choices | {QUESTION_TYPE} <= {*told}
    assert all(form in GUIDE for form in FORMATS)
