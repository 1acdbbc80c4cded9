"""The protocols that can be audited, by name. What a target needs is imported when it is asked for."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedvlm_secure.audit.target import HONEST, Attempt, AuditTarget, Cohort, Masks, NotApplicableError, Proposal
from fedvlm_secure.errors import MisuseError


@dataclass
class OurTarget:
    """A protocol of this package."""

    name: str
    phases: tuple[str, ...] = field(init=False)
    input_phase: str = field(init=False)

    def __post_init__(self) -> None:
        from fedvlm_secure.secagg.protocols import lookup

        self.phases = lookup(self.name).phases
        self.input_phase = next(phase for phase in self.phases if phase in ("input", "masked-input"))

    def open(self, cohort: Cohort, proposal: Proposal = HONEST) -> Attempt:
        """See :class:`AuditTarget`."""
        from fedvlm_secure.audit.targets.ours import Federation, PlainAttempt

        federation = Federation(self.name, cohort, proposal)
        if self.name == "plain":
            return PlainAttempt(federation)
        if self.name == "pairwise":
            from fedvlm_secure.audit.targets.pairwise import PairwiseAttempt

            return PairwiseAttempt(federation)
        from fedvlm_secure.audit.targets.encrypted import EncryptedAttempt

        return EncryptedAttempt(federation)

    def masks(self) -> Masks:
        """See :class:`AuditTarget`."""
        if self.name == "plain":
            raise NotApplicableError("there are no masks")
        if self.name != "pairwise":
            raise NotApplicableError(
                "there are no masks; ciphertexts are randomised by SEAL, from the operating system"
            )
        from fedvlm_secure.audit.targets.pairwise import masks

        return masks()

    def threshold(self, clients: int) -> int:
        """See :class:`AuditTarget`; of the plan against a malicious server with one colluder."""
        from fedvlm_secure.secagg.plan import majority

        return majority(clients, 1)


def _flower() -> AuditTarget:
    from fedvlm_secure.audit.targets.flower import FlowerTarget

    return FlowerTarget()


def _nvflare() -> AuditTarget:
    from fedvlm_secure.audit.targets.nvflare_he import NvflareTarget

    return NvflareTarget()


TARGETS: Mapping[str, Callable[[], AuditTarget]] = {
    "plain": lambda: OurTarget("plain"),
    "pairwise": lambda: OurTarget("pairwise"),
    "ckks": lambda: OurTarget("ckks"),
    "bfv": lambda: OurTarget("bfv"),
    "flwr-secaggplus": _flower,
    "nvflare-he": _nvflare,
}


def target(name: str) -> AuditTarget:
    """The target called ``name``.

    Raises:
        MisuseError: there is none, or what it needs is not installed; the text says which extra to install.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MisuseError(f"target {name!r} is not known.{hint} Choices: {', '.join(TARGETS)}.")
    return TARGETS[name]()
