"""What a client accepts. It recomputes what the plan claims, and never trusts a number because the server sent it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedvlm_secure.encoding.codec import Decoded
from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.errors import MisuseError, PolicyRefusalError, ProtocolError
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY
from fedvlm_secure.secagg.plan import LARGEST_COHORT, MALICIOUS_SERVER, THREAT_MODELS, Plan, least_survivors, shape
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import SERVER, ClientId, Memory


@dataclass(frozen=True, slots=True)
class Policy:
    """A hospital's floors. A plan weaker than any of them is refused.

    Attributes:
        threat_model: the weakest model accepted; ``"malicious-server"`` is the stronger.
        max_corrupt: at least this many colluding clients must be planned for.
        min_cohort, min_survivors: fewest clients in a plan, and in a sum.
        protocols: accepted protocols; ``"plain"`` protects nothing and has to be named here on purpose.
        shared_key_despite_collusion: whether a plan may count on colluding clients and yet use one key that every
            client holds (``"ckks"``, ``"bfv"``): server and one such client together read every input.
        published: counters whose sums the server may be told where it cannot read the sum itself; under
            ``"honest-but-curious"`` only.
        least_noise_multiplier: least noise in a sum, in clip norms; 0 is none. With the floors of ``min_survivors`` and
            ``max_corrupt``, which say whose noise is counted, it bounds what an answered attempt costs in ε.
        least_value_bits: coarsest rounding accepted of an update: it widens what one client can change in a noisy sum.
    """

    threat_model: str = MALICIOUS_SERVER
    max_corrupt: int = 1
    min_cohort: int = 3
    min_survivors: int = 3
    protocols: tuple[str, ...] = ("pairwise",)
    shared_key_despite_collusion: bool = False
    published: tuple[str, ...] = ()
    least_noise_multiplier: float = 0.0
    least_value_bits: int = 2


@dataclass(frozen=True, slots=True)
class Party:
    """A client as it enters a round: its name and key, and what it has pinned.

    Attributes:
        model: the hash the client computed itself over everything it loaded.
        following: the hash of the model that follows from a decoded sum, where clients are those who read it.
        place: (round, attempt) that the client has prepared, and been charged, for; None accepts any later one.
        run: that the client takes part in; None accepts any.
        layout: of the vector, bounds included, as the client has agreed to it; None accepts any that its update fits.
    """

    name: ClientId
    identity: Identity
    roster: Roster
    policy: Policy
    model: bytes
    following: Callable[[Decoded], bytes] | None = None
    place: tuple[int, int] | None = None
    run: bytes | None = None
    layout: VectorLayout | None = None


def check_plan(plan: Plan, party: Party, memory: Memory, phase: str, *, taking_part: bool = True) -> None:
    """Recompute everything in ``plan`` that a client can, and compare it with its own floors.

    Args:
        phase: the phase in which the plan arrived, for the error to name.
        taking_part: False for the plan of a round whose sum is read afterwards: it may leave the client out (P-2.2),
            and need not be news (P-2.7).

    Raises:
        ProtocolError: the plan contradicts itself, the roster, the client's own model or its memory.
        PolicyRefusalError: the plan is sound but weaker than ``policy``.
    """
    for clause, sound, detail in _rules(plan, party, memory, taking_part):
        if not sound:
            raise ProtocolError(clause, party=SERVER, phase=phase, detail=detail, round=plan.place)
    _check_floors(plan, party.policy, phase)


def _rules(plan: Plan, party: Party, memory: Memory, taking_part: bool) -> Iterator[tuple[str, bool, str]]:
    """Clause, whether the plan satisfies it, and what to say if not; lazily, since later ones rely on earlier ones."""
    yield "P-2.1", plan.spec == SPEC_VERSION, f"speaks {plan.spec[:40]!r}, this client {SPEC_VERSION!r}"
    yield "P-2.2", plan.roster == party.roster.hash, "names a roster that is not the pinned one"
    cohort = _cohort_is_sound(plan, party.roster) and (party.name in plan.cohort or not taking_part)
    yield "P-2.2", cohort, "the cohort must be sorted members of the roster, and hold us"
    yield "P-2.3", plan.model == party.model, "names a model that is not the one this client has loaded"
    yield "P-2.5", party.layout in (None, plan.layout), "its layout is not the one this client has agreed to"
    yield "P-2.7", party.run in (None, plan.run), "is of another run than the one this client takes part in"
    yield "P-2.4", _thresholds_are_sound(plan), "graph, threshold and min_survivors are not what n and c ask for"
    yield "P-2.5", _protocol_fits(plan), f"the sums, or their noise, do not fit {plan.protocol[:40]!r}"
    ring = f"a ring of {plan.ring_bits} bits is not what the layout needs for the cohort, or the clip norm is unusable"
    yield "P-2.5", _ring_fits(plan), ring
    news = _is_news(plan, memory) or not taking_part
    yield "P-2.7", news, "is not later than the last plan this client began in the run"
    expected = party.place in (None, plan.place) or not taking_part
    yield "P-2.7", expected, "is not for the attempt that this client has prepared for"


def _cohort_is_sound(plan: Plan, roster: Roster) -> bool:
    members = {member.name for member in roster.members}
    cohort = list(plan.cohort)
    return cohort == sorted(set(cohort)) and set(cohort) <= members


def _thresholds_are_sound(plan: Plan) -> bool:
    clients, corrupt = len(plan.cohort), plan.max_corrupt
    if plan.threat_model not in THREAT_MODELS or clients > LARGEST_COHORT:
        return False
    if not max(plan.threshold, least_survivors(plan.protocol, corrupt)) <= plan.min_survivors <= clients:
        return False
    wiring = shape(plan.threat_model, clients, corrupt, plan.min_survivors)
    return plan.degree == wiring.degree and wiring.least_threshold <= plan.threshold <= wiring.most_threshold


def _ring_fits(plan: Plan) -> bool:
    try:
        needed = plan.layout.ring_bits(len(plan.cohort), plan.noise_tail)
        return plan.ring_bits == needed and 0 < plan.codec.step < math.inf
    except MisuseError:
        return False


def _protocol_fits(plan: Plan) -> bool:
    try:
        plan.check_fits()
    except MisuseError:
        return False
    return True


def _is_news(plan: Plan, memory: Memory) -> bool:
    return min(plan.place) >= 1 and plan.place > memory.begun.get(plan.run.hex(), ())


def _check_floors(plan: Plan, policy: Policy, phase: str) -> None:
    for met, detail in (
        (plan.protocol in policy.protocols, f"protocol {plan.protocol[:40]!r} is not accepted"),
        (
            not plan.max_corrupt or plan.protocol not in SHARED_KEY or policy.shared_key_despite_collusion,
            f"under {plan.protocol!r} the server and one of {plan.max_corrupt} colluding clients read every input",
        ),
        (
            not policy.published or plan.protocol not in SHARED_KEY or plan.threat_model != MALICIOUS_SERVER,
            "counters are not published under 'malicious-server': such a server compares what several clients publish",
        ),
        (
            plan.threat_model == MALICIOUS_SERVER or policy.threat_model != MALICIOUS_SERVER,
            f"threat model {plan.threat_model!r} is weaker than {policy.threat_model!r}",
        ),
        (plan.max_corrupt >= policy.max_corrupt, f"max_corrupt {plan.max_corrupt} is below {policy.max_corrupt}"),
        (len(plan.cohort) >= policy.min_cohort, f"a cohort of {len(plan.cohort)} is below {policy.min_cohort}"),
        (plan.min_survivors >= policy.min_survivors, f"min_survivors {plan.min_survivors} < {policy.min_survivors}"),
        (
            plan.noise_multiplier >= policy.least_noise_multiplier,
            f"a noise multiplier of {plan.noise_multiplier:.6g} is below {policy.least_noise_multiplier:.6g}",
        ),
        (
            plan.layout.value_bits >= policy.least_value_bits,
            f"value_bits {plan.layout.value_bits} is below {policy.least_value_bits}",
        ),
    ):
        if not met:
            raise PolicyRefusalError("P-2.6", party=SERVER, phase=phase, detail=detail, round=plan.place)
