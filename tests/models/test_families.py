"""Every family from its folder to an answer, with tiny random models of its real class."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import peft
import pytest
import torch
import transformers

from fedvlm_secure import data, models
from fedvlm_secure.adapters import AdapterSettings, attach, load_peft, save_peft
from fedvlm_secure.adapters.bases import public_bases
from fedvlm_secure.data.collate import IGNORED
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models import families
from fedvlm_secure.models.library import QwenVLPictureProcessor
from fedvlm_secure.training import TrainSettings, answer_logits, evaluate, sample_losses, train
from tests.models.tiny_families import BUILDERS, ROWS, rows

END = {
    "smolvlm": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "qwen2_vl": "<|im_end|>",
    "qwen2_5_vl": "<|im_end|>",
    "llava": "</s>",
    "paligemma": "<eos>",
    "florence2": "</s>",
    "blip": "[SEP]",
}
# Modules with LoRA by default: all linear ones of two text layers, or of two encoder and two decoder layers.
COUNT = dict.fromkeys(END, 14) | {"florence2": 2 * 6 + 2 * 10, "blip": 4 * (2 * 4 + 2)}


@pytest.fixture(scope="module", params=BUILDERS)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(family_folders, family) -> Path:
    return family_folders[family]


@pytest.fixture
def loaded(folder) -> models.LoadedModel:
    return models.load(str(folder), device="cpu")


@pytest.fixture
def split(loaded) -> data.EncodedSplit:
    return data.encode(datasets.Dataset.from_list(rows()), loaded.processor)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def adapted(loaded, **settings):
    return attach(loaded.model, AdapterSettings(targets=loaded.lora_targets, rank=4, **settings))


def logits(model, split) -> torch.Tensor:
    with torch.no_grad():
        return answer_logits(model, split.batch(range(len(split))))[0]


def test_lora_goes_to_the_language_side_and_nowhere_else(family, loaded):
    matched = [name for name, _ in loaded.model.named_modules() if re.fullmatch(loaded.lora_targets, name)]
    assert len(matched) == COUNT[family]
    assert all(isinstance(loaded.model.get_submodule(name), torch.nn.Linear) for name in matched)
    side = r"(model\.(text_model|language_model)|text_encoder|text_decoder)\."
    assert all(re.match(side, name) for name in matched)
    assert adapted(loaded).modules == tuple(sorted(matched))


def test_the_last_layers_are_those_nearest_the_answer(family, loaded):
    targets = models.lora_targets(loaded.model, layers=1)
    matched = [name for name, _ in loaded.model.named_modules() if re.fullmatch(targets, name)]
    assert len(matched) == {"florence2": 10, "blip": 10}.get(family, 7)
    assert all(re.search(r"\.layers?\.1\.", name) and "encoder.layers" not in name for name in matched)
    assert not any("text_encoder" in name for name in matched)
    with pytest.raises(MisuseError, match="has 2 layers"):
        models.lora_targets(loaded.model, layers=3)


def test_projections_go_by_the_familys_names(family, loaded):
    names = families.family_of(loaded.model.config).projections
    targets = models.lora_targets(loaded.model, modules=names[:1])
    assert {n.rsplit(".", 1)[1] for n, _ in loaded.model.named_modules() if re.fullmatch(targets, n)} == {names[0]}
    with pytest.raises(MisuseError, match="no 'lm_head'.*" + names[0]):
        models.lora_targets(loaded.model, modules=("lm_head",))


def test_vision_is_not_hit_by_short_names(loaded):
    with pytest.raises(MisuseError, match=r"match \S*(vision|visual)\S*.* outside the language side"):
        attach(loaded.model, AdapterSettings(targets=r".*\.(?:q_proj|qkv|query)"))


@pytest.mark.parametrize(
    ("name", "head"),
    [("florence2", "lm_head"), ("paligemma", "lm_head"), ("blip", "text_decoder.cls.predictions.decoder")],
)
def test_a_tied_head_is_refused_by_name(family_folders, name, head):
    loaded = models.load(str(family_folders[name]), device="cpu")
    with pytest.raises(MisuseError, match=f"match {re.escape(head)}, which share"):
        attach(loaded.model, AdapterSettings(targets=rf"{loaded.lora_targets}|{re.escape(head)}"))


def test_labels_are_the_answer_and_its_end(family, loaded):
    batch = data.Collator(loaded.processor)(rows())
    written = batch.get("decoder_input_ids", batch["input_ids"])
    known = batch["labels"] != IGNORED
    said = [loaded.processor.tokenizer.decode(labels[labels != IGNORED]) for labels in batch["labels"]]
    assert [text.lstrip() for text in said] == [answer + END[family] for _, answer, _ in ROWS]
    assert torch.equal(batch["labels"][known], written[known])
    whole = loaded.processor.tokenizer.decode(batch["input_ids"][1])
    assert "Is it red?" in whole
    assert ("everything" in whole) == ("decoder_input_ids" not in batch)


def test_an_encoded_split_gives_what_the_collator_gives(loaded, split):
    for picked in ([2, 0, 3], [1], [0, 2]):
        batch, expected = split.batch(picked), data.Collator(loaded.processor)(rows(picked))
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


def test_a_row_is_the_same_alone_and_among_others(loaded, split):
    model = adapted(loaded).peft_model
    with torch.no_grad():
        together = sample_losses(*answer_logits(model, split.batch(range(4))))
        alone = torch.cat([sample_losses(*answer_logits(model, split.batch([row]))) for row in range(4)])
    assert together.std() > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_two_steps_the_shared_vector_and_peft_files_carry_the_answers_over(folder, loaded, split, tmp_path):
    adapter = adapted(loaded, strategy="lora")
    first = logits(adapter.peft_model, split)
    stats = train(adapter, split, TrainSettings(steps=2, batch_size=2, learning_rate=1e-2), seed=0)
    assert stats.steps == 2
    trained = logits(adapter.peft_model, split)
    assert not torch.allclose(first, trained, atol=1e-3)

    layout = adapter.layout(1)
    vector = layout.flatten(adapter.state())
    other = adapted(models.load(str(folder), device="cpu"), strategy="lora")
    other.load(layout.unflatten(vector))
    assert torch.equal(logits(other.peft_model, split), trained)

    save_peft(adapter.exported(), adapter.settings, tmp_path / "adapter", base_model=str(folder))
    fresh = models.load(str(folder), device="cpu").model
    reloaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert torch.equal(logits(reloaded, split), trained)
    again = load_peft(tmp_path / "adapter")
    mine = attach(models.load(str(folder), device="cpu").model, again.settings)
    mine.load(again.state)
    assert torch.equal(logits(mine.peft_model, split), trained)


def test_what_is_learnt_is_evaluated_and_said(loaded, split):
    adapter = adapted(loaded, alpha=32)
    before = evaluate(adapter.peft_model, split)
    train(adapter, split, TrainSettings(steps=60, batch_size=4, learning_rate=1e-2), seed=0)
    after = evaluate(adapter.peft_model, split)
    assert (before.correct, after.correct, after.asked) == (0, 4, 4)
    single = evaluate(adapter.peft_model, split, batch_size=1)
    assert single.correct == 4
    assert single.loss_sum == pytest.approx(after.loss_sum, rel=1e-3, abs=1e-3)
    for row in rows():
        said = models.answer(adapter.peft_model, loaded.processor, row["image"], row["question"])
        assert said == row["chosen"]


def test_half_precision_trains_an_adapter_in_full_precision(folder, split):
    loaded = models.load(str(folder), device="cpu", dtype="bfloat16")
    adapter = adapted(loaded, strategy="lora")
    stats = train(adapter, split, TrainSettings(steps=2, batch_size=2, learning_rate=1e-2), seed=0)
    assert 0 < stats.last_loss < 20
    assert {tensor.dtype for tensor in adapter.state().values()} == {torch.float32}
    said = models.answer(adapter.peft_model, loaded.processor, rows()[0]["image"], "What?", max_new_tokens=2)
    assert isinstance(said, str)


def test_generation_begins_where_evaluation_does(loaded, split, monkeypatch):
    generate, said = loaded.model.generate, []
    monkeypatch.setattr(loaded.model, "generate", lambda **given: said.append(generate(**given)) or said[-1])
    expected = logits(loaded.model, split)[:, 0].argmax(dim=-1)
    firsts = []
    for row in rows():
        batch = data.Collator(loaded.processor)([row])
        models.answer(loaded, None, row["image"], row["question"], max_new_tokens=3)
        # What comes before the answer is the same tokens here and there.
        before = int((batch["labels"][0] != IGNORED).int().argmax())
        written = batch.get("decoder_input_ids", batch["input_ids"])[0, :before]
        assert torch.equal(said[-1][0, :before], written)
        firsts.append(int(said[-1][0, before]))
    assert firsts == expected.tolist()


@pytest.mark.parametrize("name", ["qwen2_vl", "florence2"])
def test_a_checkpoints_habits_change_no_answer(family_folders, name, monkeypatch):
    loaded = models.load(str(family_folders[name]), device="cpu")
    plain = [models.answer(loaded, None, row["image"], row["question"]) for row in rows()]
    for habit in ({"num_beams": 4}, {"repetition_penalty": 9.0}, {"no_repeat_ngram_size": 1}, {"do_sample": True}):
        with monkeypatch.context() as changed:
            for key, value in habit.items():
                changed.setattr(loaded.model.generation_config, key, value)
            assert [models.answer(loaded, None, row["image"], row["question"]) for row in rows()] == plain


def test_pictures_matter(loaded):
    alike = [row | {"image": row["image"].resize((64, 64))} for row in rows()]  # Qwen-VL: one number of patches
    split = data.encode(datasets.Dataset.from_list(alike), loaded.processor)
    seen = logits(loaded.model, split)
    split.tensors["pixel_values"] = split.tensors["pixel_values"].flip(0)
    assert not torch.allclose(logits(loaded.model, split), seen, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_gets_an_image_token_for_every_group_of_patches(family_folders, name):
    processor = models.load(str(family_folders[name]), device="cpu").processor
    batch = data.Collator(processor)(rows())
    patches = batch["image_grid_thw"].prod(dim=1)
    assert len(batch["pixel_values"]) == patches.sum()
    assert torch.equal((batch["input_ids"] == 5).sum(dim=1), patches // 4)
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == 5).long())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_qwens_own_processor_writes_the_same_rows(family_folders, name):
    pytest.importorskip("torchvision", reason="Qwen-VL's own processor has a video part, which needs torchvision")
    own = transformers.AutoProcessor.from_pretrained(family_folders[name])
    ours = QwenVLPictureProcessor.from_pretrained(family_folders[name])
    expected, batch = data.Collator(own)(rows()), data.Collator(ours)(rows())
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_a_smolvlm_whose_own_processor_cannot_be_had_is_read_by_idefics3s(family_folders, tmp_path):
    folder = tmp_path / "smolvlm2"
    shutil.copytree(family_folders["smolvlm"], folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    pictures = settings.pop("image_processor") | {"image_processor_type": "SmolVLMImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures | {"video_sampling": {"fps": 1}}))
    (folder / "processor_config.json").write_text(json.dumps(settings | {"processor_class": "SmolVLMProcessor"}))
    loaded, plain = (models.load(str(place), device="cpu") for place in (folder, family_folders["smolvlm"]))
    batch, expected = (data.Collator(model.processor)(rows()) for model in (loaded, plain))
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_smolvlms_own_processor_writes_the_same_rows(family_folders):
    pytest.importorskip("torchvision", reason="SmolVLM's own processor has a video part, which needs torchvision")
    pytest.importorskip("num2words", reason="SmolVLM's own processor needs num2words")
    ours = models.load(str(family_folders["smolvlm"]), device="cpu").processor
    video = transformers.AutoVideoProcessor.from_pretrained(family_folders["smolvlm"])
    own = transformers.SmolVLMProcessor(
        ours.image_processor, ours.tokenizer, video, ours.image_seq_len, ours.chat_template
    )
    expected, batch = data.Collator(own)(rows()), data.Collator(ours)(rows())
    assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_blip_computes_what_the_librarys_class_does(family_folders):
    loaded = models.load(str(family_folders["blip"]), device="cpu")
    batch = data.Collator(loaded.processor)(rows([1]))
    labels, own = batch.pop("labels"), transformers.BlipForQuestionAnswering.from_pretrained(family_folders["blip"])
    with torch.no_grad():
        expected = own.eval()(**batch, labels=labels).loss
        said = loaded.model(**batch).logits[0, :-1]
    assert torch.nn.functional.cross_entropy(said, labels[0, 1:]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_task_token_amid_words_is_refused(family_folders):
    loaded = models.load(str(family_folders["florence2"]), device="cpu")
    with pytest.raises(MisuseError, match="<OCR> should be the only content"):
        data.Collator(loaded.processor)([rows()[0] | {"question": "<OCR> please"}])


@pytest.mark.parametrize(("name", "places"), [("florence2", 128), ("blip", 512)])
def test_texts_beyond_a_models_last_position_are_refused(family_folders, name, places):
    loaded = models.load(str(family_folders[name]), device="cpu")
    row, long = rows()[0], "?" * (places + 1)
    said = rf"has \d+ tokens; this model has places for {places}"
    for what, changed in (("question", {"question": long}), ("answer", {"chosen": long})):
        with pytest.raises(MisuseError, match=rf"{what} {said}"):
            data.Collator(loaded.processor)([row | changed])
    with pytest.raises(MisuseError, match=f"question {said}"):
        models.answer(loaded, None, row["image"], long)


@pytest.mark.parametrize("name", ["llava", "florence2"])
def test_public_bases_are_for_models_that_answer_where_they_read(family_folders, name):
    loaded = models.load(str(family_folders[name]), device="cpu")
    batch = data.Collator(loaded.processor)(rows())
    modules = adapted(loaded).modules
    if name == "florence2":
        with pytest.raises(MisuseError, match=r'encoder and a decoder has no public bases.*init = "random"'):
            public_bases(loaded.model, modules, [batch], rank=2)
    else:
        assert public_bases(loaded.model, modules, [batch], rank=2).keys() == set(modules)


def no_image_token(folder):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    dropped = ("image_token", "extra_special_tokens", "model_specific_special_tokens")
    path.write_text(json.dumps({key: value for key, value in settings.items() if key not in dropped}))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llava", lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        ("florence2", no_image_token, "image_token"),
    ],
)
def test_what_a_family_needs_in_its_folder_is_named(family_folders, tmp_path, name, change, said):
    folder = tmp_path / "model"
    shutil.copytree(family_folders[name], folder)
    change(folder)
    with pytest.raises(MisuseError, match=f"cannot be loaded: .*{said}") as refusal:
        models.load(str(folder))
    assert "\n" not in str(refusal.value)


def test_a_plain_processor_cannot_chat(family_folders):
    plain = transformers.AutoProcessor.from_pretrained(family_folders["paligemma"])
    with pytest.raises(MisuseError, match="no chat template"):
        data.Collator(plain)(rows())
    model = models.load(str(family_folders["paligemma"]), device="cpu").model
    with pytest.raises(MisuseError, match="no chat template"):
        models.answer(model, plain, rows()[0]["image"], "What?")


def test_an_unknown_family_is_refused_by_naming_those_known(family_folders, tmp_path):
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    transformers.ViTModel(config).save_pretrained(folder)
    known = "SmolVLM/Idefics3, Qwen2-VL/Qwen2.5-VL, LLaVA, PaliGemma, Florence-2, BLIP-VQA"
    with pytest.raises(MisuseError, match=rf"type 'vit', none of the families known \({re.escape(known)}\)"):
        models.load(str(folder))


def test_an_unknown_family_with_chat_template_and_text_tower_is_taken(family_folders, monkeypatch):
    named = models.load(str(family_folders["llava"]), device="cpu")
    monkeypatch.setattr(families, "FAMILIES", ())
    other = models.load(str(family_folders["llava"]), device="cpu")
    assert families.family_of(other.model.config) is families.OTHER
    assert (other.digest, other.lora_targets) == (named.digest, named.lora_targets)
    with pytest.raises(MisuseError, match="none of the families known"):
        models.load(str(family_folders["paligemma"]), device="cpu")
