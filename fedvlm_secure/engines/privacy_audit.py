"""Experiments on the privacy of one training set-up: its model, adapter, data, noise and rounds, from its settings.

At record level canaries are hidden in one hospital's training, at client level among the clients of the noisy sums; and
the adapters of a finished run are asked which rows they were trained on.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm_secure import data
from fedvlm_secure.adapters import Adapter
from fedvlm_secure.audit import client_canaries
from fedvlm_secure.audit.calibration import Calibration, calibrate
from fedvlm_secure.audit.canaries import FAULTS, AuditSetting, audit_setting
from fedvlm_secure.audit.client_canaries import ClientGame
from fedvlm_secure.audit.estimators import one_run_bound
from fedvlm_secure.audit.experiments import (
    CONFIDENCE,
    NOT_CHECKABLE,
    Experiment,
    PrivacyAudit,
    outcome,
    silenced,
    told,
)
from fedvlm_secure.engines.assembly import attached, encoded_splits, sites_in
from fedvlm_secure.engines.membership_audit import Say, Sites, members
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.safeguard import divisor, statement, steps_of_a_run
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.models import LoadedModel
from fedvlm_secure.privacy.accounting import noise_multiplier
from fedvlm_secure.privacy.statement import PrivacyStatement
from fedvlm_secure.training import TrainSettings

Floats = NDArray[np.float64]

CANARIES = 10_000  # units at record level; the estimators' reach grows with them
MOST_STEPS = 300  # of DP-SGD, so that an audit takes minutes
MOST_SUMS = 400  # at client level, over all plays of the run
_CONTROLS = 20  # canary clients without noise: they need no averaging


def audit_privacy(
    target: Path,
    overrides: tuple[str, ...] = (),
    *,
    site: str | None = None,
    steps: int | None = None,
    calibration: bool = False,
    say: Say,
) -> PrivacyAudit:
    """Audit the run directory or the settings file ``target``.

    Args:
        overrides: ``key=value`` over a settings file.
        site: whose training is audited at record level; the one with the fewest rows if None.
        steps: that many steps, or sums, with the noise that the same claim asks of them; if None, the run's own number
            up to :data:`MOST_STEPS` steps, or so many that :data:`MOST_SUMS` sums are enough.
        calibration: also play against an ideal mechanism.
        say: told what happens, a line each.

    Raises:
        MisuseError: there is no such run, site or setting; the settings cannot be run.
    """
    settings, folder = _settings(target, overrides)
    torch.set_num_threads(settings.threads)
    observer = Observer()
    say(f"loading data {data.called(settings.data)}")
    sites = sites_in(settings, observer)
    if site is not None and site not in sites:
        raise MisuseError(f"there is no site {site!r}; the settings have {', '.join(sites)}")
    loaded, adapter = attached(settings)
    say("composing what the settings claim")
    claim = statement(settings, tuple(sorted(sites)), adapter.layout(1).size)
    experiments = []
    if claim.level == "record":
        experiments.append(_records(settings, claim, loaded, adapter, sites, site, steps, say))
    if claim.level == "client":
        experiments.append(_clients(settings, claim, tuple(sorted(sites)), adapter.layout(1).size, steps, say))
    adapter.detach()
    experiments.append(members(settings, claim, loaded, sites, folder, say))
    rows = _ideal(claim.delta or settings.privacy.target_delta, say) if calibration else []
    return PrivacyAudit(settings.name, claim.sentences()[0], tuple(experiments), tuple(rows))


def _ideal(delta: float, say: Say) -> list[Calibration]:
    return calibrate(delta, CONFIDENCE, on_row=lambda epsilon: say(f"ideal mechanism, epsilon {epsilon:g}"))


def _settings(target: Path, overrides: tuple[str, ...]) -> tuple[Settings, RunDirectory | None]:
    if not target.is_dir():
        return Settings.from_toml(target, overrides), None
    folder = RunDirectory(target)
    if not folder.settings.exists():
        raise MisuseError(f"{target} is no run directory: it has no settings.toml")
    if overrides:
        raise MisuseError("a run keeps the settings it was made with; leave out --set, or name a settings file")
    return Settings.from_toml(folder.settings), folder


def _records(
    settings: Settings,
    claim: PrivacyStatement,
    loaded: LoadedModel,
    adapter: Adapter,
    sites: Sites,
    site: str | None,
    steps: int | None,
    say: Say,
) -> Experiment:
    """Canaries in one hospital's DP-SGD, as its settings have it."""
    name = "canary units in DP-SGD"
    if any(adapter.trained(index).keys() != adapter.trained(1).keys() for index in range(1, settings.rounds + 1)):
        why = "what is trained changes from round to round, and a canary's axis with it"
        return Experiment(name, "record", NOT_CHECKABLE, claim.epsilon, claim.delta, seen=(why,))
    chosen = site or min(sites, key=lambda one: (len(sites[one]["train"]), one))
    say(f"loading site {chosen}")
    split = encoded_splits(loaded, adapter, settings, chosen, sites[chosen], {})["train"]
    units = data.units_of(sites[chosen]["train"], settings.privacy.unit)
    setting = _setting(settings, claim, sum(tensor.numel() for tensor in adapter.trained(1).values()), steps)
    progress = _Progress(say, f"{chosen}: DP-SGD", setting.rounds * setting.steps)
    result = audit_setting(setting, adapter, split, units, confidence=CONFIDENCE, on_step=progress.step)
    progress = _Progress(say, f"{chosen}: the control without noise", setting.rounds * setting.steps)
    silent = audit_setting(
        setting, adapter, split, units, confidence=CONFIDENCE, fault=FAULTS[0], on_step=progress.step
    )
    made, any_mechanism = result.guesses, one_run_bound(result.guesses, claim.delta, CONFIDENCE)
    return Experiment(
        name,
        "record",
        outcome(result.bound, claim.epsilon),
        claim.epsilon,
        claim.delta,
        result.bound,
        CONFIDENCE,
        None,
        silenced(silent.bound, claim.epsilon),
        (
            f"{made.correct} of {made.made} guesses about {made.canaries} canaries at {chosen} were right",
            _part(claim.releases, setting.rounds * setting.steps, "steps", result.noise_multiplier),
            f"one-run bound for any mechanism (Steinke et al. 2023): {any_mechanism:.2f}",
        ),
        {
            "site": chosen,
            "rows": len(split),
            "canaries": made.canaries,
            "guesses": made.made,
            "correct": made.correct,
            "sample-rate": setting.sample_rate,
            "steps": setting.rounds * setting.steps,
            "steps-of-the-run": claim.releases,
            "noise-multiplier": result.noise_multiplier,
            "estimator": setting.estimator,
            "one-run-bound": any_mechanism,
        },
    )


