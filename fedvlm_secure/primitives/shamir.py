"""Shamir's secret sharing of 32-byte secrets over the field of p = 2^256 + 297, the least prime above 2^256.

The prime exceeds every 32-byte value, so no secret is rejected or reduced. Coefficients are uniform over the whole
field, zero included: excluding zero from the leading one would let t - 1 shares rule out one candidate secret.
"""

from collections.abc import Mapping, Sequence

from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.secret import SECRET_BYTES, Secret

PRIME = (1 << 256) + 297
SHARE_BYTES = 33


class ShareError(ValueError):
    """Shares are malformed, or do not combine to a 32-byte secret."""


def split(secret: Secret, threshold: int, points: Sequence[int]) -> dict[int, Secret]:
    """One 33-byte share for each point; any ``threshold`` of them recover ``secret``, fewer say nothing about it.

    Raises:
        ValueError: a threshold outside 1..len(points), repeated points, or points outside 1..2^32-1.
    """
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} with {len(points)} points")
    if len(set(points)) != len(points) or not all(1 <= point < 1 << 32 for point in points):
        raise ValueError("points must be distinct and within 1..2^32-1")
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    # Highest degree first, for Horner's rule; the secret is the constant term.
    coefficients = [_uniform() for _ in range(threshold - 1)] + [int.from_bytes(secret.reveal())]
    return {point: Secret(_evaluate(coefficients, point).to_bytes(SHARE_BYTES)) for point in points}


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Lagrange's weights at zero for ``points``: computed once where many secrets share their points."""
    weights = []
    for point in points:
        numerator = denominator = 1
        for other in points:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return weights


def combine(shares: Mapping[int, Secret], weights: Sequence[int] | None = None) -> Secret:
    """The secret of which ``shares`` (point to share) are a threshold's worth.

    Args:
        weights: :func:`weights_at_zero` of the points in the mapping's order, if already known.

    Raises:
        ShareError: a share is malformed or the result is no 32-byte value. Wrong shares may also give a wrong
            secret: the caller compares with a commitment.
    """
    if not shares or not all(1 <= point < 1 << 32 for point in shares):
        raise ShareError("shares need points within 1..2^32-1")
    weights = weights_at_zero(list(shares)) if weights is None else weights
    value = 0
    for weight, share in zip(weights, shares.values(), strict=True):
        value = (value + weight * _parse(share)) % PRIME
    if value >> 256:
        raise ShareError("the shares do not belong together")
    return Secret(value.to_bytes(SECRET_BYTES))


def _parse(share: Secret) -> int:
    value = int.from_bytes(share.reveal())
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ShareError("malformed share")
    return value


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value


def _uniform() -> int:
    """Uniform over the field: 257 bits, rejected while not below p (about every second draw)."""
    while True:
        value = int.from_bytes(entropy.random_bytes(SHARE_BYTES)) & ((1 << 257) - 1)
        if value < PRIME:
            return value
