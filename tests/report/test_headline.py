import dataclasses
import json
import subprocess
import sys

import pytest
from run_factory import SITES, SyntheticRun

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.report import SiteRow, beats_both, table
from fedvlm_secure.report.headline import mean


def row(question_only: float | None, base: float | None, final: float | None) -> SiteRow:
    return SiteRow("aspen", "", 100, question_only, base, final)


def test_one_row_a_hospital_by_name(finished):
    rows = table(finished)
    assert [r.site for r in rows] == list(SITES)
    assert rows[1] == SiteRow("birch", "brain MRI, scanner 2", 500, 0.35, pytest.approx(0.32), pytest.approx(0.63))


def test_rows_are_frozen(finished):
    with pytest.raises(dataclasses.FrozenInstanceError):
        table(finished)[0].final = 1.0


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([row(0.3, 0.4, 0.5), row(0.6, 0.4, 0.5), row(0.3, 0.6, 0.5)], 1),
        ([row(0.3, 0.5, 0.5)], 0),  # a tie does not beat
        ([row(0.3, 0.4, None), row(None, 0.4, 0.9)], 0),  # unknown is not a win
        ([], 0),
    ],
)
def test_beats_both(rows, count):
    assert beats_both(rows) == count


def test_gain_is_over_the_better_of_the_two():
    assert row(0.3, 0.4, 0.5).gain == pytest.approx(0.1)
    assert row(0.7, 0.4, 0.5).gain == pytest.approx(-0.2)


def test_a_mean_needs_every_hospital():
    assert mean([0.25, 0.75]) == 0.5
    assert mean([0.25, None]) is None
    assert mean([]) is None


def test_without_a_summary_the_metrics_tell_what_is_known(tmp_path):
    run = SyntheticRun(sites=("aspen",), finished=False).write(tmp_path / "run")
    (run / "sites/aspen/summary.json").unlink()
    assert table(run) == [SiteRow("aspen", "", None, None, 0.3, None)]


@pytest.mark.parametrize("value", ["much", True, [0.5], {"a": 1}, float("nan"), float("inf"), 10**400])
def test_what_is_no_figure_is_unknown(tmp_path, value):
    run = SyntheticRun(sites=("aspen",)).write(tmp_path / "run")
    (run / "sites/aspen/metrics.jsonl").unlink()
    (run / "sites/aspen/summary.json").write_text(json.dumps({"site": "aspen", "base": value, "rows": value}))
    assert table(run) == [SiteRow("aspen", "", None, None, None, None)]


def test_a_run_without_hospitals_is_refused(tmp_path):
    with pytest.raises(MisuseError, match="holds no hospital's figures"):
        table(tmp_path)


def test_reading_a_table_imports_nothing_heavy():
    program = (
        "import fedvlm_secure.report, sys; print([m for m in ('matplotlib', 'jinja2', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
