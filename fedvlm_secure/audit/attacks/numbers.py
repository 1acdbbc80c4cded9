"""Attacks on numbers: masks that are not uniform, seeds that are short, sums that wrap, small updates that drown."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.attacks.trial import (
    SIGNIFICANCE,
    VICTIM,
    WEIGHT_MAX,
    Attack,
    Finding,
    InconclusiveError,
    Moves,
    cohort,
    relative,
)
from fedvlm_secure.audit.target import (
    AGREEMENT,
    PROPOSAL,
    RESISTED,
    VULNERABLE,
    AuditTarget,
    BrokenRoundError,
    Cohort,
    Masks,
    NotApplicableError,
    Proposal,
    Upload,
)

SMALL_MODULUS = 16
DRAWS = 1 << 20
STREAM = 8  # words that tell one stream from another
ENOUGH_BITS = 128
IMPRECISE = 0.01
WRONG_SUM = 1e-3
FLOAT32 = 4


def uniformity_p(counts: NDArray[np.int64]) -> float:
    """The chance of counts as uneven as these, were all values equally likely: Pearson's test."""
    from scipy.special import chdtrc

    expected = counts.sum() / len(counts)
    return float(chdtrc(len(counts) - 1, float(((counts - expected) ** 2).sum() / expected)))


def mask_uniformity(target: AuditTarget) -> Finding:
    """Masks of a small modulus, and the top bytes of a real upload."""
    observed, smallest, nothing = [], 1.0, ""
    try:
        masks = target.masks()
        for kind, seeds in masks.seeds.items():
            drawn = masks.expand(kind, seeds[0], SMALL_MODULUS, DRAWS)
            counts = np.bincount(drawn, minlength=SMALL_MODULUS)
            chance = uniformity_p(counts)
            never = [str(value) for value in np.flatnonzero(counts == 0)]
            absent = f", {' and '.join(never)} never drawn" if never else ""
            observed.append(f"{kind} masks modulo {SMALL_MODULUS}, {DRAWS} drawn: {_chance(chance)}{absent}")
            smallest = min(smallest, chance)
    except NotApplicableError as error:
        nothing = str(error)
    clients = cohort(dimension=20_000)
    attempt = target.open(clients)
    attempt.until(AGREEMENT)
    upload = attempt.upload(VICTIM)
    if upload.words is not None:
        top = upload.words >> (upload.modulus.bit_length() - 1 - 8)
        chance = uniformity_p(np.bincount(top, minlength=256))
        observed.append(f"top bytes of {len(top)} uploaded words: {_chance(chance)}")
        smallest = min(smallest, chance)
    if not observed:
        raise NotApplicableError(nothing)
    return Finding(VULNERABLE if smallest < SIGNIFICANCE else RESISTED, "; ".join(observed))


def _chance(chance: float) -> str:
    return f"p = {chance:.2g}" if chance > 1e-300 else "p < 1e-300"


def seed_entropy(target: AuditTarget) -> Finding:
    """Which bits of a seed the generator's output depends on."""
    masks = target.masks()
    found = {kind: _bits(masks, kind) for kind in masks.seeds}
    observed = [
        f"{kind} seeds: of {total} bits, flipping one gives {classes} different streams, "
        f"{varying} of which differ among {len(masks.seeds[kind])} seeds of the protocol"
        for kind, (total, classes, varying) in found.items()
    ]
    least = min(varying for _, _, varying in found.values())
    outcome = VULNERABLE if least < ENOUGH_BITS else RESISTED
    return Finding(outcome, "; ".join(observed) + f": at most {least} bits in effect" * (outcome == VULNERABLE))


