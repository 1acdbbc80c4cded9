"""The attack catalogue: every attack of the list against one target, in the order of a protocol's phases.

>>> from fedvlm_secure.audit.catalogue import audit
>>> from fedvlm_secure.audit.targets import target
>>> results = audit(target("pairwise"))

No attack recovers a seed by search: where a generator is weak, that is measured and said.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedvlm_secure.audit.attacks import numbers, parties, shares, surface
from fedvlm_secure.audit.attacks.trial import Attack, run
from fedvlm_secure.audit.target import RESISTED, AuditTarget
from fedvlm_secure.secagg.protocols import PROTOCOLS

ATTACKS: tuple[Attack, ...] = (*surface.ATTACKS, *parties.ATTACKS, *shares.ATTACKS, *numbers.ATTACKS)

REPORT_FIRST = "Report what you find to the project that it is about before you publish anything of it."


def ours(target: str) -> bool:
    """Whether a target is a protocol of this package."""
    return target in PROTOCOLS


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report.

    Attributes:
        outcome: ``"vulnerable"``, ``"resisted"`` or ``"not-applicable"``.
        observed: measured figures, or why the attack does not apply.
        consequence: what follows for clients, conditions included; of a success where there was none.
        reference: the clause that the refusal named, if any, and the paper.
    """

    attack: str
    outcome: str
    observed: str
    consequence: str
    reference: str


def audit(
    target: AuditTarget, attacks: Sequence[Attack] = ATTACKS, each: Callable[[Attack], None] = lambda attack: None
) -> list[Result]:
    """What comes of ``attacks`` against ``target``.

    Args:
        each: told of every attack before it begins.
    """
    results = []
    for attack in attacks:
        each(attack)
        with _quiet("flwr", "nvflare"):
            found = run(attack, target)
        would_be = "" if found.outcome != RESISTED else "if it succeeded: "
        reference = f"{found.clause}; {attack.reference}" if found.clause else attack.reference
        results.append(Result(attack.name, found.outcome, found.observed, would_be + attack.consequence, reference))
    return results


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """What an audited library logs of rounds that the audit breaks is no news; later its loggers are as they were."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
