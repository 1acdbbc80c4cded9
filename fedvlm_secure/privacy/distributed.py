"""What client-level noise inside the sum guarantees: Rényi differential privacy of the distributed discrete Gaussian.

Kairouz, Liu and Steinke 2021 (arXiv 2102.06387), for the encoding of :mod:`fedvlm_secure.encoding.noisy`. Neighbours:
one client's vector, or zeros in its place. A sum of discrete Gaussians is not quite one; τ bounds the difference, and
vanishes as a share's deviation exceeds one step by a small factor.

Every answered attempt is a release and is charged. Nothing here counts on chance about who takes part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fedvlm_secure.encoding.noisy import noise_shares, squared_norm_bound
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.secagg.plan import Plan

# Orders of Rényi divergence, closer than any use needs: a coarser list would only make a bound larger.
ORDERS: tuple[float, ...] = tuple(1 + 10 ** (exponent / 50) for exponent in range(-100, 301))

LARGEST_NOISE_MULTIPLIER = 1e6


@dataclass(frozen=True)
class DistributedGaussian:
    """Sums that clients noised together, as a participant knows them from its plans.

    Attributes:
        noise_multiplier: z, the deviation of the counted shares' noise together, in clip norms; above 0.
        clip_norm: c, the L2 norm to which vectors are clipped.
        dimension: d, the length of the encoded vector, padding included if there is any.
        step: the float that one integer stands for.
        min_survivors, max_corrupt: fewest clients in a sum, and how many of them may pool what they know.
        answered: how many attempts, over all rounds, were answered.

    Raises:
        MisuseError: a number without meaning.
    """

    noise_multiplier: float
    clip_norm: float
    dimension: int
    step: float
    min_survivors: int
    max_corrupt: int
    answered: int = 1

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip_norm", "step"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise MisuseError(f"{name} is {value}; it must be a positive finite number")
        if self.dimension < 1 or self.answered < 0 or self.max_corrupt < 0:
            raise MisuseError("dimension must be 1 or more; answered and max_corrupt must not be negative")
        if self.shares < 1:
            raise MisuseError(f"of {self.min_survivors} survivors none adds noise that colluders do not know")

    @classmethod
    def of(cls, plan: Plan, answered: int = 1) -> "DistributedGaussian":
        """What ``answered`` attempts under plans like ``plan`` release."""
        codec = plan.codec
        return cls(
            plan.noise_multiplier,
            codec.clip_norm,
            plan.layout.update,
            codec.step,
            plan.min_survivors,
            plan.max_corrupt,
            answered,
        )

    @property
    def shares(self) -> int:
        """h, the shares of noise that are counted on."""
        return noise_shares(self.min_survivors, self.max_corrupt)

    @cached_property
    def share_deviation(self) -> float:
        """Of one client's discrete Gaussian, in steps."""
        return self.noise_multiplier * self.clip_norm / math.sqrt(self.shares) / self.step

    @cached_property
    def tau(self) -> float:
        """τ = 10·Σ_{j<h} exp(-2π²σ²·j/(j+1)), with σ a share's deviation in steps."""
        exponent = -2 * math.pi**2 * self.share_deviation**2
        return 10 * math.fsum(math.exp(exponent * j / (j + 1)) for j in range(1, self.shares))

    @cached_property
    def sensitivities(self) -> tuple[float, float]:
        """(Δ₂, Δ₁) of the rounded vectors, in steps: an integer's magnitude is at most its square."""
        squared = squared_norm_bound(self.clip_norm / self.step, self.dimension)
        return math.sqrt(squared), min(math.sqrt(self.dimension * squared), squared)

    def rdp(self, order: float) -> float:
        """ε of Rényi differential privacy at ``order`` > 1, of all answered attempts together."""
        (two, one), size, tau = self.sensitivities, self.dimension, self.tau
        deviation = self.share_deviation * math.sqrt(self.shares)
        ratio = two / deviation
        return (
            self.answered
            * (order / 2)
            * min(
                ratio**2 + 2 * tau * size / order,
                ratio**2 + 2 * one * tau / deviation + tau**2 * size,
                (ratio + math.sqrt(size) * tau) ** 2,
            )
        )

    def epsilon(self, delta: float, orders: Sequence[float] = ORDERS) -> float:
        """ε of (ε, δ)-differential privacy of all answered attempts together; raises :class:`MisuseError`."""
        return to_epsilon([self.rdp(order) for order in orders], delta, orders)


def to_epsilon(rdp: Sequence[float], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """The least ε that follows from Rényi ε at ``orders`` (Canonne, Kamath and Steinke 2020, arXiv 2004.00010).

    Any choice of orders gives an upper bound; releases of several kinds are added up, order by order, before.

    Raises:
        MisuseError: δ is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise MisuseError(f"delta is {delta}; it must be between 0 and 1")
    found = (
        value + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, value in zip(orders, rdp, strict=True)
    )
    return max(0.0, min(found))


def noise_multiplier(target_epsilon: float, delta: float, like: DistributedGaussian) -> float:
    """The least z, rounded up to four decimals, with which ``like`` keeps within ``target_epsilon``.

    Args:
        like: everything but its own noise multiplier; ``answered`` being the attempts of the whole run.

    Raises:
        MisuseError: the target is not positive, or no useful noise reaches it.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise MisuseError(f"a target epsilon of {target_epsilon} is no budget; give a positive number")

    def enough(units: int) -> bool:
        return replace(like, noise_multiplier=units / 1e4).epsilon(delta) <= target_epsilon

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if high > LARGEST_NOISE_MULTIPLIER * 1e4:
            raise MisuseError(f"no noise reaches epsilon = {target_epsilon:g} over {like.answered} attempts")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high / 1e4


def scale_for_bits(
    bits: int, *, clients: int, dimension: int, clip_norm: float, noise_multiplier: float, deviations: float = 4.0
) -> float:
    """The paper's choice of the steps a unit for a ring of ``bits`` bits: s = √(2^2b - nk²)/(2k·√(c²n²/d + n·σ_loc²)).

    A sum's coordinate then wraps beyond ``deviations`` = k of its own deviations. This project's encoding goes the
    other way about, from the step to the ring; this is for comparison with the literature.

    Args:
        clients: n, all of which share the noise: σ_loc = z·c/√n.

    Raises:
        MisuseError: the ring is too small for so many clients.
    """
    room = 4.0**bits - clients * deviations**2
    if room <= 0:
        raise MisuseError(f"a ring of {bits} bits is too small for {clients} clients")
    spread = math.sqrt((clip_norm * clients) ** 2 / dimension + (noise_multiplier * clip_norm) ** 2)
    return math.sqrt(room) / (2 * deviations * spread)
