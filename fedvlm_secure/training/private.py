"""Record-level differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133) on every trainable tensor.

A step is: each privacy unit takes part with probability q; its gradient, the mean over its rows of the rows' own
gradients, is scaled down to norm C over all trainable tensors together; the sum gets normal noise of deviation σ·C and
is divided by a public number: divided by the number of units, it would tell of one more or less by more than the noise
covers. Personal tensors are no exception: what is shared depends on them.

Opacus' hooks give a gradient per row. Sampling, clipping and noise are here: Opacus clips rows where a unit has
several, seeds its noise from torch, and gives up on empty batches.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.entropy import random_bytes
from fedvlm_secure.training import local
from fedvlm_secure.training.answers import Split, answer_logits, bare, sample_losses
from fedvlm_secure.training.errors import TrainingError
from fedvlm_secure.training.local import StepInfo, TrainStats, anchored, check_moved, learning, pull
from fedvlm_secure.training.rows import is_text, owners
from fedvlm_secure.training.settings import PrivateSettings, TrainSettings
from fedvlm_secure.training.soundness import refuse_coupled, refuse_unsound
from fedvlm_secure.training.unit_gradients import Dense, Outer, UnitGradients

Rows = NDArray[np.int64]


class NoiseSource(Protocol):
    """Randomness that nobody can repeat: :class:`fedvlm_secure.primitives.noise.NoiseSource`."""

    def bernoulli(self, probability: float, size: int) -> NDArray[np.bool_]:
        """Independent coin tosses, bool [size]."""
        ...

    def normal(self, size: int) -> NDArray[np.float64]:
        """Independent standard normals, float64 [size]."""
        ...


@dataclass(frozen=True, slots=True)
class PrivateTrainStats(TrainStats):
    """What a call of :func:`train_private` did, for the hospital's own eyes: none of it is private.

    ``mean_loss`` and ``last_loss`` are over the batches that had a unit with a finite loss; NaN if there was none.

    Attributes:
        units: privacy units drawn, counted once per step.
        clipped: those of them whose gradient was longer than C.
        zeroed: those of them left out, since their loss or gradient was not finite.
        empty: steps in which no unit was drawn; they add noise and count like any other.
    """

    units: int = 0
    clipped: int = 0
    zeroed: int = 0
    empty: int = 0


def train_private(
    adapter: Adapter,
    split: Split,
    settings: TrainSettings,
    dp: PrivateSettings,
    units: Rows,
    *,
    noise: NoiseSource,
    round_index: int = 1,
    on_step: Callable[[StepInfo], None] | None = None,
) -> PrivateTrainStats:
    """Train ``adapter`` on ``split`` with DP-SGD. There is no seed: a call cannot be repeated.

    A call is ``settings.steps`` releases of the subsampled Gaussian mechanism with ``dp``, adding or removing a unit
    (Poisson sampling); who composes rounds charges all of them, also when the call fails.

    Args:
        settings: ``max_grad_norm`` is not used; ``batch_size`` bounds the rows in memory, not the step.
        units: int64 [rows]; rows with the same number are one privacy unit, such as the questions about a picture. A
            unit of more rows than ``settings.batch_size`` is in memory at once all the same.
        noise: draws units and noise; tests only replace it.
        round_index: from 1; says which tensors are trained, and which are shared, for the proximal term.
        on_step: called after each step; what it raises ends the training. The loss is NaN for an empty batch.

    Raises:
        MisuseError: the model is one whose gradients cannot be told apart by sample (it names the layer and the fix) or
            in which rows of a batch influence each other, there are no rows, or ``units`` does not fit them.
        TrainingError: a trainable tensor has no gradient per sample, or the weights are no longer finite. After this or
            any other exception, Ctrl-C included, the adapter is as it was.
    """
    started = time.perf_counter()
    refuse_unsound(adapter)
    groups = grouped(units, len(split))
    refuse_coupled(adapter, split)
    before = adapter.state()
    sums: list[ClippedSum] = []
    try:
        with learning(adapter, round_index), _own_dropout(adapter), per_sample_gradients(adapter.peft_model):
            for clipped in _steps(adapter, split, settings, dp, groups, noise, round_index):
                sums.append(clipped)
                if on_step is not None:
                    on_step(StepInfo(len(sums), settings.steps, clipped.loss))
            _check_finite(adapter)
            check_moved(adapter, before, steps=settings.steps)
    except BaseException:
        adapter.load(before)
        raise
    losses = [clipped.loss for clipped in sums if math.isfinite(clipped.loss)] or [math.nan]
    return PrivateTrainStats(
        steps=settings.steps,
        examples=sum(clipped.rows for clipped in sums),
        mean_loss=sum(losses) / len(losses),
        last_loss=losses[-1],
        seconds=time.perf_counter() - started,
        units=sum(clipped.units for clipped in sums),
        clipped=sum(clipped.clipped for clipped in sums),
        zeroed=sum(clipped.zeroed for clipped in sums),
        empty=sum(clipped.units == 0 for clipped in sums),
    )


@dataclass(slots=True)
class ClippedSum:
    """The sum over units of their clipped gradients, before noise, and what went into it.

    Attributes:
        total: float64 [d], all trainable tensors one after the other; at most C from what it is without any one unit.
        losses: of the rows of the units with a finite gradient, nats.
        rows: of all units together.
        units: how many there were; ``clipped`` had a longer gradient than C, ``zeroed`` none that is finite.
    """

    total: torch.Tensor
    losses: list[float] = field(default_factory=list)
    rows: int = 0
    units: int = 0
    clipped: int = 0
    zeroed: int = 0

    @property
    def loss(self) -> float:
        """The mean of the losses; NaN if there is none."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan


