"""What is computed once a row beforehand changes no family's answers and no step, or is not computed."""

import datasets
import pytest
import torch
from PIL import Image

from fedvlm_secure import data, models
from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.data.collate import EncodedSplit
from fedvlm_secure.models.families import family_of
from fedvlm_secure.training import TrainSettings, answer_logits, evaluate, train
from fedvlm_secure.training.context import ContextSplit
from fedvlm_secure.training.features import FeatureSplit, precompute
from tests.models.tiny_families import BUILDERS, rows

# Models with a decoder beside the encoder take no features; SmolVLM's pictures have one tile each here.
KEPT = {"all": FeatureSplit, "last": ContextSplit}
KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value")


def adapted(folder: str, layers: str) -> tuple[Adapter, models.LoadedModel]:
    """An adapter, B away from zero, on all layers, or on all of the last one but what the cache of a prompt holds."""
    loaded = models.load(folder, device="cpu")
    targets = loaded.lora_targets
    if layers == "last":
        projections = [p for p in family_of(loaded.model.config).projections if p not in KEYS_AND_VALUES]
        targets = models.lora_targets(loaded.model, layers=1, modules=projections)
    adapter = attach(loaded.model, AdapterSettings(targets=targets, rank=4, strategy="lora"))
    generator = torch.Generator().manual_seed(0)
    adapter.load({n: 0.2 * torch.randn(t.shape, generator=generator) for n, t in adapter.state().items()})
    return adapter, loaded


def shaped(*sizes: tuple[int, int]) -> list[dict[str, object]]:
    return [
        row | {"image": row["image"].resize(size, Image.Resampling.NEAREST)}
        for row, size in zip(rows(), sizes, strict=True)
    ]


@pytest.mark.parametrize("layers", KEPT)
@pytest.mark.parametrize("name", BUILDERS)
def test_answers_and_steps_are_those_of_the_whole_model(name, layers, family_folders):
    adapter, loaded = adapted(str(family_folders[name]), layers)
    # The same number of patches in other rows and columns: Qwen-VL tells text's positions by these.
    split = data.encode(datasets.Dataset.from_list(shaped((16, 16), (32, 8), (8, 32), (16, 16))), loaded.processor)
    cached = precompute(adapter.peft_model, split, batch_size=3)
    assert type(cached) is (EncodedSplit if name in ("florence2", "blip") else KEPT[layers])
    with torch.no_grad():
        for picked in ([3, 0, 2, 1], [1]):
            expected, targets = answer_logits(adapter.peft_model, split.batch(picked))
            seen, same = answer_logits(adapter.peft_model, cached.batch(picked))
            assert torch.equal(targets, same)
            answered = targets != -100
            torch.testing.assert_close(seen[answered], expected[answered], rtol=1e-3, atol=1e-4)
    assert evaluate(adapter.peft_model, cached).loss == pytest.approx(evaluate(adapter.peft_model, split).loss)
    before, ends = adapter.state(), []
    for own in (split, cached):
        adapter.load(before)
        train(adapter, own, TrainSettings(steps=2, batch_size=3, optimizer="sgd", learning_rate=0.1), seed=5)
        ends.append(adapter.state())
    for tensor in before:
        assert not torch.equal(ends[0][tensor], before[tensor])
        torch.testing.assert_close(ends[1][tensor], ends[0][tensor], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_pictures_of_several_sizes_stay_pictures(name, family_folders):
    adapter, loaded = adapted(str(family_folders[name]), "all")
    split = data.encode(datasets.Dataset.from_list(rows()), loaded.processor)
    assert len({int(grid.prod()) for grid in split.tensors["image_grid_thw"]}) > 1
    assert precompute(adapter.peft_model, split) is split


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_pictures_in_several_tiles_stay_pictures_and_keep_to_their_rows(name, family_folders):
    adapter, loaded = adapted(str(family_folders[name]), "all")
    loaded.processor.image_processor.do_image_splitting = True
    loaded.processor.image_processor.size = {"longest_edge": 128}
    split = data.encode(datasets.Dataset.from_list(rows()), loaded.processor)
    tiles = (split.tensors["pixel_values"] != 0).flatten(2).any(dim=2).sum(dim=1).tolist()
    assert len(set(tiles)) > 1
    assert precompute(adapter.peft_model, split) is split
    with torch.no_grad():
        together, _ = answer_logits(adapter.peft_model, split.batch(range(4)))
        for row in range(4):
            alone, _ = answer_logits(adapter.peft_model, data.Collator(loaded.processor)(rows([row])))
            torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-3, atol=1e-4)
