"""Local training against a plain transformers and peft loop: ``python benchmarks/training_step.py``.

The embedded model, the default adapter, rows of mri-north, batches of 32, one thread. The plain loop is what the
libraries' own pages show: collate, ``model(**batch).loss``, backward, clip, AdamW. Loops take turns; the figures are
medians of CPU seconds over turns. Rows with their pictures computed once are what a run trains on.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import peft
import torch

from fedvlm_secure import data
from fedvlm_secure.adapters import AdapterSettings, attach
from fedvlm_secure.models import load
from fedvlm_secure.training import TrainSettings, evaluate, precompute_image_features, train
from fedvlm_secure.training.local import batches

BATCH, STEPS, RATE = 32, 5, 4e-3
TRAINING, EVALUATION = "samples a second of training", "rows a second of evaluation"


def plain_loop(split: data.EncodedSplit, rank: int) -> Callable[[], None]:
    """Five steps as anybody would write them."""
    loaded = load("embedded", device="cpu")
    targets = loaded.lora_targets
    model = peft.get_peft_model(loaded.model, peft.LoraConfig(r=rank, lora_alpha=16, target_modules=targets))
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE)
    rows: Iterator[list[int]] = batches(len(split), BATCH, 0)

    def steps() -> None:
        for indices in (next(rows) for _ in range(STEPS)):
            optimizer.zero_grad()
            loss = model(**split.batch(indices)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            loss.item()

    return steps


def main() -> None:
    """Print samples a second of each loop, and what the second and third are to the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load("embedded", device="cpu")
    own = data.by_site(data.load("hospitals")["train"])["mri-north"].select(range(arguments.rows))
    split = data.encode(own, loaded.processor)
    adapter = attach(loaded.model, AdapterSettings(targets=loaded.lora_targets, rank=arguments.rank))
    kept = precompute_image_features(adapter.peft_model, split)
    few = precompute_image_features(adapter.peft_model, data.encode(own.select(range(32)), loaded.processor))
    settings = TrainSettings(steps=STEPS, batch_size=BATCH, learning_rate=RATE)
    loops: dict[str, tuple[str, int, Callable[[], object]]] = {
        "plain transformers and peft": (TRAINING, STEPS * BATCH, plain_loop(split, arguments.rank)),
        "train, pictures in every step": (TRAINING, STEPS * BATCH, lambda: train(adapter, split, settings, seed=0)),
        "train, pictures computed once": (TRAINING, STEPS * BATCH, lambda: train(adapter, kept, settings, seed=0)),
        "evaluate, a row at a time": (EVALUATION, len(few), lambda: evaluate(adapter.peft_model, few, 1)),
        "evaluate, batches of 128": (EVALUATION, len(kept), lambda: evaluate(adapter.peft_model, kept, 128)),
    }
    spent: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(arguments.turns + 1):
        for name, (_, _, loop) in loops.items():
            since = time.process_time()
            loop()
            if turn:  # the first turn loads code
                spent[name].append(time.process_time() - since)
    for kind in (TRAINING, EVALUATION):
        print(kind)
        rates = {name: count / statistics.median(spent[name]) for name, (of, count, _) in loops.items() if of == kind}
        first = next(iter(rates.values()))
        for name, rate in rates.items():
            print(f"  {name:<34}{rate:>9.0f}{rate / first:>9.2f} x")


if __name__ == "__main__":
    main()
