"""Trains the embedded model: ``python -m fedvlm_secure.models.pretrain --out DIR``.

Tokenizer, processor and weights are made from nothing. The exercises are those of
:mod:`fedvlm_secure.models.pretext`; the pictures come from training splits only.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, pad

from fedvlm_secure.data.collate import IGNORED, Collator
from fedvlm_secure.models.architecture import IMAGE_TOKENS, TEXT, new_model, new_processor, new_tokenizer
from fedvlm_secure.models.loading import load
from fedvlm_secure.models.pretext import HEADS, UNKNOWN, Exercise, exercise, texts


def main() -> None:
    """Read the command line, train, write the model folder and ``pretrain.json`` with the figures of the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="begin", type=Path, help="begin with the weights that this program wrote there")
    parser.add_argument("--eye-steps", type=int, default=1200, help="steps of the vision tower alone")
    parser.add_argument("--steps", type=int, default=4500, help="steps of the whole model after that")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=60_000, help="exercises made once and drawn from")
    parser.add_argument("--seed", type=int, default=20250717)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    began = time.monotonic()
    tokenizer = new_tokenizer(texts())
    processor = new_processor(tokenizer)
    model = new_model(tokenizer)
    if arguments.begin:
        model.load_state_dict(load(str(arguments.begin)).model.state_dict())
    trainer = Trainer(model, arguments.lr)
    rng = np.random.default_rng(arguments.seed)
    pool = Pool([exercise(rng) for _ in range(arguments.pool)], processor)
    held_out = {split: Pool([exercise(rng, split) for _ in range(2000)], processor) for split in ("validation", "test")}
    size = trainer.model.num_parameters()
    print(f"{len(tokenizer)} tokens, {size:,} parameters, {time.monotonic() - began:.0f} s", flush=True)
    for step in train(trainer, pool, arguments, rng):
        if step % 400 == 0:
            report(f"step {step} sees", began, sight(trainer, held_out["validation"]))
        if step > arguments.eye_steps and step % 800 == 0:
            report(f"step {step} says", began, accuracy(trainer.model, held_out["validation"]))
            save(trainer, processor, arguments.out)
    save(trainer, processor, arguments.out)
    figures = {split: accuracy(load(str(arguments.out)).model, rows) for split, rows in held_out.items()}
    report("test", began, figures["test"])
    record = {
        "seed": arguments.seed,
        "eye_steps": arguments.eye_steps,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "lr": arguments.lr,
        "pool": arguments.pool,
        "parameters": size,
        "seconds": round(time.monotonic() - began),
        "threads": arguments.threads,
        "accuracy": figures,
    }
    if arguments.begin:
        record["from"] = json.loads((arguments.begin / "pretrain.json").read_text())
    (arguments.out / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n")


class Pool:
    """Exercises as tensors: pictures uint8 [n, 3, 64, 64], texts as token ids with the answer's length."""

    def __init__(self, exercises: Sequence[Exercise], processor: Any) -> None:
        self.kinds = [made.kind for made in exercises]
        self.facts = torch.from_numpy(np.stack([made.facts for made in exercises]))
        self.pictures = torch.from_numpy(np.stack([made.picture for made in exercises])).permute(0, 3, 1, 2)
        collate = Collator(processor)
        blank = Image.new("RGB", (64, 64), "white")
        known: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}
        for made in exercises:
            key = (made.question, made.answer)
            if key not in known:
                row = collate([{"question": made.question, "chosen": made.answer, "image": blank}])
                known[key] = (row["input_ids"][0], row["labels"][0])
        self.texts = [known[made.question, made.answer] for made in exercises]

    def __len__(self) -> int:
        return len(self.kinds)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return what the processor would give for these rows."""
        longest = max(len(self.texts[index][0]) for index in indices)
        rows = [self.texts[index] for index in indices]
        pictures = self.pictures[torch.as_tensor(indices)].unsqueeze(1)
        return {
            "input_ids": torch.stack([pad(ids, (0, longest - len(ids))) for ids, _ in rows]),
            "labels": torch.stack([pad(labels, (0, longest - len(labels)), value=IGNORED) for _, labels in rows]),
            "attention_mask": torch.stack([pad(torch.ones_like(ids), (0, longest - len(ids))) for ids, _ in rows]),
            "facts": self.facts[torch.as_tensor(indices)],
            "pixel_values": (pictures.float() / 255 - 0.5) / 0.5,
        }


class ReadOut(torch.nn.Module):
    """One linear read-out per fact. Thrown away afterwards.

    A question tells a tower one fact about a picture, these tell it eight. The vision tower is read over all image
    tokens as the text tower gets them: it learns to see in a fraction of the time. The text tower is read before its
    last layer, where the answer begins: it learns to have the facts at hand whatever it is asked, in new words too.

    Args:
        noise: added to what is read, scaled to mean square one, so that facts have to be the loud part of it. A LoRA
            factor A that is still random lets a few random directions through; quiet facts would be lost in them.
    """

    def __init__(self, inputs: int, noise: float = 0.0) -> None:
        super().__init__()
        self.read = torch.nn.Linear(inputs, sum(HEADS.values()))
        self.noise = noise

    def forward(self, seen: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of the known facts (int64 [n, 8]); ``seen`` is [n, inputs]."""
        if self.noise:
            seen = torch.nn.functional.rms_norm(seen, seen.shape[1:])
            seen = seen + self.noise * torch.randn_like(seen)
        said = self.read(seen).float().split(list(HEADS.values()), dim=1)
        # A batch may know nothing of one fact: sums over a count of at least one instead of means.
        losses = [
            cross_entropy(logits, truth, ignore_index=UNKNOWN, reduction="sum") / (truth != UNKNOWN).sum().clamp(min=1)
            for logits, truth in zip(said, facts.T, strict=True)
        ]
        return torch.stack(losses).mean()


