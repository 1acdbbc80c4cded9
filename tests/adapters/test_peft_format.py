import json

import peft
import pytest
import safetensors.torch
import torch

from fedvlm_secure.adapters import AdapterSettings, attach, load_peft, save_peft
from fedvlm_secure.errors import MisuseError
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, tiny_vlm

SETTINGS = AdapterSettings(targets=TEXT_ONLY, rank=4, alpha=6.0, dropout=0.25, strategy="lora", seed=11)
CONFIG, WEIGHTS, FEDERATION = "adapter_config.json", "adapter_model.safetensors", "federation.json"


@pytest.fixture
def adapter():
    adapter = attach(tiny_vlm(), SETTINGS)
    generator = torch.Generator().manual_seed(0)
    adapter.load({name: torch.randn(p.shape, generator=generator) for name, p in adapter.parameters.items()})
    adapter.peft_model.eval()
    return adapter


@pytest.fixture
def folder(adapter, tmp_path):
    save_peft(adapter.state(), adapter.settings, tmp_path / "saved", base_model="tiny-smolvlm")
    return tmp_path / "saved"


def logits(model):
    batch = FakeSplit(5).batch(range(5))
    with torch.inference_mode():
        return model(**batch).logits


def test_plain_peft_gives_equal_logits(adapter, folder):
    plain = peft.PeftModel.from_pretrained(tiny_vlm(), folder)
    assert torch.equal(logits(plain), logits(adapter.peft_model))
    assert not torch.equal(logits(plain), logits(tiny_vlm()))


def test_reading_back_gives_settings_and_state(adapter, folder):
    saved = load_peft(folder)
    assert (saved.settings, saved.base_model) == (SETTINGS, "tiny-smolvlm")
    again = attach(tiny_vlm(), saved.settings)
    again.load(saved.state)
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in adapter.state().items())


def test_the_same_adapter_is_the_same_bytes_and_names_no_machine(adapter, folder, tmp_path):
    save_peft(adapter.state(), adapter.settings, tmp_path / "again", base_model="tiny-smolvlm")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, FEDERATION]
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def edit(name, **changes):
    def spoil(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def drop(name, field):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        del content[field]
        (folder / name).write_text(json.dumps(content))

    return spoil


def pickle_instead(folder):
    torch.save(safetensors.torch.load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def truncate(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def foreign_tensor(folder):
    safetensors.torch.save_file({"lm_head.weight": torch.zeros(1)}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (edit(CONFIG, use_dora=True), "use_dora"),
        (edit(CONFIG, use_rslora=True), "use_rslora"),
        (edit(CONFIG, modules_to_save=["lm_head"]), "modules_to_save"),
        (edit(CONFIG, peft_type="IA3"), "peft_type"),
        (edit(CONFIG, from_the_future=True), "from_the_future"),
        (edit(CONFIG, target_modules=["q_proj"]), "adapter"),
        (edit(CONFIG, r="4"), "adapter"),
        (edit(FEDERATION, strategy="plroa"), "strategy"),
        (drop(CONFIG, "r"), "'r'"),
        (drop(FEDERATION, "seed"), "'seed'"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "JSON object"),
        (lambda folder: (folder / CONFIG).write_text("{"), "cannot be read"),
        (lambda folder: (folder / FEDERATION).unlink(), "cannot be read"),
        (pickle_instead, "cannot be read"),
        (truncate, "cannot be read"),
        (foreign_tensor, "lm_head.weight"),
    ],
)
def test_what_this_package_does_not_write_is_refused(folder, spoil, said):
    spoil(folder)
    with pytest.raises(MisuseError, match=said):
        load_peft(folder)


def test_an_option_unknown_to_this_peft_is_harmless_while_off(folder):
    edit(CONFIG, from_the_future=False)(folder)
    assert load_peft(folder).settings == SETTINGS
