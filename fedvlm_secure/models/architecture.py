"""The embedded model's shape: a small SmolVLM, its byte-level tokenizer and its processor.

SmolVLM's own processor and Qwen's need torchvision; Idefics3's with the PIL image processor does the same job
without it. A word-level tokenizer would turn unseen words into ``<unk>``: byte-level BPE cannot.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

PICTURE = 64
PATCH = 8
SHUFFLE = 2  # pixel shuffle: 2x2 patches become one image token
IMAGE_TOKENS = (PICTURE // PATCH // SHUFFLE) ** 2
VOCABULARY = 1024

PAD, END = "<pad>", "<end_of_utterance>"
SPECIAL = (PAD, END, "<fake_token_around_image>", "<image>", "<global-img>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'User:' if message['role'] == 'user' else 'Assistant: ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def new_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most ``vocabulary`` entries, special tokens included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def new_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Return the processor: one picture, resized to 64x64, never split into tiles."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": PICTURE}, max_image_size={"longest_edge": PICTURE}, do_image_splitting=False
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


@dataclass(frozen=True, slots=True)
class Tower:
    """Size of one transformer: the vision tower or the text tower."""

    width: int
    inner: int
    layers: int
    heads: int


VISION = Tower(width=128, inner=384, layers=4, heads=4)
TEXT = Tower(width=192, inner=384, layers=4, heads=4)


def new_model(
    tokenizer: PreTrainedTokenizerFast, vision: Tower = VISION, text: Tower = TEXT
) -> SmolVLMForConditionalGeneration:
    """Return a model with fresh weights; the embedding has exactly ``len(tokenizer)`` rows."""
    config = SmolVLMConfig(
        image_token_id=SPECIAL.index("<image>"),
        tie_word_embeddings=True,
        scale_factor=SHUFFLE,
        vision_config={**_sizes(vision), "image_size": PICTURE, "patch_size": PATCH},
        text_config={
            **_sizes(text),
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": text.heads,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _sizes(tower: Tower) -> dict[str, int]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.inner,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
    }
