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
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad, rms_norm

from fedvlm_secure.adapters.bases import public_bases, save_bases
from fedvlm_secure.data.collate import IGNORED, Collator
from fedvlm_secure.models.architecture import IMAGE_TOKENS, TEXT, new_model, new_processor, new_tokenizer
from fedvlm_secure.models.loading import load
from fedvlm_secure.models.pretext import HEADS, UNKNOWN, Exercise, exercise, texts

_NOISE = 0.5  # of the read-outs of the text tower
_FACTS, _WORDS = 0.7, 0.02
_BASIS_ROWS = 128


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
    made = load(str(arguments.out)).model
    save_bases(arguments.out, bases(made, held_out["validation"]))
    figures = {split: accuracy(made, rows) for split, rows in held_out.items()}
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
    """One linear read-out per fact of a picture. Thrown away afterwards.

    A question tells a tower one fact, these tell it eight. The vision tower is read over all image tokens as the text
    tower gets them: it learns to see in a fraction of the time.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.read = torch.nn.Linear(inputs, sum(HEADS.values()))

    def forward(self, seen: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of the known facts (int64 [n, 8]); ``seen`` is [n, inputs]."""
        said = self.read(seen).float().split(list(HEADS.values()), dim=1)
        # A batch may know nothing of one fact: sums over a count of at least one instead of means.
        losses = [
            cross_entropy(logits, truth, ignore_index=UNKNOWN, reduction="sum") / (truth != UNKNOWN).sum().clamp(min=1)
            for logits, truth in zip(said, facts.T, strict=True)
        ]
        return torch.stack(losses).mean()


class Mind(torch.nn.Module):
    """Read-outs of the text tower where an answer begins: of the facts, and of the words asked. Thrown away afterwards.

    The model learns to have both at hand whatever it is asked, in new words too. What is read is scaled to mean square
    one and gets noise, so that facts have to be the loud part of it: an adapter trained under differential privacy
    learns from what is loud.
    """

    def __init__(self, inputs: int, vocabulary: int) -> None:
        super().__init__()
        self.facts = ReadOut(inputs)
        self.words = torch.nn.Linear(inputs, vocabulary)

    def forward(self, seen: torch.Tensor, facts: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return the loss; ``seen`` is [n, inputs], ``words`` [n, vocabulary] holds 1 for each token asked, else 0."""
        seen = rms_norm(seen, seen.shape[1:])
        seen = seen + _NOISE * torch.randn_like(seen)
        told: torch.Tensor = self.facts(seen, facts)
        asked = binary_cross_entropy_with_logits(self.words(seen).float(), words, reduction="sum") / len(words)
        return _FACTS * told + _WORDS * asked


class Trainer:
    """AdamW on float32 weights; forward and backward run in bfloat16, which takes two thirds of the time on CPU."""

    def __init__(self, model: Any, lr: float) -> None:
        # Eager attention is faster than the fused one at 40 tokens on CPU.
        model.set_attn_implementation("eager")
        self.model = model
        self.eyes = ReadOut(IMAGE_TOKENS * TEXT.width)
        self.read_at = read_at(model)
        self.vocabulary = model.config.text_config.vocab_size
        self.minds = torch.nn.ModuleList(Mind(module.in_features, self.vocabulary) for module in self.read_at)
        self.all = torch.nn.ModuleDict({"model": model, "eyes": self.eyes, "minds": self.minds})
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
        """The loss of the answer tokens and of what is read where the answer begins."""
        labels = batch.pop("labels")[:, 1:]
        answers = labels != IGNORED
        given: list[torch.Tensor] = []
        keep = [at.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for at in self.read_at]
        out = self.model.model(**batch, mm_encoder_outputs={"image": seen}, use_cache=False)
        for handle in keep:
            handle.remove()
        logits = self.model.lm_head(out.last_hidden_state[:, :-1][answers]).float()
        begins = answers.to(torch.int8).argmax(dim=1)
        rows, tokens = torch.arange(len(begins)), batch["input_ids"]
        before = torch.arange(tokens.shape[1]) <= begins[:, None]
        words = torch.zeros(len(rows), self.vocabulary).scatter_(1, tokens * before, 1.0)
        losses = [mind(at[rows, begins], facts, words) for mind, at in zip(self.minds, given, strict=True)]
        return cross_entropy(logits, labels[answers]) + torch.stack(losses).sum()

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


def read_at(model: Any) -> tuple[torch.nn.Linear, ...]:
    """Where the text tower is read: at the inputs of its last layer's linear maps, in the order of a forward pass."""
    last = model.model.text_model.layers[-1]
    return last.self_attn.q_proj, last.self_attn.o_proj, last.mlp.up_proj, last.mlp.down_proj


def bases(model: Any, pool: Pool) -> dict[str, torch.Tensor]:
    """Public bases of the last layer's inputs, over all exercises of ``pool``."""
    names = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    modules = [f"model.text_model.layers.{TEXT.layers - 1}.{name}" for name in names]
    parts = (pool.batch(list(range(at, min(at + 100, len(pool))))) for at in range(0, len(pool), 100))
    batches = ({name: part[name] for name in part if name != "facts"} for part in parts)
    return public_bases(model, modules, batches, _BASIS_ROWS)


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
