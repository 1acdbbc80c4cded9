"""``pairwise`` under audit: the server of :mod:`fedvlm_secure.audit.pairwise_attacker` on a federation of its own."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.pairwise_attacker import Attacker, NotEnoughError
from fedvlm_secure.audit.target import (
    AGREEMENT,
    INPUT,
    KEYS,
    PROPOSAL,
    STEPS,
    UNMASK,
    Exposed,
    Malformed,
    Masks,
    TooLittleError,
    Withheld,
)
from fedvlm_secure.audit.targets.ours import Federation, OurAttempt
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound

_PHASE_OF = dict(zip(STEPS, m.PHASES, strict=True))


class PairwiseAttempt(OurAttempt):
    """One attempt; its server keeps every share that it is given."""

    lacks: Mapping[str, str] = {
        "read_by_member": "nothing is encrypted homomorphically; masks have no key that opens an upload",
        "decryption": "nothing is encrypted homomorphically; sums are exact integers",
    }

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        proposal, sessions = federation.proposal, dict[str, Any](self.clients)
        one_with_it = (*proposal.colluders, *proposal.impersonated, *proposal.sybils)
        self.attacker = Attacker(federation, sessions, one_with_it)
        self._reached = 0
        self._signed: dict[str, tuple[str, ...]] = {}
        self._consents: dict[tuple[str, ...], dict[str, bytes]] = {}

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """See :class:`Attempt`."""
        kept_back = withheld or {}
        moves: dict[str, Callable[[str], object]] = {
            PROPOSAL: self.attacker.collect_keys,
            KEYS: self.attacker.collect_parcels,
            INPUT: lambda name: self.attacker.collect_upload(name, kept_back.get(name, ())),
            AGREEMENT: lambda name: self.agree(name, self.federation.cohort.names),
        }
        for done in STEPS[self._reached : STEPS.index(step)]:
            for name in self.clients:
                moves[done](name)
            self._reached += 1

    def agree(self, client: str, survivors: Collection[str]) -> None:
        """See :class:`Attempt`; colluders sign whatever list there is."""
        listed = tuple(sorted(survivors))
        consents = self._consents.setdefault(listed, {})
        for name in (client, *self.attacker.colluders):
            if name in listed and name not in consents:
                consents[name] = self.attacker.consent(name, listed)
        self._signed[client] = listed

    def unmask(self, client: str, survivors: Collection[str], dropped: Collection[str]) -> None:
        """See :class:`Attempt`; whose self-mask shares are wanted the request does not say, but the signed list."""
        consents = self._consents[self._signed[client]]
        self.attacker.reveal(client, m.UnmaskRequest(tuple(sorted(dropped)), consents))

    def recover(self, client: str) -> Exposed:
        """See :class:`Attempt`."""
        if client not in self.attacker.uploads:
            raise TooLittleError(f"{client} has uploaded nothing")
        try:
            return self.exposed(self.attacker.vector_of(client))
        except NotEnoughError as error:
            raise TooLittleError(f"the attacker holds {error}") from error

    def malformed(self) -> Iterator[Malformed]:
        """See :class:`Attempt`."""
        name = next(iter(self.clients))
        for step in STEPS:
            self.until(step)
            yield from self.malformed_at(
                step, name, self.federation.says(_PHASE_OF[step], name, self._body(step, name))
            )

    def _body(self, step: str, name: str) -> object:
        names = self.federation.cohort.names
        match step:
            case "proposal":
                return self.plan
            case "keys":
                return self.attacker.key_list(name)
            case "input":
                return self.attacker.deliveries(name)
            case "agreement":
                return m.SurvivorList(names)
            case _:
                assert step == UNMASK
                return self.attacker.unmask_request(name, names, self._consents[names])


def masks() -> Masks:
    """The mask streams, from the seeds that clients draw and share."""
    bound = Bound(digest("audit-plan"))
    mine = [Secret.generate() for _ in range(200)]
    seeds = {"self": [seed.reveal() for seed in mine]}
    seeds["pair"] = [bound.pair_seed(seed, "c00", "c01").reveal() for seed in mine]

    def expand(kind: str, seed: bytes, modulus: int, count: int) -> NDArray[np.int64]:
        made = bound.self_mask(Secret(seed), "c00") if kind == "self" else bound.pair_mask(Secret(seed), "c00", "c01")
        words = Ring(64).zeros(count)
        MaskStream(made.key).fill(words)
        return (words & np.uint64(modulus - 1)).astype(np.int64)

    return Masks(seeds, expand)
