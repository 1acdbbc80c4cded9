"""What all hospitals of a run must agree on about the adapter."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from fedvlm_secure.errors import MisuseError

StrategyName = Literal["plora", "lora", "local", "fedsa", "ffa", "rolora", "fedsb", "ditto"]
Init = Literal["random", "public"]


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Shape and sharing of a LoRA adapter; equal at every hospital of a run.

    Attributes:
        targets: regular expression that a module's full name must match to get an adapter.
        rank: r, the inner dimension of B·A.
        alpha: B·A is scaled by ``alpha / rank``.
        dropout: probability of dropping an input of A while training, in [0, 1).
        strategy: a key of :data:`~fedvlm_secure.adapters.strategies.STRATEGIES`.
        warm_up: so many rounds at the start are plain LoRA, whatever the strategy. What it keeps to the hospital
            becomes the hospital's own after them; one that joins later begins with what they have made of it.
        seed: seed of the common initial A, 0 to 2^63 - 1.
        init: where that A comes from: ``random`` draws it; ``public`` takes the model's own
            :mod:`~fedvlm_secure.adapters.bases`.

    Raises:
        MisuseError: a value is out of range, or ``targets`` is no regular expression.
    """

    targets: str
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    strategy: StrategyName = "plora"
    seed: int = 0
    init: Init = "random"
    warm_up: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise MisuseError(f"adapter rank must be at least 1, not {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise MisuseError(f"adapter alpha must be a positive number, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise MisuseError(f"adapter dropout must be in [0, 1), not {self.dropout}")
        if self.strategy not in get_args(StrategyName):
            choices = ", ".join(get_args(StrategyName))
            raise MisuseError(f"adapter strategy {self.strategy!r} is not known. Choices: {choices}.")
        if self.warm_up < 0:
            raise MisuseError(f"adapter warm-up must be a number of rounds, not {self.warm_up}")
        if self.init not in get_args(Init):
            raise MisuseError(f"adapter init {self.init!r} is not known. Choices: {', '.join(get_args(Init))}.")
        if not 0 <= self.seed < 2**63:
            raise MisuseError(f"adapter seed must be in 0 … 2^63 - 1, not {self.seed}")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise MisuseError(f"adapter targets {self.targets!r} is not a regular expression: {error}") from error
