"""A hospital's guard over its own rows: how much noise its training gets, and what its ledger allows.

A round's training is charged before it begins (record level), an attempt before its first message (client level), so
that nothing can leave that the ledger does not hold, whenever the machine stops.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.errors import MisuseError, PrivacyBudgetExhaustedError
from fedvlm_secure.federation.rounds import noisy_sums
from fedvlm_secure.federation.rundir import Folder
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import PRIVATE, read_json, write, write_json
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.privacy.accounting import Event, SampledGaussian, Unprotected, check_delta, noise_multiplier
from fedvlm_secure.privacy.attestation import attest
from fedvlm_secure.privacy.chain import Head
from fedvlm_secure.privacy.ledger import Ledger
from fedvlm_secure.privacy.statement import PrivacyStatement
from fedvlm_secure.training import PrivateSettings, Split, StepInfo, TrainSettings, TrainStats, train, train_private

OnStep = Callable[[StepInfo], None]

_QUIET = 4.0  # the noise multiplier up to which SGD's steps have their full length
HOSPITAL = "hospital"  # the privacy unit of client-level noise
_RUN_BYTES = 16


@dataclass(frozen=True)
class Protected:
    """What is protected.

    Attributes:
        units: int64 [rows], the privacy unit of each training row.
        fingerprint: of the training rows, see :func:`fedvlm_secure.privacy.ledger.fingerprint`.
    """

    units: NDArray[np.int64]
    fingerprint: str


@dataclass(frozen=True)
class Rows:
    """One hospital's own rows, encoded, and what a guesser who never looks at the pictures gets right of the test."""

    train: Split
    validation: Split
    test: Split
    protected: Protected | None  # None in a run whose settings keep no account
    question_only: float
    description: str


_calibrated = lru_cache(maxsize=16)(noise_multiplier)  # takes seconds, and is asked for by every hospital of a run


def steps_of_a_run(settings: Settings) -> SampledGaussian:
    """All steps that a hospital makes in a run under record-level privacy: the same noise at every hospital.

    Raises:
        MisuseError: no noise keeps them within the target.
    """
    table, steps = settings.privacy, settings.rounds * settings.training.steps
    noise = table.noise_multiplier or _calibrated(
        table.target_epsilon, table.target_delta, table.sample_rate, steps, table.accountant
    )
    return SampledGaussian(noise, table.sample_rate, steps)


def divisor(run: SampledGaussian, settings: TrainSettings) -> float:
    """What noisy sums of gradients are divided by: a batch, and as many times more as the noise is above `_QUIET`.

    A step's noise then never makes SGD move further than it does there. What is lost by moving slowly is less than what
    noise would undo (ADR 17).
    """
    return settings.batch_size * max(1.0, run.noise_multiplier / _QUIET)


def statement(settings: Settings, cohort: tuple[str, ...], size: int, repeated: int = 0) -> PrivacyStatement:
    """What the run promises, the same for every hospital.

    Args:
        cohort: the hospitals' names, sorted.
        size: how many numbers are shared.
        repeated: attempts that failed: each may have cost another training, or another noisy sum.
    """
    privacy, rounds = settings.privacy, settings.rounds
    if privacy.mode == "record":
        event = steps_of_a_run(settings)
        return PrivacyStatement.record(
            replace(event, steps=(rounds + repeated) * settings.training.steps),
            unit=privacy.unit,
            delta=privacy.target_delta,
            clip_norm=privacy.max_grad_norm,
            rounds=rounds,
            accountant=privacy.accountant,
            size_bands=privacy.weights == "size-band",
        )
    if privacy.mode == "client" and size:
        sums = noisy_sums(settings, cohort, size)
        return PrivacyStatement.client(
            replace(sums, answered=rounds + repeated),
            delta=privacy.target_delta,
            rounds=rounds,
            protocol=settings.aggregation.protocol,
        )
    return PrivacyStatement.none()


