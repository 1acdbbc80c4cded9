"""``fedvlm-secure data check`` as a person meets it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from own_kit import published, shard

from fedvlm_secure.cli import main

Call = Callable[..., tuple[str, str]]
SKIP = ("--set", "rows.on-bad-row=skip")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command, expects an exit code, and gives stdout and stderr."""

    def run(*words: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["fedvlm-secure", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err or out
        return out, err

    return run


@pytest.fixture
def call(command: Call, model_folder: Path) -> Call:
    """``command`` for ``data check`` with a small model."""
    return lambda *words, code=0: command("data", "check", *words, "--model", model_folder, code=code)


def test_check_then_run_with_a_folder_for_each_site(command: Call, model_folder: Path, tmp_path: Path) -> None:
    for site, count in (("north", 30), ("south", 40), ("west", 30)):
        shard(tmp_path / site / "a.parquet", [published(number) for number in range(count)])
    told = "".join(f'{site} = "{tmp_path / site}"\n' for site in ("north", "south", "west"))
    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'model = "{model_folder}"\nrounds = 1\nthreads = 1\n[data]\n{told}'
        "[training]\nsteps = 1\nbatch-size = 8\n[adapter]\nrank = 2\n"
    )
    out, _ = command("data", "check", "--settings", settings)
    assert out.startswith("[data]: 100 rows (")
    assert out.splitlines()[-1] == "a run can start with these rows"
    sites = json.loads(command("data", "check", "--settings", settings, "--json")[0])["sites"]
    out, _ = command("run", settings, "--json", "--out", tmp_path / "out")
    assert [site["site"] for site in json.loads(out)["sites"]] == ["north", "south", "west"]
    kept = [json.loads((tmp_path / f"out/sites/{site}/summary.json").read_text())["rows"] for site in sites]
    assert kept == list(sites.values())


def test_a_folder_as_a_hospital_has_it(call: Call, csv_folder: Path) -> None:
    out, err = call(csv_folder, code=2)
    assert err == ""
    for line in (
        "rows that cannot be used: 2",
        "    rows.csv line 162 (../rows.csv)",
        "    rows.csv line 163",
        'problem: 2 rows cannot be used; mend them, or skip them with rows.on-bad-row = "skip"',
    ):
        assert line in out.splitlines()
    out, _ = call(csv_folder, *SKIP)
    assert "160 rows" in out.splitlines()[0]
    assert "at 4 sites" in out.splitlines()[0]
    assert out.splitlines()[-1] == "a run can start with these rows"


def test_json_is_one_object(call: Call, csv_folder: Path, tmp_path: Path) -> None:
    out, _ = call(csv_folder, "--json", *SKIP)
    found = json.loads(out)
    assert sorted(found["sites"]) == ["clinic-a", "clinic-b", "clinic-c", "clinic-d"]
    assert found["faults"]["reasons"] == {"picture outside the folder": 1, "empty answer": 1}
    assert sum(found["answers"]["all"]["top"].values()) == 160
    assert 16 < found["tokens"]["shortest"] <= found["tokens"]["longest"] < found["tokens"]["limit"]


def test_tokens_are_counted_without_the_weights(
    command: Call, model_folder: Path, csv_folder: Path, tmp_path: Path
) -> None:
    light = shutil.copytree(model_folder, tmp_path / "light")
    for weights in light.glob("*.safetensors"):
        weights.write_bytes(b"not weights")
    whole, few = (
        json.loads(command("data", "check", csv_folder, "--json", *SKIP, "--model", folder)[0])
        for folder in (model_folder, light)
    )
    assert few["tokens"] == whole["tokens"]


def test_rows_too_long_for_the_model_are_named(call: Call, csv_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes((csv_folder / "000.png").read_bytes())
    rows = [{"image": "scan.png", "question": "Which colour? " * many, "answer": "red"} for many in (1, 1600)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _ = call(tmp_path, code=2)
    assert "  too long: rows.jsonl line 2" in out
    assert "rows.jsonl line 1" not in out


def test_the_plot_is_a_file_of_its_own(call: Call, csv_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "sites.svg"
    dealt = ("--set", "rows.partition=dirichlet", "--set", "rows.sites=3", "--plot", target)
    call(csv_folder, *SKIP, *dealt)
    texts = [element.text for element in ET.parse(target).iter("{http://www.w3.org/2000/svg}text")]
    assert {"site-1", "site-2", "site-3", "red", "green", "blue", "grey"} <= set(texts)
    assert "var(--" not in target.read_text()
    _, err = call(csv_folder, *SKIP, *dealt, code=2)
    assert err == f"{target} exists; name another file with --plot\n"


def test_mistakes_are_one_line(call: Call, csv_folder: Path) -> None:
    for words, reason in (
        (["no/such/folder"], "data set 'no/such/folder' is not known"),
        ([csv_folder, "--set", "rows.partition=dirichlett"], 'Did you mean "dirichlet"?'),
        ([csv_folder, "--set", "rows.group=image"], "name image_path"),
    ):
        _, err = call(*words, code=2)
        assert reason in err
        assert err.count("\n") == 1
