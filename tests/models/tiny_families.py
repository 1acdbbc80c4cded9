"""A tiny random model of every family, of its real class, in a folder as its authors' checkpoints are; and rows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from fedvlm_secure.models.architecture import Tower, new_model, new_processor, new_tokenizer

# (question, answer, size of the picture): answers and pictures differ in length and shape.
ROWS = (
    ("Which colour is it?", "red", (64, 64)),
    ("Is it red?", "a bit of everything", (40, 80)),
    ("What?", "blue", (90, 33)),
    ("Is it red?", "a bit of everything", (32, 32)),
)
TEXTS = ("Which colour is it?", "Is it red?", "red", "green", "blue", "grey", "a bit of everything")
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "initializer_range": 0.2,
}
SQUARE = {"height": 32, "width": 32}
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rows(places: Sequence[int] = range(len(ROWS))) -> list[dict[str, object]]:
    """These of :data:`ROWS`, with noise for pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pixels = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy() for _, _, size in ROWS]
    pictures = [Image.fromarray(values) for values in pixels]
    return [{"question": ROWS[p][0], "chosen": ROWS[p][1], "image": pictures[p]} for p in places]


def tokenizer(special: Sequence[str], around: str = "$A", pair: str | None = None, **roles: str) -> Any:
    """A byte-level tokenizer with these special tokens; ``around`` and ``pair`` say what it puts around texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    used = [(token, bpe.token_to_id(token)) for token in special if token in around]
    bpe.post_processor = processors.TemplateProcessing(single=around, pair=pair or "$A $B:1", special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **roles)


def _seeded(build: Callable[[], torch.nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build()


def smolvlm(folder: Path) -> None:
    words = new_tokenizer(TEXTS, 300)
    small = Tower(width=32, inner=48, layers=2, heads=2)
    _seeded(lambda: new_model(words, small, small)).save_pretrained(folder)
    new_processor(words).save_pretrained(folder)


def idefics3(folder: Path) -> None:
    words = new_tokenizer(TEXTS, 300)
    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 1},
        vision_config={**VISION, "image_size": 64, "patch_size": 8},
        scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    _seeded(lambda: Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    new_processor(words).save_pretrained(folder)


QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def _qwen(folder: Path, kind: Any, config: Any, vision: Mapping[str, Any]) -> None:
    words = tokenizer(QWEN_SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made = config(
        text_config={
            **TEXT,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 4, "initializer_range": 0.2, **vision},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    _seeded(lambda: kind(made)).save_pretrained(folder)
    words.chat_template = QWEN_TEMPLATE
    words.save_pretrained(folder)
    pictures = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 16 * 16, "longest_edge": 16 * 24})
    pictures.save_pretrained(folder)


def qwen2_vl(folder: Path) -> None:
    vision = {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    _qwen(folder, Qwen2VLForConditionalGeneration, Qwen2VLConfig, vision)


def qwen2_5_vl(folder: Path) -> None:
    vision = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "window_size": 16}
    vision |= {"fullatt_block_indexes": [1]}
    _qwen(folder, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, vision)


def llava(folder: Path) -> None:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = tokenizer(("<pad>", "<s>", "</s>", "<image>"), around="<s> $A", **roles)
    config = LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 2},
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 16},
        image_token_id=3,
        vision_feature_layer=-2,
    )
    _seeded(lambda: LlavaForConditionalGeneration(config)).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    LlavaProcessor(
        pictures,
        words,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def paligemma(folder: Path) -> None:
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    words = tokenizer(("<pad>", "<eos>", "<bos>"), **roles)
    pictures = SiglipImageProcessorPil(size=SQUARE)
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(pictures, words)
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, "vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 1},
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    _seeded(lambda: PaliGemmaForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)


def florence2(folder: Path) -> None:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = tokenizer(("<s>", "<pad>", "</s>", "<image>"), around="<s> $A </s>", **roles)
    words = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, extra_special_tokens={"image_token": "<image>"}, **roles
    )
    text = {
        "model_type": "bart",
        "vocab_size": len(words),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "init_std": 0.2,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    vision = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [8, 16],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
        "projection_dim": 32,
        "drop_path_rate": 0.0,
    }
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=3)
    _seeded(lambda: Florence2ForConditionalGeneration(config)).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size=SQUARE, do_center_crop=False)
    pictures.image_seq_length = 17  # 4x4 places, and their mean
    Florence2Processor(pictures, words).save_pretrained(folder)


def blip(folder: Path) -> None:
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "bos_token": "[DEC]"}
    words = tokenizer(("[PAD]", "[CLS]", "[SEP]", "[DEC]"), around="[CLS] $A [SEP]", **roles)
    config = BlipConfig(
        text_config={
            **{name: value for name, value in TEXT.items() if name not in ("num_key_value_heads", "head_dim")},
            "vocab_size": len(words),
            "projection_dim": 16,
            "pad_token_id": 0,
            "bos_token_id": 3,
            "eos_token_id": 2,
            "sep_token_id": 2,
        },
        vision_config={**VISION, "hidden_size": 32, "projection_dim": 16},  # as wide as the text, as published ones
        projection_dim=16,
        image_text_hidden_size=16,
    )
    _seeded(lambda: BlipForQuestionAnswering(config)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=SQUARE), words).save_pretrained(folder)


BUILDERS: Mapping[str, Callable[[Path], None]] = {
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "llava": llava,
    "paligemma": paligemma,
    "florence2": florence2,
    "blip": blip,
}
