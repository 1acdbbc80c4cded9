"""The hospitals' side: rows of the built-in data, and updates made by the package's own training."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm_secure.adapters import Adapter, AdapterSettings, SharedLayout, attach
from fedvlm_secure.data import encode, load
from fedvlm_secure.federation.settings import TrainingTable
from fedvlm_secure.models import load as load_model
from fedvlm_secure.training import Split, TrainSettings, train
from fedvlm_secure.training.features import FeatureSplit, precompute_image_features

Vector = NDArray[np.float32]
Pair = tuple[str, str]


@dataclass(frozen=True)
class World:
    """Model, data and what of them is public.

    Attributes:
        adapter: at its initial state between calls: A drawn from a public seed, B zero.
        private: the hospitals' training rows; what the attacks are after.
        public: rows of the same kinds of pictures from other areas, which the server has too (the validation split).
        pairs: all 72 pairs of question and answer in the data, sorted; public.
    """

    adapter: Adapter
    processor: Any
    private: datasets.Dataset
    public: datasets.Dataset
    pairs: tuple[Pair, ...]

    def pair_of(self, row: int) -> int:
        """Which pair a private row holds."""
        return self.pairs.index((self.private[row]["question"], self.private[row]["chosen"]))

    def encoded(self, rows: Sequence[Any]) -> FeatureSplit:
        """Rows, as dictionaries or a data set, with the frozen vision tower's work done."""
        split = precompute_image_features(self.adapter.peft_model, encode(rows, self.processor))  # type: ignore[arg-type]
        assert isinstance(split, FeatureSplit)
        return split

    @property
    def b_only(self) -> SharedLayout:
        """What pLoRA shares: every lora_B."""
        return self.adapter.layout(1)

    @property
    def both(self) -> SharedLayout:
        """What plain LoRA shares: every lora_A and lora_B."""
        return SharedLayout(tuple((name, tuple(tensor.shape)) for name, tensor in self.adapter.parameters.items()))


@dataclass(frozen=True)
class Some:
    """Some rows of a split, in an order."""

    split: Split
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """See :class:`fedvlm_secure.training.Split`."""
        return self.split.batch([self.rows[index] for index in indices])


def open_world() -> World:
    """The embedded model with the demo's adapter, and the data set ``hospitals``."""
    loaded = load_model("embedded", device="cpu")
    # Attacks differentiate through the gradient, which the fused attention cannot.
    loaded.model.set_attn_implementation("eager")
    adapter = attach(loaded.model, AdapterSettings(targets=loaded.lora_targets))
    rows = load("hospitals")
    pairs = sorted(set(zip(rows["train"]["question"], rows["train"]["chosen"], strict=True)))
    return World(adapter, loaded.processor, rows["train"], rows["validation"], tuple(pairs))


def bank(world: World, each: int, rng: np.random.Generator) -> list[int]:
    """Private rows, ``each`` of every pair: whoever is drawn from them has any pair with the same probability."""
    held: dict[Pair, list[int]] = defaultdict(list)
    for row, pair in enumerate(zip(world.private["question"], world.private["chosen"], strict=True)):
        held[pair].append(row)
    return [int(row) for pair in world.pairs for row in rng.choice(held[pair], each, replace=False)]


def settings_of(optimizer: str, steps: int, batch: int) -> TrainSettings:
    """The demo's training settings with other steps and batch; SGD at rate 1 moves by the gradient itself."""
    demo = TrainSettings(**TrainingTable().model_dump())
    settings = replace(demo, optimizer=optimizer, steps=steps, batch_size=batch)  # type: ignore[arg-type]
    return replace(settings, learning_rate=1.0) if optimizer == "sgd" else settings


def update(world: World, split: Split, settings: TrainSettings, layout: SharedLayout, seed: int = 0) -> Vector:
    """What a hospital with these rows sends in round 1: the shared tensors after training minus before."""
    adapter = world.adapter
    before = adapter.initial_state()
    adapter.load(before)
    train(adapter, split, settings, seed=seed)
    moved = layout.flatten(adapter.state()) - layout.flatten(before)
    adapter.load(before)
    return moved
