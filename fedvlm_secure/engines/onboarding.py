"""A ninth hospital joins after the last round: what the shared part is worth to rows that no round has seen.

It begins with the federation's shared tensors and the seeded initial values of the rest, is tested as it is, trains by
itself for a few rounds' worth of steps, and is tested again. Nothing it does changes the run.
"""

from pathlib import Path
from typing import Any

import safetensors.torch

from fedvlm_secure import data
from fedvlm_secure.engines.assembly import Encoded, attached, encoded_splits, sites_in
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.federation.rounds import training_seed
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.training import TrainSettings, evaluate, train

ROUNDS = 4
"""A newcomer trains for as many steps as a hospital does in so many rounds."""


def onboard(settings: Settings, run: Path, observer: Observer, encoded: Encoded) -> dict[str, Any]:
    """The newcomer's accuracies on its own test split, from 0 to 1: ``zero-shot``, and ``trained`` after its own steps.

    Args:
        settings: those of the finished run in ``run``, on one of the simulated data sets.
        encoded: rows encoded earlier, kept here for the next call.

    Raises:
        MisuseError: the data set has no newcomer.
    """
    loaded, adapter = attached(settings)
    ninth = settings.model_copy(update={"data": data.newcomer_of(data.called(settings.data)), "sites": ()})
    ((name, splits),) = sites_in(ninth, observer).items()
    rows = encoded_splits(loaded, adapter, ninth, name, splits, encoded)
    shared = safetensors.torch.load_file(run / "coordinator" / "global" / f"round-{settings.rounds:04d}.safetensors")
    adapter.load(adapter.initial_state() | shared)
    zero_shot = evaluate(adapter.peft_model, rows["test"])
    chosen = TrainSettings(**settings.training.model_dump())
    for more in range(1, ROUNDS + 1):
        train(
            adapter,
            rows["train"],
            chosen,
            seed=training_seed(settings.seed, name, settings.rounds + more, 1),
            round_index=settings.rounds + more,
            towards=shared if adapter.strategy.keeps_copy else None,
        )
    trained = evaluate(adapter.peft_model, rows["test"])
    return {
        "rows": len(rows["train"]),
        "steps": ROUNDS * chosen.steps,
        "question-only": data.question_only_baseline(splits["train"], splits["test"]),
        "zero-shot": zero_shot.accuracy,
        "trained": trained.accuracy,
    }
