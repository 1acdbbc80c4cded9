import functools

import numpy as np
import peft
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training import PrivateSettings, TrainSettings, check_model, train_private
from fedvlm_secure.training.rows import owners
from fedvlm_secure.training.soundness import refuse_coupled
from tests.adapters.tiny_vlm import TEXT_ONLY, FakeSplit, tiny_vlm
from tests.training.dp_reference import FAMILIES, Script

DP = PrivateSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=1.0)
ONE = TrainSettings(steps=1)


def adapted(model=None, **changes):
    return attach(
        tiny_vlm() if model is None else model, AdapterSettings(**({"targets": TEXT_ONLY, "rank": 2} | changes))
    )


def by_peft(**config):
    return peft.get_peft_model(tiny_vlm().requires_grad_(False), peft.LoraConfig(r=2, **config))


def private(adapter, split=None):
    split = FakeSplit(8) if split is None else split
    return train_private(adapter, split, ONE, DP, np.arange(8), noise=Script(noise=1.0))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_clipped_rightly_is_not_complained_about(family):
    assert check_model(family.adapter().peft_model) == []
    assert check_model(family.model()) == [] or any(p.requires_grad for p in family.model().parameters())


def only(findings, layer, *, says, fix):
    assert findings
    assert all(layer in finding.layer for finding in findings), findings
    assert all(says in finding.what and fix in finding.fix for finding in findings), findings


def test_dora_is_named_with_its_layer():
    model = by_peft(target_modules=r".*text_model.*v_proj", use_dora=True)
    found = check_model(model)
    assert {finding.layer for finding in found} == {
        f"model.text_model.layers.{layer}.self_attn.v_proj" for layer in range(2)
    }
    only(found, "v_proj", says="DoRA", fix="use_dora=False")


def test_lora_on_an_embedding_is_named():
    model = by_peft(target_modules=["embed_tokens"])
    only(check_model(model), "text_model.embed_tokens", says="lora_embedding", fix="leave embeddings out")


def test_a_trainable_parameter_outside_the_adapter_is_named():
    adapter = adapted()
    adapter.peft_model.get_base_model().lm_head.weight.requires_grad_(True)
    only(check_model(adapter.peft_model), "lm_head.weight", says="not part of the LoRA adapter", fix="freeze")
    before = adapter.state()
    with pytest.raises(MisuseError, match=r"lm_head\.weight"):
        private(adapter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state().items())


def test_a_module_saved_whole_is_named():
    model = by_peft(target_modules=r".*text_model.*v_proj", modules_to_save=["lm_head"])
    only(check_model(model), "lm_head", says="not part of the LoRA adapter", fix="freeze")


def test_a_lora_bias_is_named():
    model = by_peft(target_modules=r".*text_model.*v_proj", lora_bias=True)
    only(check_model(model), "lora_B", says="bias", fix="lora_bias=False")


def test_layers_that_share_a_trainable_tensor_are_named():
    adapter = adapted()
    layers = adapter.peft_model.get_base_model().model.text_model.layers
    layers[1].self_attn.v_proj.lora_A["default"].weight = layers[0].self_attn.v_proj.lora_A["default"].weight
    only(check_model(adapter.peft_model), "layers.1.self_attn.v_proj.lora_A", says="tied to", fix="of its own")
    with pytest.raises(MisuseError, match="tied to"):
        private(adapter)


def test_a_layer_that_is_in_the_model_twice_is_named():
    adapter = adapted()
    layers = adapter.peft_model.get_base_model().model.text_model.layers
    layers[1].mlp.down_proj = layers[0].mlp.down_proj
    only(check_model(adapter.peft_model), "layers.1.mlp.down_proj", says="tied to", fix="of its own")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_that_the_hooks_do_not_see_is_named(reentrant):
    adapter = adapted()
    base = adapter.peft_model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = check_model(adapter.peft_model)
    assert bool(found) != reentrant
    if found:
        only(found, "", says="re-entering", fix="use_reentrant")


def test_checkpointing_by_hand_is_taken_for_what_it_is():
    adapter = adapted()
    layer = adapter.peft_model.get_base_model().model.text_model.layers[0]
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, functools.partial(checkpoint)
    only(check_model(adapter.peft_model), "layers.0", says="re-entering", fix="use_reentrant")


@pytest.mark.parametrize("tracks", [True, False])
def test_batch_statistics_are_named_where_they_mix_rows(tracks):
    model = tiny_vlm()
    model.model.text_model.norm2 = torch.nn.BatchNorm1d(4, affine=False, track_running_stats=tracks)
    found = check_model(adapted(model).peft_model)
    assert bool(found) != tracks
    if found:
        only(found, "norm2", says="mixes samples", fix="group or layer norm")


def test_half_precision_adapters_are_named():
    adapter = adapted()
    adapter.peft_model.bfloat16()
    only(check_model(adapter.peft_model), "lora_", says="bfloat16", fix="float32")


def test_vision_layers_of_an_unknown_family_are_named_and_its_text_is_not():
    model = tiny_vlm()
    model.config.model_type = "seen_never"
    adapter = adapted(model, targets=TEXT_ONLY + "|.*vision_model.*q_proj")
    only(check_model(adapter.peft_model), "vision_model", says="seen_never", fix="targets")
    with pytest.raises(MisuseError, match=r"vision_model.*q_proj"):
        private(adapter)
    adapter.detach()
    adapter = adapted(model)
    assert check_model(adapter.peft_model) == []
    private(adapter)


def test_several_pictures_a_row_are_refused_where_rows_cannot_be_told():
    family = next(family for family in FAMILIES if family.name == "Qwen2-VL, both")
    batch = family.split().batch(range(4))
    batch["image_grid_thw"] = batch["image_grid_thw"][:3]
    with pytest.raises(ValueError, match="3 pictures for 4 rows"):
        owners(family.model(), "model.visual.blocks.0.attn.qkv", batch)


def test_tiles_patches_and_text_belong_to_their_rows():
    by_name = {family.name: family for family in FAMILIES}
    tiled, patched = by_name["Idefics3 of two tiles, both"], by_name["Qwen2-VL, both"]
    layer = "model.vision_model.encoder.layers.0.self_attn.q_proj"
    assert owners(tiled.model(), layer, tiled.split().batch(range(4))).tolist() == [0, 1, 1, 2, 2, 3]
    assert owners(tiled.model(), "model.text_model.layers.0.mlp.down_proj", tiled.split().batch(range(4))) is None
    batch = patched.split().batch([0, 1])
    assert owners(patched.model(), "model.visual.blocks.0.mlp.fc2", batch).tolist() == [0] * 16 + [1] * 8
    assert owners(patched.model(), "model.visual.merger.mlp.2", batch).tolist() == [0] * 4 + [1] * 2


def test_rows_that_influence_each_other_through_padding_are_refused():
    """PaliGemma without token types looks both ways in a batch without padding, and back only in one with some."""
    family = next(family for family in FAMILIES if family.name == "PaliGemma, text")
    adapter, split = family.adapter(), family.split()
    refuse_coupled(adapter, split)
    typed = split.batch
    split.batch = lambda rows: {name: tensor for name, tensor in typed(rows).items() if name != "token_type_ids"}
    with pytest.raises(MisuseError, match="token_type_ids"):
        private(adapter, split)


def test_a_row_that_is_not_finite_is_no_sign_of_influence():
    adapter, split = adapted(), FakeSplit(8)
    split.pictures[:] = float("nan")
    refuse_coupled(adapter, split)
