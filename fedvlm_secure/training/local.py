"""One hospital's training in one round: a few steps on the adapter, from where it stands.

Nothing outlives a call: the optimizer is new, batches follow from the seed. A resumed run therefore repeats an
interrupted round exactly (with the same number of torch threads: they change the order of sums).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.training.answers import Split, answer_logits, sample_losses
from fedvlm_secure.training.errors import TrainingError
from fedvlm_secure.training.evaluation import evaluating
from fedvlm_secure.training.settings import TrainSettings

_MOMENTUM = 0.9
_REMEDY = "lower training.learning-rate, or train in float32"


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Progress after one step: ``step`` of ``steps`` (from 1) and that batch's loss in nats."""

    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainStats:
    """What a call of :func:`train` did.

    Attributes:
        steps: optimizer steps made.
        examples: rows seen, counted once per visit.
        mean_loss: mean of the batches' losses, nats.
        last_loss: the last batch's loss before its step, nats.
        seconds: wall time.
    """

    steps: int
    examples: int
    mean_loss: float
    last_loss: float
    seconds: float


def train(
    adapter: Adapter,
    split: Split,
    settings: TrainSettings,
    *,
    seed: int,
    round_index: int = 1,
    towards: Mapping[str, torch.Tensor] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
) -> TrainStats:
    """Train ``adapter`` on ``split``; deterministic for the same seed, machine and number of torch threads.

    Args:
        seed: decides the batches and LoRA dropout, 0 to 2^63 - 1; the global random state stays as it was.
        round_index: from 1; says which tensors are trained.
        towards: where the proximal term pulls which tensors; the shared ones to where they begin, if None.
        on_step: called after each step; what it raises ends the training.

    Raises:
        MisuseError: ``split`` is empty, or a row has no answer.
        TrainingError: the loss or its gradient is not finite, or a tensor that should have moved did not.
            After this or any other exception, Ctrl-C included, the adapter is as it was.
    """
    started = time.perf_counter()
    before = adapter.state()
    device = next(iter(adapter.parameters.values())).device
    losses: list[float] = []
    try:
        with learning(adapter, round_index), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for loss in _steps(adapter, split, settings, seed, anchored(adapter, round_index, towards)):
                losses.append(loss)
                if on_step is not None:
                    on_step(StepInfo(len(losses), settings.steps, loss))
            check_moved(adapter, before, steps=settings.steps)
    except BaseException:
        adapter.load(before)
        raise
    return TrainStats(
        steps=settings.steps,
        examples=settings.steps * min(settings.batch_size, len(split)),
        mean_loss=sum(losses) / len(losses),
        last_loss=losses[-1],
        seconds=time.perf_counter() - started,
    )


def _steps(
    adapter: Adapter, split: Split, settings: TrainSettings, seed: int, anchors: Mapping[str, torch.Tensor]
) -> Iterator[float]:
    """Make the steps, giving each batch's loss."""
    optimizer = make_optimizer(adapter, settings)
    learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    full_rates = [group["lr"] for group in optimizer.param_groups]
    for step, indices in zip(range(settings.steps), batches(len(split), settings.batch_size, seed), strict=False):
        for group, rate in zip(optimizer.param_groups, full_rates, strict=True):
            group["lr"] = rate * settings.scale(step)
        loss = sample_losses(*answer_logits(adapter.peft_model, split.batch(indices))).mean()
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of step {step + 1} is {loss.item()}; {_REMEDY}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.proximal:
            pull(adapter, anchors, settings.proximal)
        # Also where nothing is to be clipped: one infinite gradient would make every weight NaN.
        norm = torch.nn.utils.clip_grad_norm_(learned, settings.max_grad_norm or float("inf"))
        if not torch.isfinite(norm):
            raise TrainingError(f"the gradient of step {step + 1} is not finite; {_REMEDY}")
        optimizer.step()
        yield loss.item()


def make_optimizer(adapter: Adapter, settings: TrainSettings) -> torch.optim.Optimizer:
    """A new optimizer over every trainable tensor of the model: the adapter's, ``lora_B`` at its own rate."""
    a_rate, b_rate = settings.learning_rate, settings.learning_rate * settings.b_learning_rate_factor
    trainable = {name: parameter for name, parameter in adapter.parameters.items() if parameter.requires_grad}
    groups = [
        {"params": [p for name, p in trainable.items() if ".lora_B." not in name], "lr": a_rate},
        {"params": [p for name, p in trainable.items() if ".lora_B." in name], "lr": b_rate},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, weight_decay=settings.weight_decay)
    # One fused pass instead of a loop over dozens of small tensors.
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def batches(rows: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of row numbers: each epoch is shuffled anew, its incomplete last batch left out.

    Raises:
        MisuseError: there are no rows.
    """
    if rows == 0:
        raise MisuseError("there are no rows to train on")
    size = min(batch_size, rows)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(rows, generator=generator).tolist()
        for start in range(0, rows - size + 1, size):
            yield order[start : start + size]


@contextmanager
def learning(adapter: Adapter, round_index: int = 1) -> Iterator[None]:
    """Training mode for the adapter's own layers inside the block; the frozen base stays in evaluation mode.

    LoRA dropout acts, the base's dropout does not: pictures' features may have been computed beforehand. Only what the
    strategy trains in the round asks for gradients.
    """
    trained = adapter.trained(round_index)
    still = [p for name, p in adapter.parameters.items() if p.requires_grad and name not in trained]
    with evaluating(adapter.peft_model):
        for name, module in adapter.peft_model.named_modules():
            module.training = ".lora_" in name
        for parameter in still:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in still:
                parameter.requires_grad_(True)


def anchored(
    adapter: Adapter, round_index: int, towards: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Where the proximal term pulls which tensors: ``towards``, or what the round shares to where it is now."""
    if towards is None:
        towards = {name: adapter.parameters[name] for name in adapter.layout(round_index).names}
    return {name: tensor.detach().to(adapter.parameters[name].device, copy=True) for name, tensor in towards.items()}


def pull(adapter: Adapter, anchors: Mapping[str, torch.Tensor], strength: float) -> None:
    """Add the gradient of strength/2 · ‖tensors − anchors‖²."""
    for name, anchor in anchors.items():
        parameter = adapter.parameters[name]
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=strength)


def check_moved(adapter: Adapter, before: dict[str, torch.Tensor], *, steps: int) -> None:
    """Compare the adapter with what it was ``steps`` steps ago.

    Known ways to train nothing while the loss falls (opacus issue 820, peft issue 3409) end here. Where B is
    zero, A's gradient is zero: A need not move in a single step.

    Raises:
        TrainingError: a trainable tensor is what it was, or a frozen one is not.
    """
    after = adapter.state()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    trainable = {name for name, parameter in adapter.parameters.items() if parameter.requires_grad}
    waits = ".lora_A." if any(".lora_B." in name for name in trainable) else None
    expected = {name for name in trainable if steps > 1 or waits is None or waits not in name}
    if moved - trainable:
        raise TrainingError(f"training changed what is frozen: {', '.join(sorted(moved - trainable))}")
    if expected - moved:
        still = ", ".join(sorted(expected - moved))
        raise TrainingError(f"training did not change {still}; is that still part of the model?")
