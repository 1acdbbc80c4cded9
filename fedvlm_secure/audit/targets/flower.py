"""Flower's SecAgg+ under audit: flwr's own client mod and workflow, driven in this process.

Nothing of flwr is changed or copied. Where its server lies, the messages are put together here as its workflow would,
and sent to its mod; where it is honest, they are its workflow's. Its clients' keys are read off their contexts only
where they collude with the server, or where the audit looks for them.
"""

import os

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.target import HONEST, INPUT, KEYS, PROPOSAL, UNMASK, Attempt, Cohort, Masks, Proposal
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.entropy import random_bytes

RUN = 1
FIRST_NODE = 1001  # node ids are no small numbers
NUM_SHARES, THRESHOLD = 1.0, 0.5  # complete graph, half of the clients: shares of all, as flwr's workflow takes them
STAGES: tuple[str, ...] = ("setup", "share_keys", "collect_masked_vectors", "unmask")
STEP_OF = dict(zip(STAGES, (PROPOSAL, KEYS, INPUT, UNMASK), strict=True))


def _needed() -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when flwr is imported
    try:
        import flwr.client.mod  # noqa: F401
    except ImportError:
        raise MisuseError(
            "this target is flwr's own code; install it with: pip install 'fedvlm-secure[flower]'"
        ) from None


class FlowerTarget:
    """SecAgg+ as flwr ships it, with its default parameters."""

    name = "flwr-secaggplus"
    phases = STAGES
    input_phase = "collect_masked_vectors"

    def __init__(self) -> None:
        _needed()

    def open(self, cohort: Cohort, proposal: Proposal = HONEST) -> Attempt:
        """See :class:`AuditTarget`."""
        from fedvlm_secure.audit.targets.flower_attempt import FlowerAttempt

        return FlowerAttempt(cohort, proposal)

    def masks(self) -> Masks:
        """See :class:`AuditTarget`."""
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
        from flwr.supercore.primitives.asymmetric import generate_key_pairs

        private, _ = generate_key_pairs()
        pairs = [generate_shared_key(private, generate_key_pairs()[1]) for _ in range(200)]
        own = [random_bytes(32) for _ in pairs]  # as its mod draws them

        def expand(kind: str, seed: bytes, modulus: int, count: int) -> NDArray[np.int64]:
            return pseudo_rand_gen(seed, modulus, [(count,)])[0]

        return Masks({"self": own, "pair": pairs}, expand)

    def threshold(self, clients: int) -> int:
        """See :class:`AuditTarget`."""
        return max(2, round(THRESHOLD * round(NUM_SHARES * clients)))
