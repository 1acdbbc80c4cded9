from pathlib import Path

import pytest

from fedvlm_secure.cli.console import print_table
from fedvlm_secure.engines.local import RunResult
from fedvlm_secure.report import SiteRow


@pytest.mark.parametrize("description", ["brain MRI; radiological, axial", ""])
def test_only_simulated_hospitals_are_called_so(description, capsys):
    row = SiteRow("north", description, 100, 0.25, 0.5, 0.75)
    summary = {"strategy": "plora", "rounds": 1, "protocol": "pairwise", "insecure": []}
    print_table([RunResult(Path("runs/mine"), summary, [row])])
    shown = capsys.readouterr().out
    assert "beats question-only and base on 1 of 1" in shown
    assert ("Simulated hospitals" in shown) == bool(description)
