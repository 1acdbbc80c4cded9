"""How a hospital trains in one round."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fedvlm_secure.errors import MisuseError

Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One call of :func:`~fedvlm_secure.training.train`.

    Attributes:
        steps: optimizer steps, at least 1.
        batch_size: rows a step; a split with fewer rows is one batch. Under differential privacy steps draw their rows
            anew each time, as :class:`PrivateSettings` says, and this is how many of them are in memory at once.
        learning_rate: for ``lora_A``.
        b_learning_rate_factor: ``lora_B`` learns this many times faster (LoRA+, arXiv 2402.12354).
        weight_decay: decoupled decay of AdamW, as a share of the learning rate; SGD adds it to the gradient.
        max_grad_norm: each step's gradient is scaled down to this L2 norm; None leaves it alone. Not used under
            differential privacy.
        proximal: μ of FedProx (arXiv 1812.06127): adds μ/2 · ‖shared − its value at the start‖² to the loss.
        optimizer: ``adamw``, or ``sgd`` with momentum 0.9. AdamW scales every number's step alike: under differential
            privacy it lifts noise to the level of the gradient where SGD keeps their proportion.
        schedule: of the learning rate over this call's steps: constant, or from full towards 0.

    Raises:
        MisuseError: a value is out of range.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    b_learning_rate_factor: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    proximal: float = 0.0
    schedule: Schedule = "constant"
    optimizer: Optimizer = "adamw"

    def __post_init__(self) -> None:
        for name, whole in (("steps", self.steps), ("batch_size", self.batch_size)):
            if whole < 1:
                raise MisuseError(f"training {name} must be at least 1, not {whole}")
        positive = {"learning_rate": self.learning_rate, "b_learning_rate_factor": self.b_learning_rate_factor}
        if self.max_grad_norm is not None:
            positive["max_grad_norm"] = self.max_grad_norm
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise MisuseError(f"training {name} must be a positive number, not {value}")
        for name, value in (("weight_decay", self.weight_decay), ("proximal", self.proximal)):
            if not (math.isfinite(value) and value >= 0):
                raise MisuseError(f"training {name} must be zero or a positive number, not {value}")
        if self.schedule not in get_args(Schedule):
            raise MisuseError(
                f"training schedule {self.schedule!r} is not known. Choices: {', '.join(get_args(Schedule))}."
            )
        if self.optimizer not in get_args(Optimizer):
            raise MisuseError(
                f"training optimizer {self.optimizer!r} is not known. Choices: {', '.join(get_args(Optimizer))}."
            )

    def scale(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0) as a share of the full one, in (0, 1]."""
        left = 1 - step / self.steps
        return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[self.schedule]


@dataclass(frozen=True, slots=True)
class PrivateSettings:
    """What DP-SGD (arXiv 1607.00133) adds to :class:`TrainSettings`.

    Attributes:
        noise_multiplier: σ; the sum of clipped gradients gets normal noise of deviation σ · ``max_grad_norm``.
        max_grad_norm: C; the gradient of each privacy unit, over all trainable tensors together, is scaled down to
            this L2 norm.
        sample_rate: q in (0, 1]; each unit takes part in each step with this probability, independently of all else.
        nominal_batch: what the noisy sum is divided by, the same whatever the data: a number that an observer may know.
            AdamW's step does not depend on it, SGD's does: with 1, its learning rate is that of one unit, so that
            hospitals move by what they know. The proximal term counts for the more, the larger it is.

    Raises:
        MisuseError: a value is out of range.
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    nominal_batch: float = 1.0

    def __post_init__(self) -> None:
        positive = {
            "noise_multiplier": self.noise_multiplier,
            "max_grad_norm": self.max_grad_norm,
            "nominal_batch": self.nominal_batch,
        }
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise MisuseError(f"privacy {name} must be a positive number, not {value}")
        if not 0 < self.sample_rate <= 1:
            raise MisuseError(f"privacy sample_rate must be above 0 and at most 1, not {self.sample_rate}")

    def noise_to_signal(self, trainable: int, units: int) -> float:
        """L2 norm of a step's noise over the largest norm that its gradient can have.

        σ·C·√d of noise stands against q · ``units`` gradients of norm C: what is above 1 or so drowns the gradient in
        every step, and only many steps average it out.

        Args:
            trainable: d, how many numbers are trained.
            units: privacy units of one hospital.
        """
        return self.noise_multiplier * math.sqrt(trainable) / (self.sample_rate * units)
