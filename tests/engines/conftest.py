from collections.abc import Callable
from pathlib import Path

import pytest
from engine_kit import ROUNDS

from fedvlm_secure.federation.settings import Settings


@pytest.fixture(scope="module")
def module_settings(model_folder: Path, data_folder: Path) -> Callable[..., Settings]:
    """Settings of a run of seconds, for fixtures that several tests share."""

    def make(*overrides: str) -> Settings:
        quick = [f"model={model_folder}", f"data={data_folder}", f"rounds={ROUNDS}", "threads=1", "name=t"]
        small = ["training.steps=2", "training.batch-size=8", "adapter.rank=2", "aggregation.rounding=nearest"]
        return Settings.from_tables({}, [*quick, *small, *overrides])

    return make


@pytest.fixture
def settings(module_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a run of seconds."""
    return module_settings
