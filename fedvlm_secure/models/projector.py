"""Teaches LLaVA's projector what a frozen vision tower sees, in a frozen text tower's language.

The questions are those of :mod:`fedvlm_secure.models.pretext` that a picture decides: public, from training splits, no
hospital's. Both towers are frozen, so every picture is seen once and only the projector learns.
"""

import copy
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, pad
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fedvlm_secure.data.collate import IGNORED, Collator
from fedvlm_secure.models.pretext import Exercise, exercise

# Not the exercises in repeating words, for a model that can talk, nor rows and columns of eight, for one that has four.
KINDS = ("yes-no", "colour-shape", "digit", "kind", "view", "ring", "ring-colour", "ring-on")
_CHUNK = 64
_QUIET = 0.1  # a feature that varies less is not made louder than this one
_GELU = 0.425  # mean square of GELU where its input has mean 0 and deviation 1


@dataclass(frozen=True)
class Course:
    """How long and how fast the projector learns.

    Attributes:
        rates: of the projector's two layers; the second's weights are six times smaller.
        warm: the share of the steps in which the rates rise; they fall to nothing along a cosine after that.
    """

    steps: int = 600
    batch: int = 16
    rates: tuple[float, float] = (3e-3, 1e-3)
    warm: float = 0.1
    seed: int = 20250717


def public_questions(count: int, split: str, seed: int) -> list[Exercise]:
    """Draw so many questions of :data:`KINDS` about pictures of a split."""
    rng, drawn = np.random.default_rng(seed), list[Exercise]()
    while len(drawn) < count:
        if (made := exercise(rng, split)).kind in KINDS:
            drawn.append(made)
    return drawn


class Lessons:
    """Questions as the model reads them, with what the vision tower sees of their pictures.

    Attributes:
        features: bfloat16 [n, image tokens, features].
        texts: token ids and labels of each row, int64, image tokens included.
    """

    def __init__(self, exercises: Sequence[Exercise], model: Any, processor: Any) -> None:
        self.exercises = exercises
        self.texts: list[tuple[torch.Tensor, torch.Tensor]] = []
        collate, seen = Collator(processor), []
        for at in range(0, len(exercises), _CHUNK):
            batch = collate([_row(made) for made in exercises[at : at + _CHUNK]])
            seen += _seen(model.model.vision_tower, batch["pixel_values"])
            for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
                length = int(mask.sum())
                self.texts.append((ids[:length], labels[:length]))
        self.features = torch.cat(seen)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels`` (int64 [n, T]) and ``features``, padded on the right."""
        rows = [self.texts[index] for index in indices]
        longest = max(len(ids) for ids, _ in rows)
        return {
            "input_ids": torch.stack([pad(ids, (0, longest - len(ids))) for ids, _ in rows]),
            "attention_mask": torch.stack([pad(torch.ones_like(ids), (0, longest - len(ids))) for ids, _ in rows]),
            "labels": torch.stack([pad(labels, (0, longest - len(labels)), value=IGNORED) for _, labels in rows]),
            "features": self.features[torch.as_tensor(indices)].float(),
        }


@torch.no_grad()
def _seen(tower: Any, pictures: torch.Tensor) -> list[torch.Tensor]:
    """Features of each picture, one by one: what a convolution makes of many does not fit into a CPU's cache."""
    return [tower(picture).last_hidden_state.to(torch.bfloat16) for picture in pictures.split(1)]


def _row(made: Exercise) -> dict[str, Any]:
    return {"question": made.question, "chosen": made.answer, "image": Image.fromarray(made.picture)}


@torch.no_grad()
def begin(model: Any, features: torch.Tensor) -> None:
    """Set the projector to random maps of the right size: from features as they vary to vectors as large as words'.

    Left as they are, a few loud features drown the rest, and what arrives among the words is a fifth of their size.

    Args:
        features: [n, image tokens, features], of public pictures.
    """
    projector, words = model.model.multi_modal_projector, model.get_input_embeddings().weight
    seen = features.flatten(0, 1).float()
    scale = seen.std(dim=0).clamp(min=_QUIET)
    first, second = projector.linear_1, projector.linear_2
    first.weight.copy_(torch.randn_like(first.weight) / math.sqrt(first.in_features) / scale)
    first.bias.copy_(-first.weight @ seen.mean(dim=0))
    spread = (words - words.mean(dim=0)).std()
    second.weight.copy_(torch.randn_like(second.weight) * spread / math.sqrt(_GELU * second.in_features))
    second.bias.copy_(words.mean(dim=0))


