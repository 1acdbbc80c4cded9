"""Audits of the targets that this machine has, each run once."""

from collections.abc import Mapping
from functools import cache

from fedvlm_secure.audit.catalogue import ATTACKS, Result, audit
from fedvlm_secure.audit.targets import target

EVERY_ATTACK = [attack.name for attack in ATTACKS]


@cache
def audited(name: str) -> Mapping[str, Result]:
    """The results for a target, by attack."""
    return {result.attack: result for result in audit(target(name))}


def outcome(name: str, attack: str) -> Result:
    """What comes of one attack, tried now: for targets of which a rule is switched off."""
    chosen = [each for each in ATTACKS if each.name == attack]
    (result,) = audit(target(name), chosen)
    return result
