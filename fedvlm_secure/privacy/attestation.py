"""What a hospital signs of its own training, for auditors: with how much noise it has trained in a run (A-13).

It is the hospital's word, out of its ledger, and binds nobody else. That it trained so, no message can show.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.privacy.accounting import SampledGaussian
from fedvlm_secure.privacy.ledger import Release
from fedvlm_secure.secagg.envelope import Expected, seal
from fedvlm_secure.secagg.plan import RUN_BYTES
from fedvlm_secure.secagg.session import SERVER, ClientId

PHASE = "attestation"  # no phase of a protocol: nothing else signs under it

Double = Annotated[bytes, 8]  # big-endian; canonical messages hold no floats


@dataclass(frozen=True, slots=True)
class Trained:
    """One charged training: a further one of the same round, after an upload that was answered, is another.

    Attributes:
        noise, rate: noise multiplier and sample rate, doubles.
    """

    round: int
    tries: int
    noise: Double
    rate: Double
    steps: int

    @property
    def event(self) -> SampledGaussian:
        """What was spent; raises :class:`MisuseError` if it is no such mechanism."""
        return SampledGaussian(_number(self.noise), _number(self.rate), self.steps)


@dataclass(frozen=True, slots=True)
class Attestation:
    """All that a hospital's ledger has charged for DP-SGD in one run.

    Attributes:
        run: the run's name, as in its plans.
        unit: what the guarantee is about at this hospital.
        clip: the largest L2 norm of a unit's gradient, a double.
    """

    run: Annotated[bytes, RUN_BYTES]
    unit: str
    clip: Double
    trained: tuple[Trained, ...]

    @property
    def clip_norm(self) -> float:
        """:attr:`clip` as a number."""
        return _number(self.clip)


def attest(
    identity: Identity, name: ClientId, plan: bytes, run: bytes, unit: str, clip_norm: float, spent: Iterable[Release]
) -> bytes:
    """The signed attestation of hospital ``name``, an envelope for the server; ``plan`` is a hash of one of the run's.

    Raises:
        MisuseError: one of ``spent`` is no training with DP-SGD, or has another unit.
    """
    trained = []
    for release in spent:
        if not isinstance(release.event, SampledGaussian) or release.unit != unit:
            raise MisuseError(f"round {release.round} was not charged as steps of DP-SGD per {unit}")
        noise, rate = struct.pack(">d", release.event.noise_multiplier), struct.pack(">d", release.event.sample_rate)
        trained.append(Trained(release.round, release.tries, noise, rate, release.event.steps))
    said = Attestation(run, unit, struct.pack(">d", clip_norm), tuple(trained))
    return seal(identity, PHASE, plan, name, SERVER, said)


def read_attestation(envelope: bytes, name: ClientId, key: bytes, run: bytes) -> Attestation:
    """What ``name`` has attested about ``run``.

    Raises:
        ProtocolError: it is not signed by ``key``, not in due form, or about another run.
    """
    expected = Expected(PHASE, name, SERVER, key, None, None)
    said = expected.open(envelope, Attestation)
    if said.run != run:
        raise expected.fault("A-13", "attests another run")
    return said


def _number(double: bytes) -> float:
    number: float = struct.unpack(">d", double)[0]
    return number
