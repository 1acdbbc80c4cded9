"""Canary clients: hospitals whose update is a random direction, looked for in the noisy sums (Andrew et al. 2023).

After «One-shot empirical privacy estimation for federated learning» (arXiv 2302.03098), for noise inside the sum. A
canary's update is a random direction, ten clip norms long. How far the sums of the run, added up, lie in its direction
is held against what chance gives a direction that nobody had, which is known exactly (the cosine); and beside it, the
inner product is held against that of directions which were tried.

The sums come out of the sessions of a real round: plan, clipping, rotation, rounding, noise, masks or ciphertexts,
decoding. Only two things are arranged, in the observer's favour as far as the guarantee goes: no more clients answer
than a sum must have, and those whom the plan counts as colluders add no noise, since they would subtract it. A function
of the encoding is replaced for that while a round runs, so one process must not aggregate anything else meanwhile.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.audit.score_bounds import cosine_bound, normal_bound, normal_estimate
from fedvlm_secure.encoding import codec
from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.noisy import add_noise, noise_shares
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.floors import policy_of
from fedvlm_secure.federation.rounds import noisy_sums, proposal
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.noise import NoiseSource
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.plan import RUN_BYTES, Plan
from fedvlm_secure.secagg.policy import Party
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import simulated
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import SealedSum

Floats = NDArray[np.float64]

_LENGTH = 10.0  # a canary's update before clipping, in clip norms
_PLACE = "add_noise"


@dataclass(frozen=True, slots=True)
class ClientGame:
    """One experiment, all of it fixed before it is run.

    Attributes:
        settings: of the run; ``privacy.mode`` is ``"client"``, ``rounds`` the sums that a canary takes part in.
        cohort: the hospitals' names, sorted.
        size: how many numbers are shared, d.
        canaries: how many take part at least: a run has as many as there are shares of noise that are counted on.
        unseen: how many directions are tried that no client had.
    """

    settings: Settings
    cohort: tuple[str, ...]
    size: int
    canaries: int = 100
    unseen: int = 2500

    @property
    def runs(self) -> int:
        """How often the whole run is played, each time with other canaries."""
        return -(-self.canaries // self.shares)

    @property
    def sums(self) -> int:
        """Noisy sums altogether."""
        return self.runs * self.settings.rounds

    @property
    def shares(self) -> int:
        """h, the shares of noise that are counted on."""
        return noisy_sums(self.settings, self.cohort, self.size).shares

    @property
    def noise_multiplier(self) -> float:
        """z, of a sum."""
        return noisy_sums(self.settings, self.cohort, self.size).noise_multiplier


@dataclass(frozen=True, slots=True)
class ClientScores:
    """What a run's sums, added up, say of directions.

    Attributes:
        present, absent: inner products in clip norms, of canaries that took part and of directions that nobody had.
        cosines: of those that took part.
        size: d.
    """

    present: Floats
    absent: Floats
    cosines: Floats
    size: int

    def bound(self, delta: float, confidence: float) -> float:
        """ε refuted; see :func:`~fedvlm_secure.audit.score_bounds.cosine_bound`."""
        return cosine_bound(self.cosines, self.size, delta, confidence)

    def normal_bound(self, delta: float, confidence: float) -> float:
        """ε refuted if scores are normal; see :func:`~fedvlm_secure.audit.score_bounds.normal_bound`."""
        return normal_bound(self.present, self.absent, delta, confidence)

    def estimate(self, delta: float) -> float:
        """ε between the two fitted normals: an estimate, never a bound."""
        return normal_estimate(self.present, self.absent, delta)


def play(game: ClientGame, *, noise: float = 1.0, on_sum: Callable[[], None] | None = None) -> ClientScores:
    """Aggregate canaries, and score them.

    Args:
        noise: its deviation, as a share of what it should be; anything but 1 is a mistake made on purpose.
        on_sum: called after each sum.

    Raises:
        MisuseError: the settings have no noise inside the sum, or cannot be aggregated; as
            :func:`~fedvlm_secure.federation.rounds.proposal`.
    """
    if game.settings.privacy.mode != "client" or not game.size:
        raise MisuseError('canary clients are for privacy.mode = "client", where something is shared')
    sums, source = _Sums(game.settings, game.cohort, game.size, noise), NoiseSource()
    present: list[float] = []
    absent: list[float] = []
    cosines: list[float] = []
    for run in range(game.runs):
        directions = [_direction(source, game.size) for _ in sums.honest]
        total = np.zeros(game.size)
        for round_index in range(1, game.settings.rounds + 1):
            total += sums.released(round_index, directions)
            if on_sum is not None:
                on_sum()
        total /= game.settings.aggregation.clip_norm
        played = [float(direction @ total) for direction in directions]
        present += played
        cosines += [score / math.sqrt(float(total @ total)) for score in played]
        tried = (run + 1) * game.unseen // game.runs - len(absent)
        absent += [float(_direction(source, game.size) @ total) for _ in range(tried)]
    return ClientScores(np.array(present), np.array(absent), np.array(cosines), game.size)


class _Sums:
    """Rounds of the settings over and over, with the same parties.

    Attributes:
        colluding: clients whose noise the observer knows; they answer with zeros and add none.
        honest: the others in a sum, sorted.
    """

    def __init__(self, settings: Settings, cohort: tuple[str, ...], size: int, noise: float) -> None:
        self._settings, self._cohort, self._size, self._noise = settings, cohort, size, Fraction(noise)
        self._server = Identity.generate()
        self._identities = {name: Identity.generate() for name in cohort}
        self._roster = simulated(self._server, self._identities)
        self._policy = policy_of(settings, noisy_sums(settings, cohort, size))
        plan = self._plan(1)
        alive = cohort[: plan.min_survivors]
        shares = noise_shares(plan.min_survivors, plan.max_corrupt)
        self.colluding, self.honest = alive[:-shares], alive[-shares:]

    def released(self, round_index: int, directions: list[Floats]) -> Floats:
        """The decoded sum of the clients' vectors, float64 [d], each honest client's being a canary's."""
        plan = self._plan(round_index)
        entry, speaker = lookup(plan.protocol), _Speaker()
        values = dict.fromkeys(self.colluding, np.zeros(self._size))
        length = _LENGTH * self._settings.aggregation.clip_norm
        values |= {name: length * direction for name, direction in zip(self.honest, directions, strict=True)}
        clients: dict[str, Any] = {}
        for name, vector in values.items():
            party = Party(name, self._identities[name], self._roster, self._policy, plan.model)
            clients[name] = _Named(entry.client(party, Update(vector, {"weight": 1})), name, speaker)
        server = entry.server(plan, self._server, self._roster)
        with _noise_replaced(speaker, dict.fromkeys(self.honest, self._noise)):
            total = run_round(server, clients, lambda name, phase: name in values)
        if isinstance(total, SealedSum):
            total = next(client.sum for client in clients.values() if client.sum is not None)
        decoded = plan.codec.decode(total.total)
        return decoded.mean * decoded.counters["weight"]

    def _plan(self, round_index: int) -> Plan:
        return proposal(
            self._settings,
            run=entropy.random_bytes(RUN_BYTES),
            place=(round_index, 1),
            cohort=self._cohort,
            size=self._size,
            roster=self._roster.hash,
            model=digest("no-model"),
        )


@dataclass(slots=True)
class _Speaker:
    """Whose session answers right now."""

    name: str = ""


@dataclass(slots=True)
class _Named:
    """A client's session that says whose it is before it answers."""

    session: Any
    name: str
    speaker: _Speaker

    def reply(self, request: bytes) -> bytes:
        self.speaker.name = self.name
        answer: bytes = self.session.reply(request)
        return answer

    @property
    def sum(self) -> Any:
        return self.session.sum


@contextmanager
def _noise_replaced(speaker: _Speaker, factors: dict[str, Fraction]) -> Iterator[None]:
    """Inside the block the noise of each client has its deviation times the factor given; nobody else adds any."""

    def scaled(integers: NDArray[np.int64], variance: Fraction) -> None:
        if factor := factors.get(speaker.name, Fraction(0)):
            add_noise(integers, variance * factor**2)

    original = getattr(codec, _PLACE)
    setattr(codec, _PLACE, scaled)
    try:
        yield
    finally:
        setattr(codec, _PLACE, original)


def _direction(source: NoiseSource, size: int) -> Floats:
    """Uniform on the unit sphere, float64 [size]."""
    drawn = source.normal(size)
    return drawn / math.sqrt(float(drawn @ drawn))
