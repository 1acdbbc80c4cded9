"""A hospital's floors, from its settings; apart from the rest since an auditor reads them without a model."""

from typing import TYPE_CHECKING

from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY
from fedvlm_secure.secagg.policy import Policy

if TYPE_CHECKING:
    from fedvlm_secure.privacy.distributed import DistributedGaussian


def policy_of(settings: Settings, noised: "DistributedGaussian | None" = None) -> Policy:
    """A hospital's floors, from the settings, and not below what the promise about ``noised`` sums counts on."""
    table, proposed = settings.policy, settings.aggregation.protocol
    protocols = table.protocols
    if protocols is None:
        protocols = ("pairwise",) if proposed == "plain" else (proposed,)
    max_corrupt = table.max_corrupt
    if max_corrupt is None:
        max_corrupt = 0 if set(protocols) <= set(SHARED_KEY) else 1
    return Policy(
        threat_model=table.threat_model,
        max_corrupt=max(max_corrupt, noised.max_corrupt if noised else 0),
        min_cohort=table.min_cohort,
        min_survivors=max(table.min_survivors, noised.min_survivors if noised else 0),
        protocols=protocols,
        shared_key_despite_collusion=table.shared_key_despite_collusion,
        published=table.published,
        least_noise_multiplier=noised.noise_multiplier if noised else 0.0,
        least_value_bits=settings.aggregation.value_bits if noised else 2,
    )
