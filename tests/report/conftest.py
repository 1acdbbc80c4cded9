"""Fixtures of the report's tests."""

from pathlib import Path

import pytest
from run_factory import SyntheticRun

EVENTFUL = SyntheticRun(
    dropped={2: ["elm"]},
    aborted={3: "round 3, attempt 1, phase unmask: 4 hospitals remain, 5 are needed <in masked-input>"},
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one dropout in round 2 and an aborted attempt at round 3; read-only."""
    return EVENTFUL.write(tmp_path_factory.mktemp("report") / "finished")