def _steps(
    adapter: Adapter,
    split: Split,
    settings: TrainSettings,
    dp: PrivateSettings,
    groups: Sequence[Rows],
    noise: NoiseSource,
    round_index: int,
) -> Iterator[ClippedSum]:
    """Make the steps, giving what each one summed."""
    optimizer = local.make_optimizer(adapter, settings)
    learned = _covered(adapter, optimizer)
    full_rates = [group["lr"] for group in optimizer.param_groups]
    anchors = anchored(adapter, round_index)
    deviation = dp.noise_multiplier * dp.max_grad_norm
    for step in range(settings.steps):
        for group, rate in zip(optimizer.param_groups, full_rates, strict=True):
            group["lr"] = rate * settings.scale(step)
        drawn = [groups[unit] for unit in np.flatnonzero(noise.bernoulli(dp.sample_rate, len(groups))).tolist()]
        clipped = clipped_sum(adapter, split, drawn, dp.max_grad_norm, settings.batch_size)
        draws = torch.from_numpy(noise.normal(len(clipped.total))).to(clipped.total.device)
        assign(learned, (clipped.total + deviation * draws) / dp.nominal_batch)
        # From here on everything follows from what is private already: momentum, decay and pull cost nothing.
        if settings.proximal:
            pull(adapter, anchors, settings.proximal)
        optimizer.step()
        yield clipped


def clipped_sum(
    adapter: Adapter, split: Split, drawn: Sequence[Rows], max_grad_norm: float, batch_size: int
) -> ClippedSum:
    """Sum the clipped gradients of the units ``drawn``, each given by its rows; :func:`per_sample_gradients` is on.

    Raises:
        TrainingError: a trainable tensor has no gradient per sample.
    """
    learned = _trainable(adapter)
    first = next(iter(learned.values()))
    result = ClippedSum(torch.zeros(sum(p.numel() for p in learned.values()), dtype=torch.float64, device=first.device))
    for units in _batches(drawn, batch_size):
        gradients, losses = _unit_gradients(adapter, learned, split, units)
        norms = torch.stack([part.norms() for part in gradients]).norm(dim=0)
        finite = norms.isfinite() & losses.isfinite()
        norms[~finite] = 0.0
        factors = max_grad_norm / norms.clamp(min=max_grad_norm)
        factors[~finite] = 0.0  # such a unit is as good as absent
        result.total += torch.cat([part.sum(factors) for part in gradients])
        result.losses += losses[finite].tolist()
        result.rows += sum(len(rows) for rows in units)
        result.units += len(units)
        result.clipped += int((norms > max_grad_norm).sum())
        result.zeroed += int((~finite).sum())
    return result


def _unit_gradients(
    adapter: Adapter, learned: Mapping[str, torch.nn.Parameter], split: Split, units: Sequence[Rows]
) -> tuple[list[UnitGradients], torch.Tensor]:
    """Each unit's gradient, for every trainable tensor, and its loss, nats [units]: means over its rows."""
    batch = split.batch(np.concatenate(units).tolist())
    losses = sample_losses(*answer_logits(adapter.peft_model, batch))
    sizes = torch.tensor([len(rows) for rows in units], device=losses.device)
    unit_of_row = torch.arange(len(units), device=losses.device).repeat_interleave(sizes)
    shares = losses / sizes[unit_of_row]
    try:
        shares.sum().backward()  # type: ignore[no-untyped-call]
        rows = [_per_row(adapter, name, parameter, batch) for name, parameter in learned.items()]
    finally:
        for parameter in learned.values():
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    per_unit = shares.new_zeros(len(units)).index_add_(0, unit_of_row, shares.detach())
    return [part.grouped(unit_of_row, len(units)) for part in rows], per_unit


