"""Runs that begin as LoRA: what is common becomes personal after the warm-up, and the rest of the run knows it."""

import numpy as np
import pytest
import safetensors.numpy
from engine_kit import final_state, interrupted

from fedvlm_secure.engines import local
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.report import reading
from fedvlm_secure.report.rounds import attempts

SITES = ("site-a", "site-b", "site-c", "site-d")
BYTES_A_NUMBER = 5  # 16 bits of value, 16 of weight and room for four hospitals, in whole bytes
WARM = ("rounds=3", "adapter.warm-up=1", "training.learning-rate=0.01")


def shared(run, round_index):
    return safetensors.numpy.load_file(run / f"coordinator/global/round-{round_index:04d}.safetensors")


def adapter(run, site):
    found = safetensors.numpy.load_file(run / f"sites/{site}/adapter/adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}


def same(left, right, factor="", within=0.0):
    names = [name for name in left if factor in name]
    return bool(names) and all(np.abs(left[name] - right[name]).max() <= within for name in names)


@pytest.fixture
def warmed(settings, tmp_path):
    local.run(settings(*WARM), tmp_path / "warmed")
    return tmp_path / "warmed"


def test_it_begins_as_lora_and_goes_on_as_plora(warmed, settings, tmp_path):
    local.run(settings("rounds=3", "adapter.strategy=lora", "training.learning-rate=0.01"), tmp_path / "lora")
    # What is summed is the same; the steps of the encoding are rotated by a key that follows from the settings.
    assert same(shared(warmed, 1), shared(tmp_path / "lora", 1), within=1e-5)
    assert not same(shared(warmed, 0), shared(tmp_path / "lora", 1), within=1e-3)
    assert not same(shared(warmed, 2), shared(tmp_path / "lora", 2), "lora_B")
    assert same(shared(warmed, 1), shared(warmed, 3), "lora_A")
    assert not same(shared(warmed, 1), shared(warmed, 3), "lora_B")
    for site in SITES:
        own = adapter(warmed, site)
        assert same({name: own[name] for name in own if "lora_B" in name}, shared(warmed, 3))
        assert not same(own, shared(warmed, 3), "lora_A")
    assert not same(adapter(warmed, SITES[0]), adapter(warmed, SITES[1]), "lora_A")


def test_only_b_leaves_after_the_warm_up(warmed):
    first, _, last = (attempt for attempt in attempts(reading.load(warmed)) if attempt.kind == "training")
    size = sum(tensor.size for name, tensor in shared(warmed, 1).items() if "lora_A" in name)
    saved = (first.up["masked-input"] - last.up["masked-input"]) / len(SITES)
    assert saved == pytest.approx(BYTES_A_NUMBER * size, rel=0.1)
    standing = safetensors.numpy.load_file(warmed / "sites/site-a/state/standing.safetensors")
    assert {name.rsplit(".", 2)[-2] for name in standing} == {"lora_A"}


@pytest.mark.parametrize("protocol", ["plain", "bfv"])
def test_the_protocol_changes_nothing_about_it(warmed, protocol, settings, tmp_path):
    insecure = ["policy.protocols=['plain']"] if protocol == "plain" else []
    local.run(settings(*WARM, f"aggregation.protocol={protocol}", *insecure), tmp_path / protocol)
    for site in SITES:
        assert same(adapter(tmp_path / protocol, site), adapter(warmed, site))


def test_an_interrupted_run_ends_where_it_would_have(settings, tmp_path):
    chosen = settings("adapter.warm-up=1", "training.learning-rate=0.01")
    local.run(chosen, tmp_path / "whole")
    assert len(list(interrupted(chosen, tmp_path / "pieces", after=9))) > 1
    assert final_state(tmp_path / "pieces") == final_state(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["rounds=4", "adapter.warm-up=4"], "choose a smaller warm-up"),
        (["adapter.warm-up=2", "privacy.mode=client"], "counts on one size"),
        (["adapter.warm-up=-1"], "warm-up"),
    ],
)
def test_a_warm_up_that_cannot_be_is_refused(overrides, reason):
    with pytest.raises(MisuseError, match=reason):
        Settings.from_tables({}, overrides)