def _bits(masks: Masks, kind: str) -> tuple[int, int, int]:
    """A seed's bits; classes of bits that act as one, by their exclusive or; those whose value varies over real seeds.

    Bits are of one class if flipping either gives the same stream; that flipping both gives the original one back is
    verified, for the first two of each class.
    """
    seed = masks.seeds[kind][0]

    def stream(flipped: tuple[int, ...]) -> bytes:
        changed = bytearray(seed)
        for bit in flipped:
            changed[bit // 8] ^= 1 << (bit % 8)
        return masks.expand(kind, bytes(changed), 1 << 32, STREAM).tobytes()

    original, classes = stream(()), dict[bytes, list[int]]()
    for bit in range(8 * len(seed)):
        classes.setdefault(stream((bit,)), []).append(bit)
    classes.pop(original, None)  # bits that do nothing
    for members in classes.values():
        if len(members) > 1 and stream((members[0], members[1])) != original:
            raise InconclusiveError(f"bits {members[:2]} of a {kind} seed act alike, but not together")
    varying = 0
    for members in classes.values():
        parities = {sum(each[bit // 8] >> (bit % 8) & 1 for bit in members) % 2 for each in masks.seeds[kind]}
        varying += len(parities) == 2
    return 8 * len(seed), len(classes), varying


def mask_reuse(target: AuditTarget) -> Finding:
    """The uploads of one client in two rounds, subtracted."""
    clients = cohort(dimension=2000)
    first = target.open(clients)
    first.finish()
    second = first.again(new=True, trained=True)
    second.finish()
    one, two = first.upload(VICTIM), second.upload(VICTIM)
    if one.words is None:
        return _shared_bytes(one, two, first.upload("c00"))
    assert one.encoded is not None
    assert two.words is not None
    assert two.encoded is not None
    if one.modulus != two.modulus:
        raise InconclusiveError("the two rounds have different moduli")
    difference = ((one.words - two.words) - (one.encoded - two.encoded)) % one.modulus
    near = np.minimum(difference, one.modulus - difference) <= 2 * one.tolerance
    count = int(np.count_nonzero(near))
    observed = f"the difference of two uploads is that of the inputs in {count} of {len(near)} words"
    return Finding(VULNERABLE if count > len(near) // 2 else RESISTED, observed)


def _shared_bytes(one: Upload, two: Upload, other: Upload, window: int = 32) -> Finding:
    """Ciphertexts of the same randomness share its seed, or whole runs of bytes; headers are shared by all."""

    def windows(payload: bytes) -> set[bytes]:
        return {payload[start : start + window] for start in range(len(payload) - window + 1)}

    shared = (windows(one.payload) & windows(two.payload)) - windows(other.payload)
    observed = f"{len(shared)} runs of {window} bytes common to the ciphertexts of two rounds, headers aside"
    return Finding(VULNERABLE if shared else RESISTED, observed)


def overflow(target: AuditTarget) -> Finding:
    """A modulus too small for the cohort, and weights beyond what the modulus allows."""
    small = cohort(weight=lambda index: WEIGHT_MAX)
    heavy = cohort(deviation=1e-3, weight=lambda index: 250 * WEIGHT_MAX)
    cases = {
        "modulus 2^24, all weights at their maximum": (small, Proposal(modulus_bits=24)),
        f"weights of {250 * WEIGHT_MAX} where {WEIGHT_MAX} is the maximum": (heavy, Proposal()),
    }
    moves, wrong, right = Moves((PROPOSAL,), ("P-2",)), list[str](), list[str]()
    lacking = NotApplicableError()
    for what, (clients, proposal) in cases.items():
        try:
            error = _error_of_sum(target, clients, proposal, moves)
        except NotApplicableError as reason:
            lacking = reason
            continue
        if error is not None and error > WRONG_SUM:
            wrong.append(f"{what}: a mean that is off by {error:.2g} (relative L2), and no error")
        elif error is not None:
            right.append(f"{what}: a mean that is right to {error:.2g}")
    if wrong:
        return Finding(VULNERABLE, "; ".join(wrong))
    if moves.refused:
        return moves.resisted("; ".join(right))
    if right:
        return Finding(RESISTED, "; ".join(right))
    raise lacking


def _error_of_sum(target: AuditTarget, clients: Cohort, proposal: Proposal, moves: Moves) -> float | None:
    """How far off a finished round's mean is; None if there was none."""
    means: list[NDArray[np.float64]] = []
    try:
        if not moves.make(lambda: means.append(target.open(clients, proposal).finish().values)):
            return None
    except BrokenRoundError:
        return None
    return relative(means[0], clients.mean(clients.names))


def precision(target: AuditTarget) -> Finding:
    """Honest rounds with updates as LoRA makes them, and small weights."""
    observed, worst = [], 0.0
    for deviation, weight in ((1e-3, 100), (1e-3, 10), (1e-4, 10)):
        clients = cohort(dimension=1000, deviation=deviation, weight=lambda index, weight=weight: weight)  # type: ignore[misc]
        error = relative(target.open(clients).finish().values, clients.mean(clients.names))
        observed.append(f"{error:.2g} at deviation {deviation:g} and weight {weight}")
        worst = max(worst, error)
    told = f"relative L2 error of the mean of {len(clients.names)} clients, {WEIGHT_MAX} being the largest weight: "
    return Finding(VULNERABLE if worst > IMPRECISE else RESISTED, told + ", ".join(observed))


def upload_size(target: AuditTarget) -> Finding:
    """Bytes of an upload for each parameter."""
    clients = cohort(dimension=100_000)
    attempt = target.open(clients)
    attempt.until(AGREEMENT)
    upload = attempt.upload(VICTIM)
    share = upload.size / clients.dimension
    zeros = upload.payload.count(0) / len(upload.payload)
    observed = f"{share:.2f} bytes a parameter, {share / FLOAT32:.2f} times float32; {zeros:.0%} of the bytes are zero"
    return Finding(VULNERABLE if share >= 2 * FLOAT32 else RESISTED, observed)


def dropout(target: AuditTarget) -> Finding:
    """Every client in turn falls silent in every phase; a broken round may be tried once more without it."""
    clients = cohort(dimension=50)
    ended: dict[str, tuple[int, int, str]] = {}
    for phase in target.phases:
        at_once, retried, why = 0, 0, ""
        for name in clients.names:
            attempt = target.open(clients)
            try:
                _right_sum(attempt.finish({name: phase}).values, attempt, clients, {name: phase})
                at_once += 1
            except BrokenRoundError as error:
                why = str(error)
                retried += _second_try(attempt, clients, {name: phase})
        ended[phase] = at_once, retried, why
    cases = len(clients.names)
    worded = [_worded(phase, cases, *counts) for phase, counts in ended.items()]
    broken = any(at_once + retried < cases for at_once, retried, _ in ended.values())
    return Finding(VULNERABLE if broken else RESISTED, "; ".join(worded))


def _right_sum(mean: NDArray[np.float64], attempt: object, clients: Cohort, silent: Mapping[str, str]) -> None:
    """The mean is that of all clients, or of all but the silent one."""
    others = [name for name in clients.names if name not in silent]
    errors = [relative(mean, clients.mean(names)) for names in (clients.names, others)]
    if min(errors) > WRONG_SUM:
        raise InconclusiveError(f"with {silent} the mean is off by {min(errors):.1e}")


def _second_try(attempt: object, clients: Cohort, silent: Mapping[str, str]) -> bool:
    """Whether a second attempt at the broken round ends in a right sum."""
    try:
        mean = attempt.again(new=True, trained=False).finish(silent)  # type: ignore[attr-defined]
    except BrokenRoundError:
        return False
    _right_sum(mean.values, attempt, clients, silent)
    return True


def _worded(phase: str, cases: int, at_once: int, retried: int, why: str) -> str:
    if at_once == cases:
        return f"{phase}: {cases} of {cases} rounds ended"
    again = f", {retried} more at the second attempt" if retried else ""
    return f"{phase}: {at_once} of {cases} rounds ended{again} ({why[:160]})"


ATTACKS = (
    Attack(
        "mask-uniformity",
        "draws masks of a small modulus and looks at uploads: Pearson's test, p < 1e-9",
        "a masked word is a little likelier near some inputs than others; small at a large modulus, and no perfect "
        "secrecy at any",
        "Bonawitz et al. (CCS 2017): masks uniform over the group",
        mask_uniformity,
    ),
    Attack(
        "seed-entropy",
        "flips each bit of a mask's seed and looks at the stream that comes out; nothing is searched",
        "a stream has no more secrecy than bits that its seed is reduced to, whatever the length of keys before it",
        "NIST SP 800-90A: a generator is no stronger than its seed",
        seed_entropy,
    ),
    Attack(
        "mask-reuse",
        "subtracts a client's uploads of two rounds",
        "the difference of two updates in the clear",
        "Bonawitz et al. (CCS 2017): fresh seeds in every round",
        mask_reuse,
    ),
    Attack(
        "overflow",
        "has sums formed for which the modulus is too small",
        "a wrong model that nobody notices; no secret is lost",
        "headroom: clients times weight times range must stay below the modulus",
        overflow,
    ),
    Attack(
        "precision",
        "runs honest rounds with small updates at small weights",
        "the mean is noise where updates are small and weights far below the largest, as LoRA's often are",
        "quantisation after weighting",
        precision,
    ),
    Attack(
        "upload-size",
        "divides an upload by its parameters",
        "traffic, no secret: twice float32 or more",
        "the modulus says how many bits are needed",
        upload_size,
    ),
    Attack(
        "dropout",
        "has each client in turn fall silent in each phase",
        "one lost connection ends the round for all",
        "Bonawitz et al. (CCS 2017): dropouts between any two messages",
        dropout,
    ),
)
