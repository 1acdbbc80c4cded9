"""A ninth hospital joins a finished run: what it begins with, what it trains, what it leaves alone."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import safetensors.torch
import torch
from engine_kit import ROUNDS

from fedvlm_secure import data
from fedvlm_secure.engines import compare, local, onboarding
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")
Make = Callable[..., Settings]


@pytest.fixture
def newcomer(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one more site, under the name that the data set's newcomer has."""
    whole = datasets.DatasetDict.load_from_disk(str(data_folder))
    one = datasets.DatasetDict(
        {name: split.filter(lambda site: site == "site-a", input_columns="site") for name, split in whole.items()}
    )
    one.save_to_disk(str(tmp_path / "ninth"))
    monkeypatch.setattr(data, "newcomer_of", lambda name: str(tmp_path / "ninth"), raising=False)


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The adapter's state at every evaluation of a newcomer."""
    seen: list[dict[str, torch.Tensor]] = []
    evaluate = onboarding.evaluate

    def watched(model: Any, split: Any) -> Any:
        seen.append({k: v.clone() for k, v in model.named_parameters() if "lora_" in k})
        return evaluate(model, split)

    monkeypatch.setattr(onboarding, "evaluate", watched)
    return seen


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def factor(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.cat([value.flatten() for key, value in sorted(state.items()) if name in key])


@pytest.mark.usefixtures("newcomer")
@pytest.mark.parametrize(
    ("strategy", "comes"),
    [
        ("plora", {"lora_B"}),
        ("lora", {"lora_A", "lora_B"}),
        ("fedsa", {"lora_A"}),
        ("local", set()),
        ("ditto", {"lora_A", "lora_B"}),
        ("plora adapter.warm-up=1", {"lora_A", "lora_B"}),
        ("local adapter.warm-up=1", {"lora_A", "lora_B"}),
    ],
)
def test_a_newcomer_begins_with_what_is_shared(
    settings: Make, tmp_path: Path, states: list[dict[str, torch.Tensor]], strategy: str, comes: set[str]
) -> None:
    chosen = settings(*f"adapter.strategy={strategy}".split(), "training.learning-rate=0.05")
    local.run(chosen, tmp_path / "run")
    before = digests(tmp_path / "run")
    found = onboarding.onboard(chosen, tmp_path / "run", Observer(), {})
    assert digests(tmp_path / "run") == before
    assert (found["rows"], found["steps"]) == (24, onboarding.ROUNDS * chosen.training.steps)
    assert 0 <= found["zero-shot"] <= 1
    given = safetensors.torch.load_file(tmp_path / f"run/coordinator/global/round-{ROUNDS:04d}.safetensors")
    begun, ended = states
    for name in ("lora_A", "lora_B"):
        if name in comes:
            assert torch.equal(factor(begun, name), factor(given, name))
    if "lora_B" not in comes:
        assert not factor(begun, "lora_B").any()  # the seeded initial value
    assert not torch.equal(factor(begun, "lora_B"), factor(ended, "lora_B"))


@pytest.mark.usefixtures("newcomer")
def test_a_comparisons_cell_holds_costs_and_validation(settings: Make, tmp_path: Path) -> None:
    result = compare.compare_cell(settings(), tmp_path / "run", Observer())
    assert "newcomer" not in result.summary  # the data set is none of the simulated ones
    lines = [
        line["accuracy"]
        for path in sorted((tmp_path / "run/sites").glob("*/metrics.jsonl"))
        for line in [__import__("json").loads(each) for each in path.read_text().splitlines()]
        if line.get("stage") == "adopted" and line["round"] == ROUNDS
    ]
    assert result.summary["validation"] == pytest.approx(sum(lines) / 4)
    assert result.summary["training-seconds"] > 0
    # A masked input of so many 40-bit numbers a hospital and round is the least that is sent.
    assert result.summary["upload-bytes"] > 5 * result.summary["shared-parameters"]


def test_without_a_newcomer_there_is_a_sentence(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="is not known"):
        onboarding.onboard(settings(), tmp_path, Observer(), {})