def _per_row(
    adapter: Adapter, name: str, parameter: torch.nn.Parameter, batch: dict[str, torch.Tensor]
) -> UnitGradients:
    """The gradient of one tensor for each row of the batch.

    Raises:
        TrainingError: there is none, or it is not one for each row.
    """
    found, count = parameter.grad_sample, len(batch["labels"])  # type: ignore[attr-defined]
    if isinstance(found, Outer) and is_text(name) and len(found.inputs) == count:
        return found
    found = found.dense() if isinstance(found, Outer) else found
    if not isinstance(found, torch.Tensor):
        raise TrainingError(f"{name} has no gradient per sample; is that still part of the model?")
    found = found.flatten(1)
    layer = name.rsplit(".", 2)[0]
    try:
        whose = owners(bare(adapter.peft_model), layer, batch)
    except ValueError as error:
        raise TrainingError(f"{layer} cannot be clipped: {error}; leave it out of the adapter") from error
    if len(found) != (count if whose is None else len(whose)):
        raise TrainingError(
            f"{name} has {len(found)} gradients for {count} rows, clipped apart; leave it out of the adapter"
        )
    if whose is not None:
        found = found.new_zeros(count, found.shape[1]).index_add_(0, whose.to(found.device), found)
    return Dense(found)


def grouped(units: Rows, rows: int) -> list[Rows]:
    """The rows of each unit, ascending: ``units`` numbers the unit of each row.

    Raises:
        MisuseError: ``units`` is not an integer array of that many ``rows``, or there are none.
    """
    if rows == 0:
        raise MisuseError("there are no rows to train on")
    units = np.asarray(units)
    if units.shape != (rows,) or not np.issubdtype(units.dtype, np.integer):
        raise MisuseError(f"privacy units must be one whole number for each of the {rows} rows")
    order = np.argsort(units, kind="stable")
    starts = np.flatnonzero(np.diff(units[order])) + 1
    return np.split(order, starts)


def _batches(units: Sequence[Rows], batch_size: int) -> Iterator[list[Rows]]:
    """Units in parts of at most ``batch_size`` rows; a larger unit is a part of its own, since it is clipped whole."""
    part: list[Rows] = []
    for unit in units:
        if part and sum(map(len, part)) + len(unit) > batch_size:
            yield part
            part = []
        part.append(unit)
    if part:
        yield part


def _trainable(adapter: Adapter) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in adapter.parameters.items() if parameter.requires_grad}


def _covered(adapter: Adapter, optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The trainable tensors, in the order of :attr:`ClippedSum.total`.

    Raises:
        TrainingError: the optimizer moves others than these, or the model has others.
    """
    learned = list(_trainable(adapter).values())
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter) for parameter in adapter.peft_model.parameters() if parameter.requires_grad}
    if not moved == trained == {id(parameter) for parameter in learned}:
        raise TrainingError("a trainable tensor would escape clipping and noise; train nothing but the adapter")
    return learned


def assign(learned: Sequence[torch.nn.Parameter], gradient: torch.Tensor) -> None:
    """Make ``gradient``, float64 [d], the gradient of the tensors one after the other."""
    parts = gradient.split([parameter.numel() for parameter in learned])
    for parameter, part in zip(learned, parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def _check_finite(adapter: Adapter) -> None:
    for name, tensor in adapter.parameters.items():
        if not torch.isfinite(tensor).all():
            raise TrainingError(f"{name} is not finite after training; lower training.learning-rate")


@contextmanager
def per_sample_gradients(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block ``backward`` leaves each trainable tensor's gradient per row in its ``grad_sample``."""
    from fedvlm_secure.training.hooks import RowHooks  # opacus is slow to import, and few need it

    hooks = RowHooks(model)
    try:
        yield
    finally:
        hooks.cleanup()
        for parameter in model.parameters():
            parameter.grad = None


@contextmanager
def _own_dropout(adapter: Adapter) -> Iterator[None]:
    """LoRA dropout from a seed of its own, never the experiment's; the global random state stays as it was."""
    device = next(iter(adapter.parameters.values())).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(random_bytes(8), "little") >> 1)
        yield