def _setting(settings: Settings, claim: PrivacyStatement, trainable: int, steps: int | None) -> AuditSetting:
    """The settings' own DP-SGD as an experiment, or fewer steps of it with their own noise for the same claim."""
    privacy, run = settings.privacy, steps_of_a_run(settings)
    training = TrainSettings(**settings.training.model_dump())
    canaries = min(CANARIES, trainable)
    setting = AuditSetting(
        "the settings' own",
        claim.epsilon,
        settings.training.steps,
        settings.rounds,
        run.sample_rate,
        canaries,
        canaries // 20 * 2,
        delta=claim.delta,
        noise_multiplier=run.noise_multiplier,
        clip_norm=privacy.max_grad_norm,
        nominal_batch=divisor(run, training),
        training=training,
        by_mechanism=True,
    )
    fewer = min(run.steps, steps or MOST_STEPS)
    if fewer == run.steps:
        return setting
    noise = noise_multiplier(claim.epsilon, claim.delta, run.sample_rate, fewer, privacy.accountant)
    return replace(setting, rounds=1, steps=fewer, noise_multiplier=noise)


def _clients(
    settings: Settings, claim: PrivacyStatement, cohort: tuple[str, ...], size: int, steps: int | None, say: Say
) -> Experiment:
    """Canary clients in the noisy sums, as the plans have them."""
    game = ClientGame(settings, cohort, size)
    fewer = min(settings.rounds, steps or max(MOST_SUMS // game.runs, 1))
    if fewer < settings.rounds:
        privacy = settings.privacy.model_copy(update={"noise_multiplier": None, "target_epsilon": claim.epsilon})
        game = replace(game, settings=settings.model_copy(update={"rounds": fewer, "privacy": privacy}))
    progress = _Progress(say, f"{settings.aggregation.protocol}: noisy sums with canary clients", game.sums)
    scores = client_canaries.play(game, on_sum=progress.step)
    control = replace(game, canaries=_CONTROLS)
    progress = _Progress(say, "the control without noise", control.sums)
    silent = client_canaries.play(control, noise=0.0, on_sum=progress.step).bound(claim.delta, CONFIDENCE)
    bound, normal = (ask(claim.delta, CONFIDENCE) for ask in (scores.bound, scores.normal_bound))
    return Experiment(
        "canary clients in the sums",
        "client",
        outcome(bound, claim.epsilon),
        claim.epsilon,
        claim.delta,
        bound,
        CONFIDENCE,
        scores.estimate(claim.delta),
        silenced(silent, claim.epsilon),
        (
            f"scores of {len(scores.present)} canaries {_spread(scores.present)}",
            f"of {len(scores.absent)} directions that nobody had {_spread(scores.absent)}",
            _part(claim.releases, fewer, "sums", game.noise_multiplier),
            f"{game.shares} shares of noise under “{claim.protocol}”, the colluders' left out",
            (
                "the bound is for any mechanism and takes canaries for independent; one that takes their scores for "
                f"normal, and refutes nothing here, is {told(normal)}{_remark(normal, claim.epsilon)}"
            ),
        ),
        {
            "protocol": claim.protocol,
            "canaries": len(scores.present),
            "unseen": len(scores.absent),
            "normal-bound": normal,
            "shares": game.shares,
            "sums": fewer,
            "sums-of-the-run": claim.releases,
            "plays": game.runs,
            "noise-multiplier": game.noise_multiplier,
            "mean": float(scores.present.mean()),
            "deviation": float(scores.present.std()),
            "null-deviation": float(scores.absent.std()),
        },
    )


def _remark(normal: float, claimed: float) -> str:
    return ": above the claim, which asks for more canaries" if normal > claimed else ""


def _spread(scores: Floats) -> str:
    return f"{scores.mean():.2f} ± {scores.std():.2f} clip norms"


def _part(whole: int, tried: int, what: str, noise: float) -> str:
    if tried == whole:
        return f"all {whole} {what} of the run, noise multiplier {noise:g}"
    return f"{tried} {what} instead of the run's {whole}, with the noise for the same claim: multiplier {noise:g}"


class _Progress:
    """A line for every tenth of the work."""

    def __init__(self, say: Say, what: str, most: int) -> None:
        self._say, self._what, self._most, self._done = say, what, most, 0
        say(f"{what}, {most} to go")

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._done * 10 // self._most > (self._done - 1) * 10 // self._most:
            self._say(f"{self._what}, {self._done} of {self._most}")
