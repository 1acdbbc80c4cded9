from pathlib import Path

import numpy as np
import pytest
import torch

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rounds import counters, figures, vector_layout, weight_of
from fedvlm_secure.federation.settings import AggregationTable, PrivacyTable, Settings
from fedvlm_secure.federation.standing import Pending, Standing
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.training import Evaluation


def test_what_waits_survives_the_disk_bit_for_bit(tmp_path: Path) -> None:
    values = np.array([0.1, -0.0, 3e-40, 7.5], np.float32)
    tensors = {"m.lora_A.weight": torch.arange(6.0).reshape(2, 3) / 7}
    owner = Identity.generate()
    Pending(3, 2, Update(values, {"weight": 5}), tensors).save(tmp_path / "pending", owner)
    loaded = Pending.load(tmp_path / "pending", owner)
    assert (loaded.round, loaded.tries, loaded.update.counters) == (3, 2, {"weight": 5})
    assert loaded.update.values.tobytes() == values.tobytes()
    assert loaded.personal["m.lora_A.weight"].equal(tensors["m.lora_A.weight"])
    Standing(4, tensors, Evaluation(3, 9, 1.25)).save(tmp_path / "standing")
    standing = Standing.load(tmp_path / "standing")
    assert (standing.round, standing.validation, standing.shared) == (4, Evaluation(3, 9, 1.25), None)
    Standing(4, tensors, Evaluation(3, 9, 1.25), values).save(tmp_path / "standing")
    standing = Standing.load(tmp_path / "standing")
    assert standing.shared is not None
    assert standing.shared.tobytes() == values.tobytes()
    assert list(standing.personal) == list(tensors)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b"{}"])
def test_a_damaged_file_is_a_clear_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "pending").write_bytes(damage)
    with pytest.raises(MisuseError, match="cannot be read"):
        Pending.load(tmp_path / "pending", Identity.generate())


def test_an_update_that_waits_is_for_its_owners_eyes(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    Pending(3, 2, Update(values, {"weight": 5}), {}).save(tmp_path / "pending", Identity.generate())
    assert values.tobytes()[400:432] not in (tmp_path / "pending").read_bytes()
    with pytest.raises(MisuseError, match="sealed with another key"):
        Pending.load(tmp_path / "pending", Identity.generate())


def test_weights_are_rows_in_the_agreed_unit() -> None:
    coarse = Settings(aggregation=AggregationTable(rows_per_weight=100))
    assert weight_of(300, Settings()) == 300
    assert weight_of(300, coarse) == 3
    assert weight_of(1, coarse) == 1
    with pytest.raises(MisuseError, match="rows-per-weight to 2 or more"):
        weight_of(5000, Settings())


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e12])
def test_a_loss_beyond_the_bound_counts_as_the_bound(loss: float) -> None:
    assert counters(1, Evaluation(0, 4, loss), Settings())["loss-milli"] == 1 << 30


@pytest.mark.parametrize("mode", ["record", "client"])
def test_under_differential_privacy_nothing_is_counted(mode: str) -> None:
    settings = Settings(privacy=PrivacyTable(mode=mode))
    weight = weight_of(300, settings)
    assert counters(weight, Evaluation(2, 8, 4.0), settings) == {"weight": 1}
    layout = vector_layout(7, settings)
    assert [(counter.name, counter.bound) for counter in layout.counters] == [("weight", 1)]
    assert layout.weight_max == 1


@pytest.mark.parametrize(("rows", "weight"), [(1, 1), (255, 128), (256, 256), (2400, 2048), (4096, 4096)])
def test_a_size_band_is_a_power_of_two_and_the_only_counter(rows: int, weight: int) -> None:
    settings = Settings(privacy=PrivacyTable(mode="record", weights="size-band"))
    assert weight_of(rows, settings) == weight
    assert counters(weight, Evaluation(2, 8, 4.0), settings) == {"weight": weight}
    layout = vector_layout(7, settings)
    assert [(counter.name, counter.bound) for counter in layout.counters] == [("weight", 4096)]
    with pytest.raises(MisuseError, match="rows-per-weight"):
        weight_of(9000, settings)


def test_counters_add_up_to_an_evaluation() -> None:
    parts = [counters(3, Evaluation(2, 8, 4.0004), Settings()), counters(5, Evaluation(4, 4, 1.5), Settings())]
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert figures(sums) == {"correct": 6, "asked": 12, "accuracy": 0.5, "loss": 5.5 / 12}
    assert sums["weight"] == 8


def test_figures_are_none_where_their_sums_are_not_known() -> None:
    assert figures({}) == dict.fromkeys(("correct", "asked", "accuracy", "loss"))
    assert figures({"correct": 3, "weight": 5}) == {"correct": 3, "asked": None, "accuracy": None, "loss": None}
    assert figures({"loss-milli": 3000, "asked": 2})["loss"] == 1.5
