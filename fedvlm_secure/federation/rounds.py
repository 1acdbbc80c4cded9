"""What all parties compute alike for a round: the vector's layout, the plan's numbers, the model's hash."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np

from fedvlm_secure.adapters import AdapterSettings, SharedLayout
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.floors import policy_of
from fedvlm_secure.federation.lineage import Lineage
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.privacy.distributed import DistributedGaussian, noise_multiplier
from fedvlm_secure.secagg.plan import NO_HISTORY, RUN_BYTES, Plan, propose
from fedvlm_secure.secagg.policy import Party, check_plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import simulated
from fedvlm_secure.secagg.session import Memory
from fedvlm_secure.training import Evaluation

# Losses are summed as whole thousandths of a nat, answers as whole numbers: exact, whatever the order of addition.
_LOSS_UNIT = 1000
_MOST_ANSWERS, _MOST_LOSS = 1 << 20, 1 << 30


def vector_layout(update: int, settings: Settings) -> VectorLayout:
    """The layout of a round that shares ``update`` numbers.

    Under differential privacy everybody's weight is 1 or a public size band, and nothing else is counted: exact counts
    would not be private.
    """
    aggregation, privacy = settings.aggregation, settings.privacy
    if privacy.mode != "none":
        most = 1 if privacy.weights == "equal" else aggregation.weight_max
        return VectorLayout(update, (Counter("weight", most),), aggregation.value_bits, weight_max=most)
    counters = (
        Counter("weight", aggregation.weight_max),
        Counter("correct", _MOST_ANSWERS),
        Counter("asked", _MOST_ANSWERS),
        Counter("loss-milli", _MOST_LOSS),
    )
    return VectorLayout(update, counters, aggregation.value_bits, aggregation.weight_max)


def proposal(
    settings: Settings,
    *,
    run: bytes,
    place: tuple[int, int],
    cohort: tuple[str, ...],
    size: int,
    roster: bytes,
    model: bytes,
    history: bytes = NO_HISTORY,
) -> Plan:
    """The plan that the settings mean.

    Args:
        place: (round, attempt).
        size: how many numbers are shared.
        roster, model: their hashes.
        history: head of the transcripts' chain so far.

    Raises:
        MisuseError: so many clients cannot aggregate safely under these settings.
    """
    noised = settings.privacy.mode == "client" and size > 0
    noise = noisy_sums(settings, tuple(sorted(cohort)), size).noise_multiplier if noised else 0.0
    plan = _propose(settings, noise, size, run=run, place=place, cohort=cohort, roster=roster, model=model)
    return replace(plan, history=history)


@lru_cache(maxsize=16)
def noisy_sums(settings: Settings, cohort: tuple[str, ...], size: int) -> DistributedGaussian:
    """What a run under client-level privacy releases if one attempt a round is answered, with the noise it needs.

    Raises:
        MisuseError: as :func:`proposal`, or no noise keeps the run within the target.
    """
    table = settings.privacy
    probe = _propose(
        settings, 1.0, size, run=bytes(RUN_BYTES), place=(1, 1), cohort=cohort, roster=bytes(32), model=bytes(32)
    )
    like = DistributedGaussian.of(probe, answered=settings.rounds)
    noise = table.noise_multiplier or noise_multiplier(table.target_epsilon, table.target_delta, like)
    return replace(like, noise_multiplier=noise)


def _propose(
    settings: Settings,
    noise: float,
    size: int,
    *,
    run: bytes,
    place: tuple[int, int],
    cohort: tuple[str, ...],
    roster: bytes,
    model: bytes,
) -> Plan:
    table = settings.aggregation
    return propose(
        run=run,
        round=place[0],
        attempt=place[1],
        cohort=cohort,
        layout=vector_layout(size, settings),
        clip_norm=table.clip_norm,
        protocol=table.protocol,
        threat_model=table.threat_model,
        max_corrupt=table.max_corrupt,
        threshold=table.threshold,
        min_survivors=table.min_survivors,
        rounding=table.rounding,
        noise_multiplier=noise,
        roster=roster,
        model=model,
    )


def check_settings(settings: Settings, rows: Mapping[str, int], size: int) -> None:
    """Refuse a run that cannot succeed, before anything is written or trained.

    Args:
        rows: every hospital's training rows, by name.
        size: how many numbers are shared.

    Raises:
        MisuseError: a name that cannot be a member's, a weight above the bound, too few hospitals.
        PolicyRefusalError: the plans would be below the hospitals' floors.
    """
    identities = {name: Identity.generate() for name in sorted(rows)}
    roster = simulated(Identity.generate(), identities)
    for count in rows.values():
        weight_of(count, settings)
    cohort, model = tuple(sorted(rows)), bytes(32)
    plan = proposal(
        settings,
        run=bytes(RUN_BYTES),
        place=(1, 1),
        cohort=cohort,
        size=size,
        roster=roster.hash,
        model=model,
    )
    party = Party(cohort[0], identities[cohort[0]], roster, policy_of(settings), model)
    check_plan(plan, party, Memory(), lookup(plan.protocol).phases[0])


@dataclass(frozen=True, slots=True)
class SealedResult:
    """What the server has of a round whose sum it cannot read.

    Attributes:
        model: hash of the model that follows, as the hospitals that read the sum have signed.
        message: the sum as it goes to this hospital.
    """

    model: bytes
    message: bytes


# What a round leaves behind for a hospital: the new shared state, float32 [d], or the sum that only hospitals can read.
Result = np.ndarray | SealedResult


def lineage(
    base: bytes, settings: AdapterSettings, common: SharedLayout, shared: np.ndarray, layout: SharedLayout
) -> Lineage:
    """The model at the start of a round, and what of it moves.

    Args:
        base: :attr:`fedvlm_secure.models.LoadedModel.digest`, computed by this party over what it loaded.
        common: what all rounds share together.
        shared: float32 [common.size], its state at the start of the round.
        layout: what this round shares of it.
    """
    places = b"" if layout == common else layout.places_in(common).astype("<i4").tobytes()
    described = json.dumps(asdict(settings), sort_keys=True)
    return Lineage(base, described, common.digest(), np.ascontiguousarray(shared, "<f4").tobytes(), places)


def weight_of(rows: int, settings: Settings) -> int:
    """A hospital's weight: its training rows in units of ``rows-per-weight``, at least 1.

    Under differential privacy it is 1, or with ``privacy.weights = "size-band"`` the largest power of two that is not
    above those rows.

    Raises:
        MisuseError: above ``weight-max``.
    """
    aggregation, privacy = settings.aggregation, settings.privacy
    if privacy.mode != "none":
        rows = 1 if privacy.weights == "equal" else 1 << (max(1, rows).bit_length() - 1)
    weight = max(1, round(rows / aggregation.rows_per_weight))
    if weight > aggregation.weight_max:
        raise MisuseError(
            f"{rows} training rows give a weight of {weight}, above aggregation.weight-max = {aggregation.weight_max}; "
            f"raise aggregation.rows-per-weight to {-(-rows // aggregation.weight_max)} or more at every site"
        )
    return weight


def counters(weight: int, evaluation: Evaluation, settings: Settings) -> dict[str, int]:
    """What travels beside the update inside the protected vector, as :func:`vector_layout` says."""
    if settings.privacy.mode != "none":
        return {"weight": weight}
    return {
        "weight": weight,
        "correct": evaluation.correct,
        "asked": evaluation.asked,
        "loss-milli": _loss_milli(evaluation.loss_sum),
    }


def _loss_milli(loss_sum: float) -> int:
    """A loss that is not a number or beyond the bound, as of a model that has diverged, counts as the bound."""
    milli = loss_sum * _LOSS_UNIT
    return round(milli) if milli < _MOST_LOSS else _MOST_LOSS


def figures(sums: Mapping[str, int]) -> dict[str, float | None]:
    """What counters' sums say of all survivors' rows together; None where the sums are not known."""
    correct, asked, loss = sums.get("correct"), sums.get("asked"), sums.get("loss-milli")
    return {
        "correct": correct,
        "asked": asked,
        "accuracy": None if correct is None or asked is None else Evaluation(correct, asked, 0.0).accuracy,
        "loss": None if loss is None or asked is None else Evaluation(0, asked, loss / _LOSS_UNIT).loss,
    }


def training_seed(seed: int, name: str, round_index: int, tries: int) -> int:
    """The seed of one training: decides the order of rows, and nothing that hides anything."""
    described = f"fedvlm-secure training {seed} {name} {round_index} {tries}".encode()
    return int.from_bytes(hashlib.sha256(described).digest()[:8]) >> 1
