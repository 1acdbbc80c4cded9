"""Fixtures of the report's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_run_kit import finished as finished_run
from browser_kit import CHROMIUM, Browser, chromium
from run_factory import SyntheticRun

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.audit.verdict import Verdict

EVENTFUL = SyntheticRun(
    dropped={2: ["elm"]},
    aborted={3: "round 3, attempt 1, phase unmask: 4 hospitals remain, 5 are needed <in masked-input>"},
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one dropout in round 2 and an aborted attempt at round 3; read-only."""
    return EVENTFUL.write(tmp_path_factory.mktemp("report") / "finished")


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run that an auditor can follow, with a silent client, and the logs of all clients but two; read-only."""
    run, logs = finished_run(tmp_path_factory.mktemp("audited") / "run", "pairwise", 5, dropouts=0.2)
    return run.folder.path, logs[2:]


@pytest.fixture(scope="session")
def verdict(audited: tuple[Path, list[Path]]) -> Verdict:
    """What the audit says of it."""
    return audit_run(*audited)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium at {CHROMIUM}")
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