def train(model: Any, lessons: Lessons, course: Course, report: Callable[[str], None]) -> float:
    """Train the projector in place; return the mean loss of the last fifty steps.

    The text tower runs in bfloat16, which takes half the time on a CPU; the projector stays as it is.
    """
    torch.manual_seed(course.seed)
    begin(model, lessons.features)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    student = _in_bfloat16(model)
    layers = (projector.linear_1, projector.linear_2)
    groups = [
        {"params": list(layer.parameters()), "lr": rate} for layer, rate in zip(layers, course.rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, course))
    losses: list[float] = []
    began = time.monotonic()
    for chosen in _draws(len(lessons), course):
        logits, labels = _answers(student, lessons.batch(chosen))
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 20 == 0:
            spent = time.monotonic() - began
            report(f"step {len(losses)} of {course.steps}: loss {np.mean(losses[-20:]):.3f}, {spent:.0f} s")
    projector.requires_grad_(False)
    return float(np.mean(losses[-50:]))


def _in_bfloat16(model: Any) -> Any:
    """A frozen copy in bfloat16 around the very same projector."""
    projector = model.model.multi_modal_projector
    student = copy.deepcopy(model).to(torch.bfloat16).requires_grad_(False).eval()
    student.model.multi_modal_projector = projector
    # Faster than the fused one on rows as short as these.
    student.set_attn_implementation("eager")
    return student


def _pace(step: int, course: Course) -> float:
    """The learning rate as a share of its highest. At one rate all the way, training broke down late."""
    warm = max(1.0, course.warm * course.steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, course.steps - warm)))


def _draws(rows: int, course: Course) -> Iterator[list[int]]:
    rng, order = np.random.default_rng(course.seed), list[int]()
    for _ in range(course.steps):
        if len(order) < course.batch:
            order += rng.permutation(rows).tolist()
        chosen, order = order[: course.batch], order[course.batch :]
        yield chosen


def _answers(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (float32 [answer tokens, vocabulary]) and what they should say, of the answers' tokens only."""
    labels = batch.pop("labels")[:, 1:]
    seen: Any = list(model.model.multi_modal_projector(batch.pop("features")))
    outputs = {"image": BaseModelOutputWithPooling(pooler_output=seen)}
    hidden = model.model(**batch, mm_encoder_outputs=outputs, use_cache=False).last_hidden_state
    answers = labels != IGNORED
    return model.lm_head(hidden[:, :-1][answers]).float(), labels[answers]


@torch.no_grad()
def accuracy(model: Any, lessons: Lessons, batch: int = 50) -> dict[str, float]:
    """Return the share of answers said exactly, to their end of turn, by kind of question and of all."""
    right: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(lessons), batch):
        indices = range(at, min(at + batch, len(lessons)))
        logits, labels = _answers(model, lessons.batch(list(indices)))
        lengths = [int((lessons.texts[index][1] != IGNORED).sum()) for index in indices]
        hits = (logits.argmax(dim=-1) == labels).split(lengths)
        for index, hit in zip(indices, hits, strict=True):
            for kind in (lessons.exercises[index].kind, "all"):
                right[kind].append(bool(hit.all()))
    return _shares(right)


def question_only(taught: Sequence[Exercise], asked: Sequence[Exercise]) -> dict[str, float]:
    """The same shares for who never looks: the commonest answer taught for the question, else its kind, else at all."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for made in taught:
        for key in (made.question, made.kind, ""):
            known[key][made.answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for made in asked:
        guess = known.get(made.question) or known.get(made.kind) or known[""]
        for kind in (made.kind, "all"):
            right[kind].append(guess.most_common(1)[0][0] == made.answer)
    return _shares(right)


def _shares(right: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    return {kind: round(float(np.mean(hits)), 3) for kind, hits in sorted(right.items())}
