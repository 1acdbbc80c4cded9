"""Privacy by experiment: canaries in the gradients of the training that hospitals run.

A canary is a privacy unit whose gradient is one coordinate axis, far longer than the clip norm. Fair coins decide which
canaries join a hospital's rows. The attacker sees every noisy gradient that DP-SGD releases, knows all canaries, and
guesses the coins (the strongest attacker that the guarantee is about: «white box», Nasr et al. 2021, 2101.04535).

What is tried is :func:`fedvlm_secure.training.train_private` itself: it draws, clips, sums, adds noise and divides as
ever. Only where it computes a unit's gradient does a canary's take the place of one from the model. There is no door
for this in ``train_private``, which a caller could use by mistake: the audit replaces a function of the module while
it runs, so one process must not train anything else meanwhile.

A bound below the claim proves nothing: the experiment can refute a guarantee, never establish it. :data:`FAULTS` shows
what it would have noticed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.audit.estimators import Guesses, gaussian_bound, guess, one_run_bound, sampled_bound
from fedvlm_secure.audit.planting import Canaries, Joined, planted
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.privacy.accounting import noise_multiplier
from fedvlm_secure.training import PrivateSettings, Split, StepInfo, TrainSettings, train_private

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_PLAIN = TrainSettings(steps=1)
_BATCH = 64  # rows whose gradients are in memory at once


@dataclass(frozen=True, slots=True)
class AuditSetting:
    """One experiment, all of it fixed before it is run.

    Attributes:
        epsilon: claimed for ``rounds`` x ``steps`` steps together, at ``delta``.
        sample_rate: q, at which every unit takes part in a step.
        canaries: m, how many there are; about half of them join.
        guesses: how many of them are guessed, half «in», half «out»; even.
        rows: that make up one canary, such as the questions about one picture.
        noise_multiplier: σ that is used; None is the one that the claim asks for.
        clip_norm, nominal_batch: of the training, see :class:`~fedvlm_secure.training.PrivateSettings`.
        training: all else of it but its steps and its batch size.
        by_mechanism: with subsampling, measure by the trade-off of DP-SGD itself, which is tighter; without,
            :attr:`estimator` does so anyway.
    """

    name: str
    epsilon: float
    steps: int = 2
    rounds: int = 1
    sample_rate: float = 1.0
    canaries: int = 2000
    guesses: int = 200
    rows: int = 1
    delta: float = 1e-5
    noise_multiplier: float | None = None
    clip_norm: float = 1.0
    nominal_batch: float = 1.0
    training: TrainSettings = _PLAIN
    by_mechanism: bool = False

    @property
    def estimator(self) -> str:
        """``"gaussian"`` without subsampling, where it is valid, else ``"sampled"`` or ``"one-run"``."""
        if self.sample_rate == 1:
            return "gaussian"
        return "sampled" if self.by_mechanism else "one-run"

    def bound(self, guesses: Guesses, confidence: float) -> float:
        """ε that ``guesses`` refute, by :attr:`estimator`."""
        if self.estimator == "sampled":
            return sampled_bound(guesses, self.sample_rate, self.rounds * self.steps, self.delta, confidence)
        estimate = gaussian_bound if self.estimator == "gaussian" else one_run_bound
        return estimate(guesses, self.delta, confidence)


@dataclass(frozen=True, slots=True)
class Fault:
    """A mistake made on purpose; the default is none. Each has been made by somebody's program.

    Attributes:
        noise: the noise's deviation, as a share of what it should be.
        budget_of_one_round: the noise is made for one round's steps only, and every round spends it again.
        clip: how many times the clip norm the gradients may be, while the noise stays.
        by_row: a unit's rows are clipped one by one instead of together.
        shared_noise: another hospital's training has the same noise; the attacker sees both.
    """

    name: str
    noise: float = 1.0
    budget_of_one_round: bool = False
    clip: float = 1.0
    by_row: bool = False
    shared_noise: bool = False


HONEST = Fault("none")

FAULTS = (
    Fault("no noise", noise=0.0),
    Fault("half the noise", noise=0.5),
    Fault("the budget begins anew every round", budget_of_one_round=True),
    Fault("no clipping", clip=100.0),
    Fault("rows clipped, not units", by_row=True),
    Fault("two hospitals with the same noise", shared_noise=True),
)

# Registered: chosen by simulating an ideal Gaussian mechanism, before anything was run on the real one.
REGISTERED = tuple(
    AuditSetting(f"{way}, ε = {epsilon}", epsilon, **shape)  # type: ignore[arg-type]
    for epsilon in (1.0, 2.0, 4.0, 8.0)
    for way, shape in (
        ("all rows in 2 steps", {}),
        ("a tenth of them in 5 x 10 steps", {"steps": 10, "rounds": 5, "sample_rate": 0.1, "rows": 3}),
    )
)

# What the faults are tried on: a claim small enough for the experiment to reach.
CONTROL = AuditSetting("units of 4 rows in 5 x 1 steps", 2.0, steps=1, rounds=5, canaries=3000, guesses=300, rows=4)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What one experiment gave.

    Attributes:
        fault: what had been broken, ``"none"`` in earnest.
        noise_multiplier: σ that the claim asks for.
        bound: ε that has been refuted, with ``confidence``; 0 if none.
    """

    setting: AuditSetting
    fault: str
    noise_multiplier: float
    guesses: Guesses
    bound: float
    confidence: float

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, with ``confidence``."""
        return self.bound > self.setting.epsilon

    def to_json(self) -> dict[str, Any]:
        """Kebab-case names and plain values."""
        setting = self.setting
        return {
            "name": setting.name,
            "fault": self.fault,
            "claimed-epsilon": setting.epsilon,
            "delta": setting.delta,
            "sample-rate": setting.sample_rate,
            "steps": setting.rounds * setting.steps,
            "noise-multiplier": self.noise_multiplier,
            "canaries": self.guesses.canaries,
            "guesses": self.guesses.made,
            "correct": self.guesses.correct,
            "estimator": setting.estimator,
            "bound": self.bound,
            "confidence": self.confidence,
            "refuted": self.refuted,
        }


def run_privacy_audit(
    adapter: Adapter,
    split: Split,
    units: Rows,
    *,
    settings: Sequence[AuditSetting] = REGISTERED,
    confidence: float = CONFIDENCE,
    fault: Fault = HONEST,
    on_result: Callable[[AuditResult], None] | None = None,
) -> list[AuditResult]:
    """Try to refute each of ``settings`` on ``adapter`` and ``split``; with ``confidence``, no true claim is refuted.

    Each of the K settings has a bound of confidence 1 - (1 - ``confidence``)/K. The adapter is as before afterwards.

    Args:
        units: int64 [rows], the privacy unit of each row of ``split``.
        fault: broken on purpose, to see whether the experiment notices.
        on_result: called after each setting.

    Raises:
        MisuseError: the adapter has fewer trainable numbers than a setting has canaries; what
            :func:`~fedvlm_secure.training.train_private` refuses.
    """
    each = 1 - (1 - confidence) / len(settings)
    results = []
    for setting in settings:
        result = audit_setting(setting, adapter, split, units, confidence=each, fault=fault)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def audit_setting(
    setting: AuditSetting,
    adapter: Adapter,
    split: Split,
    units: Rows,
    *,
    confidence: float,
    fault: Fault = HONEST,
    on_step: Callable[[], None] | None = None,
) -> AuditResult:
    """Play the game once; see :func:`run_privacy_audit`. ``on_step`` is called after each step."""
    sigma = setting.noise_multiplier or noise_multiplier(
        setting.epsilon, setting.delta, setting.sample_rate, setting.rounds * setting.steps
    )
    played = sigma
    if fault.budget_of_one_round:
        played = noise_multiplier(setting.epsilon, setting.delta, setting.sample_rate, setting.steps)
    # The deviation is σ·C: a C that is larger by a factor goes with a σ that is smaller by it.
    clip_norm = setting.clip_norm * fault.clip
    dp = PrivateSettings(played / fault.clip, clip_norm, setting.sample_rate, setting.nominal_batch)
    trainable = sum(parameter.numel() for parameter in adapter.trained(1).values())
    canaries = Canaries.scattered(
        setting.canaries, trainable, first=len(split), rows=setting.rows, clip_norm=setting.clip_norm
    )
    tape = _Tape(fault.noise)
    play = partial(_released, setting, adapter, split, units, dp, noise=tape, on_step=on_step)
    releases = play(canaries, by_row=fault.by_row)
    if fault.shared_noise:
        tape.rewind()
        releases = releases - play(canaries.without(), by_row=False)
    scores = likelihood_ratios(releases / setting.clip_norm, sigma, setting.sample_rate)
    guesses = guess(scores, canaries.included, setting.guesses)
    return AuditResult(setting, fault.name, sigma, guesses, setting.bound(guesses, confidence), confidence)


def likelihood_ratios(releases: Floats, sigma: float, sample_rate: float) -> Floats:
    """Logarithm of how much likelier each canary's releases are if it is in the data: no score tells more.

    A step releases N(0, σ²) without the canary, and with it N(1, σ²) with probability q, else the same.

    Args:
        releases: [steps, m], in clip norms.

    Returns:
        float64 [m].
    """
    shifts = (2 * releases - 1) / (2 * sigma**2)
    absent = math.log1p(-sample_rate) if sample_rate < 1 else -math.inf
    return np.logaddexp(absent, math.log(sample_rate) + shifts).sum(axis=0)


def _released(
    setting: AuditSetting,
    adapter: Adapter,
    split: Split,
    units: Rows,
    dp: PrivateSettings,
    canaries: Canaries,
    *,
    noise: NoiseSource,
    by_row: bool,
    on_step: Callable[[], None] | None = None,
) -> Floats:
    """What DP-SGD released on the canaries' axes: float64 [steps, m], sums over units."""
    extra = np.arange(canaries.joined)
    whole = np.concatenate([units, np.max(units) + 1 + extra // canaries.rows])
    groups = np.arange(len(whole)) if by_row else whole
    axes = torch.from_numpy(canaries.coordinates)
    releases: list[Floats] = []

    def observe(_: StepInfo) -> None:
        gradients = [p.grad.flatten() for p in adapter.parameters.values() if p.requires_grad and p.grad is not None]
        releases.append(dp.nominal_batch * torch.cat(gradients).cpu()[axes].double().numpy())
        if on_step is not None:
            on_step()

    settings = replace(setting.training, steps=setting.steps, batch_size=_BATCH)
    before = adapter.state()
    try:
        with planted(canaries):
            for round_index in range(1, setting.rounds + 1):
                train_private(
                    adapter,
                    Joined(split, len(split) + canaries.joined),
                    settings,
                    dp,
                    groups,
                    noise=noise,
                    round_index=round_index,
                    on_step=observe,
                )
    finally:
        adapter.load(before)
    return np.stack(releases)


class _Tape(NoiseSource):
    """Noise times a factor, which can be played a second time."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor
        self._recorded: list[Floats] = []
        self._again: Iterator[Floats] | None = None

    def normal(self, size: int) -> Floats:
        if self._again is not None:
            return next(self._again)
        self._recorded.append(self._factor * super().normal(size))
        return self._recorded[-1]

    def rewind(self) -> None:
        self._again = iter(self._recorded)
