"""DP-SGD on every family's own rows: its step is the sum clipped by hand, or the model is refused by name."""

import datasets
import numpy as np
import pytest
import torch

from fedvlm_secure import data, models
from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models.families import family_of
from fedvlm_secure.training import PrivateSettings, TrainSettings, train_private
from fedvlm_secure.training.features import precompute
from tests.models.tiny_families import BUILDERS, rows
from tests.training.dp_reference import Script, clipped_by_hand, middle_norm, record, unit_gradient

ONE = TrainSettings(steps=1, batch_size=3)
UNITS = [[0, 3], [1], [2]]
KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value")
# A layer of the vision tower, and of what leads from there to the text.
EYES = {
    "smolvlm": r".*vision_model.*\.q_proj|.*connector.*\.proj",
    "idefics3": r".*vision_model.*\.q_proj|.*connector.*\.proj",
    "llava": r".*vision_tower.*\.0\..*q_proj|.*projector\.linear_1",
    "paligemma": r".*vision_tower.*\.q_proj|.*projector\.linear",
    "qwen2_vl": r".*visual.*\.(qkv|mlp\.2)",
}
REFUSED = {
    "qwen2_5_vl": r".*visual\.blocks\.1\.attn\.qkv",
    "florence2": r".*vision_tower.*\.qkv",
    "blip": r"vision_model.*\.qkv",
}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("ERROR")


def private(loaded: models.LoadedModel, targets: str) -> tuple[Adapter, data.EncodedSplit]:
    """An adapter with B away from zero, where A has a gradient too, in float64 as of dp_reference; rows to train on."""
    adapter = attach(loaded.model, AdapterSettings(targets=targets, rank=2))
    generator = torch.Generator().manual_seed(0)
    adapter.load({n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in adapter.state().items()})
    loaded.model.double()
    return adapter, data.encode(datasets.Dataset.from_list(rows()), loaded.processor)


def last_layer(model: torch.nn.Module) -> str:
    projections = [name for name in family_of(model.config).projections if name not in KEYS_AND_VALUES]
    return models.lora_targets(model, layers=1, modules=projections)


@pytest.mark.parametrize(
    ("name", "part"),
    [*((name, part) for name in BUILDERS for part in ("text", "last layer")), *((name, "vision too") for name in EYES)],
)
def test_a_step_as_a_run_makes_it_is_the_sum_clipped_by_hand_over_whole_rows(name, part, family_folders, monkeypatch):
    loaded = models.load(str(family_folders[name]), device="cpu")
    targets = last_layer(loaded.model) if part == "last layer" else loaded.lora_targets
    adapter, split = private(loaded, rf"{targets}|{EYES[name]}" if part == "vision too" else targets)
    assert any("vis" in module for module in adapter.modules) == (part == "vision too")
    limit = 0.99 * middle_norm(adapter, split, UNITS)
    expected = clipped_by_hand(adapter, split, UNITS, limit)
    longer = sum(bool(unit_gradient(adapter, split, unit).norm() > limit) for unit in UNITS)
    steps = record(monkeypatch)
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=limit, sample_rate=1.0)
    ready = precompute(adapter.peft_model, split)
    stats = train_private(adapter, ready, ONE, dp, np.array([0, 1, 2, 0]), noise=Script())
    assert float((steps[0] - expected).norm() / expected.norm()) < 1e-6
    assert (stats.units, stats.clipped, stats.zeroed) == (3, longer, 0)


@pytest.mark.parametrize("name", REFUSED)
def test_vision_layers_whose_rows_are_not_known_to_be_samples_are_refused(name, family_folders):
    loaded = models.load(str(family_folders[name]), device="cpu")
    adapter, split = private(loaded, rf"{loaded.lora_targets}|{REFUSED[name]}")
    dp = PrivateSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=1.0)
    with pytest.raises(MisuseError, match=rf"(vision|visual|projector)\S* is outside the text tower .*\({name}\).*;"):
        train_private(adapter, split, ONE, dp, np.arange(4), noise=Script(noise=1.0))
