"""What the server sees of a round: the package's own sessions, with every upload kept on its way in.

Under ``plain`` an upload decodes to the hospital's update. Under ``pairwise`` the same decoding, applied to the masked
upload, is all that the server can do before the masks cancel in the sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.rotation import unrotate
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.envelope import split
from fedvlm_secure.secagg.plan import RUN_BYTES, Plan, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import simulated
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import ClientSession, RingSum

CLIP_NORM = 10.0  # the demo's
_UPLOAD = {"plain": "input", "pairwise": "masked-input"}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Seen:
    """One round in the server's eyes.

    Attributes:
        uploads: by hospital, what the server decodes its upload to, float64 [d].
        total: the decoded sum over all hospitals, float64 [d].
        wire: by hospital, the vector as it came, without the envelope.
    """

    uploads: dict[str, Floats]
    total: Floats
    wire: dict[str, bytes]


class _Tapped:
    """A client session whose upload is kept."""

    def __init__(self, session: ClientSession, upload: int) -> None:
        self._session, self._left = session, upload
        self.wire = b""

    def reply(self, request: bytes) -> bytes:
        """Answer as the session does."""
        reply = self._session.reply(request)
        if self._left == 0:
            self.wire = b"".join(bytes(chunk) for chunk in split(reply)[1:])
        self._left -= 1
        return reply


def observe(protocol: str, updates: Mapping[str, NDArray[np.float32]]) -> Seen:
    """Run one round of ``plain`` or ``pairwise`` over the updates, each float32 [d], with weight 1.

    Raises:
        MisuseError: fewer than three hospitals.
    """
    names = tuple(sorted(updates))
    identities, server_identity = {name: Identity.generate() for name in names}, Identity.generate()
    roster = simulated(server_identity, identities)
    plan = propose(
        run=entropy.random_bytes(RUN_BYTES),
        round=1,
        attempt=1,
        cohort=names,
        layout=VectorLayout(len(updates[names[0]]), (Counter("weight", 1),), weight_max=1),
        clip_norm=CLIP_NORM,
        roster=roster.hash,
        model=digest("leakage"),
        protocol=protocol,
    )
    policy = Policy(protocols=(protocol,))
    entry = lookup(protocol)
    upload = entry.phases.index(_UPLOAD[protocol])
    clients = {
        name: _Tapped(
            entry.client(
                Party(name, identities[name], roster, policy, plan.model), Update(updates[name], {"weight": 1})
            ),
            upload,
        )
        for name in names
    }
    total = run_round(entry.server(plan, server_identity, roster), clients)  # type: ignore[arg-type]
    assert isinstance(total, RingSum)
    wire = {name: client.wire for name, client in clients.items()}
    uploads = {name: decoded(plan, plan.ring.to_signed(plan.ring.unpack(sent))) for name, sent in wire.items()}
    return Seen(uploads, decoded(plan, total.total), wire)


def decoded(plan: Plan, integers: NDArray[np.int64]) -> Floats:
    """The vector behind integers of the ring: what :meth:`Codec.decode` does, without its checks, which noise fails."""
    return unrotate(integers[: plan.layout.update].astype(np.float64) * plan.codec.step, plan.codec.seed)