class Safeguard:
    """What stands between one hospital's rows and everything that leaves it."""

    def __init__(self, name: str, folder: Folder, protected: Protected | None, settings: Settings) -> None:
        if protected is None and settings.keeps_account:
            raise MisuseError(f"{name}: rows whose units and fingerprint are not known cannot be charged for")
        self._name, self._folder, self._settings = name, folder, settings
        self._protected = protected or Protected(np.zeros(0, np.int64), "")

    def check(self) -> None:
        """Refuse a run that cannot be private here, before anything is trained.

        Raises:
            MisuseError: δ is too large for so few units, or no noise keeps the run within the target.
        """
        privacy = self._settings.privacy
        if privacy.mode == "record":
            check_delta(privacy.target_delta, len(np.unique(self._protected.units)))
            steps_of_a_run(self._settings)

    def train(
        self, adapter: Adapter, split: Split, place: tuple[int, int], seed: int, on_step: OnStep | None = None
    ) -> tuple[TrainStats, float | None]:
        """Charge the ledger, then train for a round; with DP-SGD at record level, else as ``seed`` says.

        Args:
            place: (round, how often it is trained now).

        Returns:
            what was done, and ε of all the data set's releases; None where no ledger is kept for them.

        Raises:
            PrivacyBudgetExhaustedError: the total would exceed the hospital's limit; nothing was trained.
        """
        settings, privacy = TrainSettings(**self._settings.training.model_dump()), self._settings.privacy
        if adapter.strategy.keeps_copy:
            settings = replace(settings, proximal=0.0)  # it is the copy that is held, by what is trained here
        if privacy.mode != "record":
            spent = self._charge(place, Unprotected(), privacy.unit) if self._keeps_account else None
            return train(adapter, split, settings, seed=seed, round_index=place[0], on_step=on_step), spent
        run = steps_of_a_run(self._settings)
        spent = self._charge(place, replace(run, steps=settings.steps), privacy.unit)
        stats = train_private(
            adapter,
            split,
            settings,
            PrivateSettings(run.noise_multiplier, privacy.max_grad_norm, run.sample_rate, divisor(run, settings)),
            self._protected.units,
            noise=NoiseSource(),
            round_index=place[0],
            on_step=on_step,
        )
        return stats, spent

    def leaves(self, place: tuple[int, int], result: bytes) -> None:
        """Note that ``result``, a digest of what was trained at (round, how often), is kept and about to be sent."""
        if self._settings.privacy.mode == "record" or self._keeps_account:
            self._ledger().release(self._run, *place, result=result.hex())

    def noised(self, place: tuple[int, int], cohort: tuple[str, ...], size: int) -> float | None:
        """Charge the attempt (round, attempt) if its sum gets client-level noise; returns and raises as `train`."""
        if self._settings.privacy.mode != "client" or not size:
            return None
        event = replace(noisy_sums(self._settings, cohort, size), answered=1)
        return self._charge(place, event, HOSPITAL)

    def attestation(self, identity: Identity, run: bytes, plan: bytes) -> bytes:
        """What this hospital signs of how it has trained in ``run``, for auditors; empty but at record level.

        Args:
            plan: the hash of one of the run's plans.
        """
        privacy = self._settings.privacy
        if privacy.mode != "record":
            return b""
        spent = [release for release in self._ledger().releases() if release.run == self._run]
        return attest(identity, self._name, plan, run, privacy.unit, privacy.max_grad_norm, spent)

    @property
    def _keeps_account(self) -> bool:
        """Whether training without record-level privacy is written down too."""
        return self._settings.privacy.mode == "none" and self._settings.keeps_account

    def _charge(self, place: tuple[int, int], event: Event, unit: str) -> float:
        ledger = self._ledger()
        self._check_run(ledger, place)
        spent = ledger.reserve(
            self._run,
            *place,
            fingerprint=self._protected.fingerprint,
            event=event,
            unit=unit,
            delta=self._settings.privacy.target_delta,
        )
        head = ledger.head()
        write_json(self._seen, {"entries": head.entries, "hash": head.hash.hex()}, PRIVATE)
        return spent

    def _check_run(self, ledger: Ledger, place: tuple[int, int]) -> None:
        """A server that says «failed, again» for ever must not spend for ever: the hospital counts for itself."""
        settings = self._settings
        most = settings.rounds + settings.aggregation.attempts - 1
        charged = {release.key[1:] for release in ledger.releases() if release.run == self._run}
        if place[0] > settings.rounds or len(charged | {place}) > most:
            raise PrivacyBudgetExhaustedError(
                f"round {place[0]}, try {place[1]} is more than the {settings.rounds} rounds and "
                f"{settings.aggregation.attempts - 1} repetitions that {self._name} agreed to; nothing was trained"
            )

    def _ledger(self) -> Ledger:
        """The hospital's ledger, which must hold what this run has seen in it before."""
        privacy = self._settings.privacy
        path = self._folder.state / "ledger.sqlite"
        if privacy.ledger is not None:
            path = Path(privacy.ledger) / f"{self._name}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(path, privacy.epsilon_limit, privacy.accountant)
        if self._seen.exists():
            seen = read_json(self._seen)
            ledger.extends(Head(seen["entries"], bytes.fromhex(seen["hash"])))
        return ledger

    @property
    def _seen(self) -> Path:
        return self._folder.state / "ledger.head"

    @property
    def _run(self) -> str:
        """This run's own random name in the ledger: a run of the same name may come again."""
        path = self._folder.state / "ledger.run"
        if not path.exists():
            write(path, entropy.random_bytes(_RUN_BYTES).hex().encode(), PRIVATE)
        return path.read_text()
