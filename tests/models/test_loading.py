import dataclasses
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedvlm_secure import models
from fedvlm_secure.adapters.bases import save_bases
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models.loading import EMBEDDED

PICTURE = Image.effect_noise((64, 64), 90).convert("RGB")


def test_the_embedded_model_is_small_frozen_and_float32(embedded):
    weights = EMBEDDED / "model.safetensors"
    assert weights.stat().st_size <= 12e6
    assert 2e6 <= embedded.model.num_parameters() <= 6e6
    assert {parameter.dtype for parameter in embedded.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in embedded.model.parameters())
    assert not embedded.model.training
    vocabulary = len(embedded.processor.tokenizer)
    assert embedded.model.get_input_embeddings().num_embeddings == vocabulary <= 1024


def test_the_package_holds_only_safe_formats():
    assert {path.suffix for path in EMBEDDED.iterdir()} <= {".safetensors", ".json", ".jinja", ".md"}


def test_loraa_targets_are_the_text_tower_and_nothing_else(embedded):
    matched = [name for name, _ in embedded.model.named_modules() if re.fullmatch(embedded.lora_targets, name)]
    layers = embedded.model.config.text_config.num_hidden_layers
    assert len(matched) == 7 * layers
    assert {name.rsplit(".", 1)[-1] for name in matched} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert all(".text_model." in name for name in matched)


def test_a_folder_loads_and_answers(tiny_folder):
    loaded = models.load(str(tiny_folder), device="cpu")
    assert loaded.name == str(tiny_folder)
    assert len(loaded.digest) == 32
    assert isinstance(models.answer(loaded, None, PICTURE, "What is this?"), str)


def test_the_digest_is_about_content_not_place(tiny_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_folder, moved)
    assert models.load(str(moved)).digest == models.load(str(tiny_folder)).digest


def one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].flatten()[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def one_token(folder):
    text = (folder / "tokenizer.json").read_text()
    assert "<global-img>" in text
    (folder / "tokenizer.json").write_text(text.replace("<global-img>", "<global_img>"))


def edit_json(name, **changes):
    def change(folder):
        settings = json.loads((folder / name).read_text())
        inner = settings.get("image_processor", settings)
        inner.update(changes)
        (folder / name).write_text(json.dumps(settings))

    return change


def one_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("User:", "Human:"))


def a_basis(folder):
    save_bases(folder, {"model.text_model.layers.0.mlp.down_proj": torch.eye(4)})


@pytest.mark.parametrize(
    "change",
    [one_weight, one_token, one_template, a_basis, edit_json("processor_config.json", image_mean=[0.4, 0.5, 0.5])],
    ids=["weight", "token", "template", "basis", "processor"],
)
def test_the_digest_changes_with_what_was_loaded(tiny_folder, tmp_path, change):
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    change(other)
    assert models.load(str(other)).digest != models.load(str(tiny_folder)).digest


def test_the_digest_depends_on_the_dtype(tiny_folder):
    half = models.load(str(tiny_folder), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.digest != models.load(str(tiny_folder)).digest


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MisuseError, match="there is no model folder"):
        models.load(str(tmp_path / "nothing"))


def test_pickled_weights_are_not_loaded(tiny_folder, tmp_path):
    other = tmp_path / "pickled"
    shutil.copytree(tiny_folder, other)
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    with pytest.raises(MisuseError, match=r"holds no \*.safetensors"):
        models.load(str(other))


def test_a_broken_folder_is_one_sentence(tiny_folder, tmp_path):
    other = tmp_path / "broken"
    shutil.copytree(tiny_folder, other)
    (other / "config.json").unlink()
    with pytest.raises(MisuseError, match="cannot be loaded") as refusal:
        models.load(str(other))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("setting", "value"), [("device", "tpu"), ("dtype", "int8")])
def test_unknown_settings_list_the_choices(tiny_folder, setting, value):
    with pytest.raises(MisuseError, match="choices"):
        models.load(str(tiny_folder), **{setting: value})


def test_a_device_that_is_not_there_is_refused_and_auto_does_without(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MisuseError, match='use device = "cpu"'):
        models.load(str(tiny_folder), device="cuda")
    assert models.load(str(tiny_folder), device="auto").model.device.type == "cpu"


def test_answering_leaves_the_mode_alone_and_reads_any_picture(tiny_folder):
    loaded = models.load(str(tiny_folder), device="cpu")
    loaded.model.train()
    grey = Image.new("L", (120, 40), 90)
    assert models.answer(loaded.model, loaded.processor, grey, "What?") == models.answer(loaded, None, grey, " What? ")
    assert loaded.model.training


def test_an_empty_question_is_refused(embedded):
    with pytest.raises(MisuseError, match="question is empty"):
        models.answer(embedded, None, PICTURE, "  ")


def test_a_loaded_model_cannot_be_changed(embedded):
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedded.name = "other"
