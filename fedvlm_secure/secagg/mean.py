"""``secure_mean``: a whole aggregation in this process, on plain arrays, through the same sessions as a real round."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.encrypted.parameters import CKKS
from fedvlm_secure.secagg.plan import RUN_BYTES, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import simulated
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import ClientId, ClientSession, SealedSum, ServerSession
from fedvlm_secure.secagg.transcript import Transcript


@dataclass(frozen=True, slots=True)
class SecureMean:
    """The weighted mean of the survivors' vectors, and what the server saw on the way.

    Attributes:
        mean: float64 [d].
        total_weight: the survivors' weights, summed exactly.
        survivors: indices into the vectors that were given.
        transcript: signed envelopes and sizes, for auditors.
        timings: seconds spent in each phase, by ``"server"`` and by all ``"clients"`` together.
    """

    mean: NDArray[np.float64]
    total_weight: int
    survivors: tuple[int, ...]
    transcript: Transcript
    timings: dict[str, dict[str, float]]


def secure_mean(
    vectors: Sequence[ArrayLike],
    weights: Sequence[int] | None = None,
    protocol: str = "pairwise",
    dropouts: Mapping[int, str] | None = None,
    *,
    clip_norm: float | None = None,
    value_bits: int = 20,
    weight_max: int = 4096,
    noise_multiplier: float = 0.0,
    **params: Any,
) -> SecureMean:
    """The weighted mean of ``vectors``, aggregated so that the server sees the sum only.

    Args:
        vectors: at least three arrays [d], float32 or float64, finite.
        weights: one integer from 1 to ``weight_max`` a vector; all 1 if None.
        protocol: ``"pairwise"``, ``"bfv"`` or ``"ckks"`` (one key that all clients hold and the server does not), or
            ``"plain"`` (no protection at all).
        dropouts: client index to the phase from which on that client is silent.
        clip_norm: longer vectors are scaled down to this L2 norm. None takes the largest norm among the vectors: a
            convenience of simulation, since in the field nobody knows that number.
        value_bits, weight_max: see :class:`~fedvlm_secure.encoding.layout.VectorLayout`; under ``"ckks"``, whose noise
            is relative to ``weight_max``, that is the largest weight given, if it is smaller.
        noise_multiplier: z: every client adds a share of noise, such that ``min_survivors`` - max(``max_corrupt``, 1)
            shares have a deviation of z·``clip_norm`` together, in every coordinate of the *sum*
            (:mod:`fedvlm_secure.encoding.noisy`). All weights are then 1, and ``clip_norm`` has to be given. Under
            ``"pairwise"`` and ``"bfv"``.
        **params: ``threat_model``, ``max_corrupt``, ``threshold``, ``min_survivors``, ``rounding`` of the plan.

    Raises:
        MisuseError: an argument is wrong; the text says which and what to change.
        RoundAbortedError: too few clients remain after the dropouts.
    """
    arrays = _arrays(vectors)
    entry = lookup(protocol)
    given = _weights(weights, len(arrays))
    if noise_multiplier:
        if weights is not None or clip_norm is None:
            raise MisuseError("noise needs a clip_norm that does not follow from the vectors, and no weights")
        weight_max = 1
    if protocol == CKKS:
        weight_max = min(weight_max, max(given, default=1))
    layout = VectorLayout(len(arrays[0]), (Counter("weight", weight_max),), value_bits, weight_max)
    if clip_norm is None:
        clip_norm = max(float(np.linalg.norm(array.astype(np.float64))) for array in arrays) or 1.0
    names = [f"client-{index:04d}" for index in range(len(arrays))]
    silent = {names[index]: phase for index, phase in _dropouts(dropouts or {}, len(arrays), entry.phases).items()}
    identities, server_identity = {name: Identity.generate() for name in names}, Identity.generate()
    roster = simulated(server_identity, identities)
    plan = propose(
        run=entropy.random_bytes(RUN_BYTES),
        round=1,
        attempt=1,
        cohort=tuple(names),
        layout=layout,
        clip_norm=clip_norm,
        roster=roster.hash,
        model=digest("no-model"),
        protocol=protocol,
        noise_multiplier=noise_multiplier,
        **params,
    )
    policy = Policy(plan.threat_model, plan.max_corrupt, min(len(names), 3), plan.min_survivors, (protocol,))
    clock = _Clock()
    server = _Timed(entry.server(plan, server_identity, roster), clock, "server")
    clients = {
        name: _Timed(
            entry.client(Party(name, identities[name], roster, policy, plan.model), Update(array, {"weight": weight})),
            clock,
            "clients",
        )
        for name, array, weight in zip(names, arrays, given, strict=True)
    }

    def alive(name: ClientId, phase: str) -> bool:
        clock.phase = phase
        return name not in silent or entry.phases.index(phase) < entry.phases.index(silent[name])

    total = run_round(cast(ServerSession, server), cast(Mapping[ClientId, ClientSession], clients), alive)
    if isinstance(total, SealedSum):
        total = next(session.sum for session in clients.values() if session.sum is not None)
    decoded = plan.codec.decode(total.total)
    return SecureMean(
        mean=decoded.mean,
        total_weight=decoded.counters["weight"],
        survivors=tuple(names.index(name) for name in total.survivors),
        transcript=server.transcript,
        timings=clock.seconds,
    )


def _arrays(vectors: Sequence[ArrayLike]) -> list[NDArray[np.floating]]:
    arrays = [np.asarray(vector) for vector in vectors]
    if len(arrays) < 3:
        raise MisuseError(f"{len(arrays)} vectors; at least 3 are needed: of two, each reads the other off the mean")
    for index, array in enumerate(arrays):
        if array.dtype not in (np.float32, np.float64):
            raise MisuseError(f"vectors[{index}] has dtype {array.dtype}; it must be float32 or float64")
        if not np.isfinite(array).all():
            raise MisuseError(f"vectors[{index}] holds a NaN or an infinity")
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1 or not len(arrays[0]):
        raise MisuseError("vectors must be one-dimensional, not empty, and all of one length")
    return arrays


def _weights(weights: Sequence[int] | None, count: int) -> list[int]:
    if weights is None:
        return [1] * count
    if len(weights) != count:
        raise MisuseError(f"{len(weights)} weights for {count} vectors; give one weight a vector")
    return list(weights)


def _dropouts(dropouts: Mapping[int, str], count: int, phases: Sequence[str]) -> Mapping[int, str]:
    for index, phase in dropouts.items():
        if index not in range(count) or phase not in phases:
            raise MisuseError(
                f"dropouts[{index!r}] is {phase!r}; "
                f"give a client index below {count} and one of the phases {', '.join(phases)}"
            )
    return dropouts


@dataclass
class _Clock:
    """Seconds by phase and side. Sessions read no clock, so their caller does."""

    phase: str = ""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, phase: str, side: str, since: float) -> None:
        times = self.seconds.setdefault(phase, {"server": 0.0, "clients": 0.0})
        times[side] += time.perf_counter() - since


class _Timed:
    """A session whose methods' running time is counted on its side."""

    def __init__(self, session: Any, clock: _Clock, side: str) -> None:
        self._session, self._clock, self._side = session, clock, side

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._session, name)
        if not callable(attribute):
            return attribute

        def timed(*args: Any) -> Any:
            phase, since = self._session.phase if self._side == "server" else self._clock.phase, time.perf_counter()
            result = attribute(*args)
            if isinstance(result, Iterator):
                return self._each(result, phase)
            self._clock.add(phase, self._side, since)
            return result

        return timed

    def _each(self, results: Iterator[Any], phase: str) -> Iterator[Any]:
        while True:
            since = time.perf_counter()
            result = next(results, None)
            self._clock.add(phase, self._side, since)
            if result is None:
                return
            yield result