class Trainer:
    """AdamW on float32 weights; forward and backward run in bfloat16, which takes two thirds of the time on CPU."""

    def __init__(self, model: Any, lr: float) -> None:
        # Eager attention is faster than the fused one at 40 tokens on CPU.
        model.set_attn_implementation("eager")
        self.model = model
        self.eyes, self.mind = ReadOut(IMAGE_TOKENS * TEXT.width), ReadOut(TEXT.width, noise=0.5)
        self.all = torch.nn.ModuleDict({"model": model, "eyes": self.eyes, "mind": self.mind})
        self.weights = {name: weight.detach().clone() for name, weight in self.all.named_parameters()}
        self.all.to(torch.bfloat16).train()
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True
        )

    def step(self, batch: dict[str, torch.Tensor], lr: float, text: bool = True) -> float:
        """Make one step on the facts and, with ``text``, on the answer tokens; return the loss."""
        seen = self.model.model.get_image_features(batch.pop("pixel_values").to(torch.bfloat16), return_dict=True)
        facts = batch.pop("facts")
        loss = self.eyes(torch.stack(list(seen.pooler_output)).flatten(1), facts)
        if text:
            loss = 0.3 * loss + self._reads(batch, seen, facts)
        loss.backward()
        self._apply(lr)
        return loss.item()

    def _reads(self, batch: dict[str, torch.Tensor], seen: Any, facts: torch.Tensor) -> torch.Tensor:
        """The loss of the answer tokens and of the facts where the answer begins."""
        labels = batch.pop("labels")[:, 1:]
        asked = labels != IGNORED
        out = self.model.model(**batch, mm_encoder_outputs={"image": seen}, use_cache=False, output_hidden_states=True)
        logits = self.model.lm_head(out.last_hidden_state[:, :-1][asked]).float()
        begins = asked.to(torch.int8).argmax(dim=1)
        before_last = out.hidden_states[TEXT.layers - 1][torch.arange(len(begins)), begins]
        told: torch.Tensor = self.mind(before_last, facts)
        return cross_entropy(logits, labels[asked]) + told

    def _apply(self, lr: float) -> None:
        for name, parameter in self.all.named_parameters():
            self.weights[name].grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            for name, parameter in self.all.named_parameters():
                parameter.copy_(self.weights[name])


def train(trainer: Trainer, pool: Pool, arguments: argparse.Namespace, rng: np.random.Generator) -> Iterator[int]:
    """Train the eyes alone, then all, with warm-up and a cosine; yield the number of steps done after each step."""
    order: list[int] = []
    recent: list[float] = []
    for step in range(arguments.eye_steps + arguments.steps):
        if len(order) < arguments.batch:
            order = rng.permutation(len(pool)).tolist()
        chosen, order = order[: arguments.batch], order[arguments.batch :]
        warm = min(1.0, (step + 1) / 100)
        progress = max(0, step - arguments.eye_steps) / arguments.steps
        rate = arguments.lr * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        recent.append(trainer.step(pool.batch(chosen), rate, text=step >= arguments.eye_steps))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {np.mean(recent[-100:]):.3f}", flush=True)
        yield step + 1


@torch.no_grad()
def sight(trainer: Trainer, pool: Pool) -> dict[str, float]:
    """Return how often each fact is read right, on the first 500 rows."""
    batch = pool.batch(range(500))
    seen = trainer.model.model.get_image_features(batch["pixel_values"].to(torch.bfloat16), return_dict=True)
    said = trainer.eyes.read(torch.stack(list(seen.pooler_output)).flatten(1)).split(list(HEADS.values()), dim=1)
    hits = {}
    for name, logits, truth in zip(HEADS, said, batch["facts"].T, strict=True):
        known = truth != UNKNOWN
        hits[name] = round((logits.argmax(dim=1) == truth)[known].float().mean().item(), 3)
    return hits


@torch.no_grad()
def accuracy(model: Any, pool: Pool) -> dict[str, float]:
    """Return the share of exactly right answers (every token of the answer the likeliest one) per kind, and overall."""
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(pool), 100):
        indices = range(at, min(at + 100, len(pool)))
        batch = pool.batch(list(indices))
        labels = batch.pop("labels")[:, 1:]
        batch.pop("facts")
        said = model(**batch).logits[:, :-1].argmax(dim=-1)
        exact = ((said == labels) | (labels == IGNORED)).all(dim=1)
        for index, hit in zip(indices, exact.tolist(), strict=True):
            right[pool.kinds[index]].append(hit)
            right["all"].append(hit)
    model.train()
    return {kind: round(float(np.mean(hits)), 3) for kind, hits in sorted(right.items())}


def report(label: str, began: float, figures: dict[str, float]) -> None:
    """Print one line of figures."""
    print(label, f"{time.monotonic() - began:.0f} s", figures, flush=True)


def save(trainer: Trainer, processor: Any, folder: Path) -> None:
    """Write the model folder; weights as float16 safetensors, half the size, loaded to float32 again."""
    half = {
        name.removeprefix("model."): weight.half()
        for name, weight in trainer.weights.items()
        if name.startswith("model.")
    }
    trainer.model.save_pretrained(folder, state_dict=half, safe_serialization=True)
    # It wrote down the dtype it trained in, not the one of these weights.
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"bfloat16"', '"float16"'))
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
