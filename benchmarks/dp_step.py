"""A step of DP-SGD against the same step without: ``python benchmarks/dp_step.py``.

The embedded model with the default adapter of runs without differential privacy (or, with ``--record``, of those with
it), random rows with all that is frozen computed beforehand, as training has them. Steps with and without take turns;
the figures are medians of CPU seconds over turns, on one thread.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import numpy as np
import torch

from fedvlm_secure.adapters import Adapter, AdapterSettings, attach
from fedvlm_secure.data import EncodedSplit
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.models import load, lora_targets
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.training import (
    Split,
    TrainSettings,
    answer_logits,
    private,
    sample_losses,
)
from fedvlm_secure.training.features import precompute
from fedvlm_secure.training.local import learning, make_optimizer

PLAIN, PRIVATE = "step", "step of DP-SGD"
BACKWARD, CLIPPING, NOISE = "forward and backward, hooks on", "clip and sum", "noise"


def rows_of(count: int, length: int) -> EncodedSplit:
    """Random pictures and words: the time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 256, (count, length), generator=generator)
    ids[:, 1:17] = 3  # the embedded model's image token
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = ids[:, -4:]
    pictures = torch.randn(count, 1, 3, 64, 64, generator=generator)
    return EncodedSplit(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pictures}
    )


class Clock:
    """CPU seconds by what they were spent on."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count what happens inside the block as ``what``."""
        since = time.process_time()
        yield
        self.spent[what].append(time.process_time() - since)

    def inside(self, what: str, owner: Any, name: str) -> Any:
        """Meanwhile every call of ``owner.name`` is counted as ``what``."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.on(what):
                return original(*args, **kwargs)

        return patch.object(owner, name, timed)

    def median(self, what: str) -> float:
        """Of all that was counted, in milliseconds."""
        return 1000 * statistics.median(self.spent[what])


def plain_step(adapter: Adapter, split: Split, optimizer: torch.optim.Optimizer) -> None:
    """What :func:`~fedvlm_secure.training.train` does in a step."""
    loss = sample_losses(*answer_logits(adapter.peft_model, split.batch(range(len(split))))).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(adapter.parameters.values()), 1.0)
    optimizer.step()
    loss.item()


def private_step(adapter: Adapter, split: Split, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """What :func:`~fedvlm_secure.training.train_private` does in a step."""
    source, learned = NoiseSource(), list(adapter.parameters.values())
    with clock.on(PRIVATE):
        units = [np.array([row]) for row in range(len(split))]
        clipped = private.clipped_sum(adapter, split, units, 1.0, len(split))
        with clock.on(NOISE):
            draws = torch.from_numpy(source.normal(len(clipped.total)))
        private.assign(learned, (clipped.total + draws) / len(split))
        optimizer.step()


def main() -> None:
    """Print the medians and the two figures that have a goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=40, help="tokens a row, 16 of them the picture's")
    parser.add_argument("--record", action="store_true", help="the default adapter under record-level privacy")
    parser.add_argument("--turns", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load("embedded", device="cpu")
    table = Settings.from_tables({"privacy": {"mode": "record" if arguments.record else "none"}}).adapter.model_dump()
    targets = lora_targets(loaded.model, table.pop("layers"), table.pop("modules"))
    adapter = attach(loaded.model, AdapterSettings(targets=targets, **table), loaded.bases)
    split = precompute(adapter.peft_model, rows_of(arguments.batch_size, arguments.length))
    optimizer = make_optimizer(adapter, TrainSettings(steps=1, learning_rate=1e-4))
    clock = Clock()
    with learning(adapter):
        for turn in range(arguments.turns + 2):
            if turn == 2:
                clock.spent.clear()  # the first turns load code
            with clock.on(PLAIN):
                plain_step(adapter, split, optimizer)
            with private.per_sample_gradients(adapter.peft_model), ExitStack() as stack:
                stack.enter_context(clock.inside(BACKWARD, private, "_unit_gradients"))
                private_step(adapter, split, optimizer, clock)
    _report(clock, sum(parameter.numel() for parameter in adapter.parameters.values()), arguments.batch_size)


def _report(clock: Clock, trainable: int, batch_size: int) -> None:
    whole, plain = clock.median(PRIVATE), clock.median(PLAIN)
    print(f"{batch_size} rows, {trainable:,} trainable numbers, CPU milliseconds, one thread")
    for what in (PLAIN, PRIVATE, BACKWARD, NOISE):
        print(f"{what:<34}{clock.median(what):>9.1f}")
    print(f"{'clip, sum, move the weights':<34}{whole - clock.median(BACKWARD) - clock.median(NOISE):>9.1f}")
    print(f"a step of DP-SGD takes {whole / plain:.2f} times a step; noise is {clock.median(NOISE) / whole:.1%} of it")
    print(f"with the hooks for free it would be {1 + (whole - clock.median(BACKWARD)) / plain:.2f} times")


if __name__ == "__main__":
    main()
