"""A whole federated run on every family of models, from its folder to an answer of a hospital's model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from engine_kit import ROUNDS, adapters
from PIL import Image

from fedvlm_secure.engines import local
from fedvlm_secure.federation.ask import ask
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from tests.models.tiny_families import BUILDERS

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.mark.parametrize("privacy", ["none", "record"])
@pytest.mark.parametrize("name", BUILDERS)
def test_hospitals_train_it_together_and_ask_it(
    name: str, privacy: str, settings: Callable[..., Settings], family_folders: dict[str, Path], tmp_path: Path
) -> None:
    # What is the default under `record` is for models with Llama's names and public bases.
    general = ("adapter.layers=2", "adapter.modules=[]", "adapter.init=random", "training.optimizer=adamw")
    run = RunDirectory(tmp_path / "run")
    local.run(settings(f"model={family_folders[name]}", f"privacy.mode={privacy}", *general), run.path)
    run.verify_manifest()
    first, last = (
        safetensors.numpy.load_file(run.coordinator.path / f"global/round-{place:04d}.safetensors")
        for place in (0, ROUNDS)
    )
    assert first.keys() == last.keys()
    assert all(".lora_B." in tensor and (first[tensor] != last[tensor]).any() for tensor in first)
    personal = [value for tensor, value in adapters(run.path).items() if ".lora_A." in tensor]
    assert len(set(personal)) == len(personal) == 4 * len(first)
    Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(tmp_path / "picture.png")
    assert isinstance(ask(run.path, "site-a", tmp_path / "picture.png", "Which colour is it?"), str)
