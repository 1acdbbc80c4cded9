"""What the two schemes run with, fixed by the protocol and never negotiated (SPEC, section 3).

The server only adds. There is no multiplication, no rotation and no public key, so nothing is published but ciphertexts
under one prime of 54 bits. Degree 4,096 allows 109 bits (classical) or 101 (quantum) at 128-bit security in the
Homomorphic Encryption Standard (Albrecht et al. 2018, table 1, ternary secret).
"""

from dataclasses import dataclass

from fedvlm_secure.encoding.layout import CHECKS, VectorLayout
from fedvlm_secure.errors import MisuseError

BFV = "bfv"
CKKS = "ckks"
SHARED_KEY = (BFV, CKKS)  # every client holds the key

DEGREE = 4096
COEFFICIENT_BITS = 54
SLOTS = DEGREE  # BFV has as many integer slots; CKKS half as many complex ones, which are as many reals

# The largest prime below 2^38 that is 1 mod 2·DEGREE. With a bit more, sums of over 762 clients may not decrypt.
PLAIN_MODULUS = 274_877_816_833
HALF_MODULUS = (PLAIN_MODULUS - 1) // 2

NOISE_DEVIATION = 3.24  # of a fresh ciphertext's error, a coefficient: √(21/2), SEAL's centred binomial
CKKS_LARGEST_COHORT = 1000  # every client has a slot of its own in every ciphertext
CKKS_LARGEST_WEIGHT = 1 << 16  # noise is relative to the largest weight; beyond, light clients would drown in it

# Whether a client accepts a sum tells a lying server about a bit of the key (SPEC, section 9, says what more it may be
# under ckks). All members together answer so many times under one key: 2,048 bits know at most 1,293 of its 4,096
# ternary coefficients, and the standard asks for 2,048 unknown ones at 54 bits (E-5.6).
READINGS = 2048
LARGEST_ROSTER = READINGS // 2
LARGEST_EPOCH = (1 << 32) - 1
LIMB_BITS = 8  # of a counter under ckks: a step of a limb lies far above what a tag tolerates, in any cohort


@dataclass(frozen=True, slots=True)
class Packing:
    """How BFV puts the update's coordinates into slots: ``per_slot`` of them side by side, ``width`` bits each."""

    width: int
    per_slot: int


def packing(layout: VectorLayout, clients: int, tail: int = 0) -> Packing:
    """As many coordinates a slot as the sum over ``clients`` leaves room for; counters and checks have slots alone.

    With noise, ``tail`` being how large its sum may become, a coordinate has a slot to itself, and is reduced modulo t:
    from a slot that several share, the wraps of one would show in the next.

    Raises:
        MisuseError: not even one fits.
    """
    largest = layout.largest_sum(clients, tail)
    if largest > HALF_MODULUS:
        raise MisuseError(
            f"sums of {clients} clients reach {largest}, and bfv holds up to {HALF_MODULUS}; "
            f"lower {'the noise, ' if tail else ''}value_bits, weight_max or a counter's bound, or use pairwise"
        )
    if tail:
        return Packing(PLAIN_MODULUS.bit_length(), 1)
    largest = clients * (layout.weight_max * layout.levels + 1)
    width, per_slot = largest.bit_length() + 1, 1
    while largest * _ones(width, per_slot + 1) <= HALF_MODULUS:
        per_slot += 1
    return Packing(width, per_slot)


def scale_bits(clients: int) -> int:
    """CKKS's scale: the sum of ``clients`` polynomials with coefficients up to 8 scales stays below q/2 = 2^53."""
    return 49 - clients.bit_length()


def check_fits(protocol: str, layout: VectorLayout, clients: int, tail: int = 0) -> None:
    """Headroom, before anything is encrypted, for a sum with noise up to ``tail``; raises :class:`MisuseError`."""
    if protocol in SHARED_KEY and clients > LARGEST_ROSTER:
        raise MisuseError(f"{protocol} takes up to {LARGEST_ROSTER} clients, not {clients}; use pairwise")
    if protocol == BFV:
        packing(layout, clients, tail)
    if protocol != CKKS:
        return
    if clients > CKKS_LARGEST_COHORT:
        raise MisuseError(f"ckks takes up to {CKKS_LARGEST_COHORT} clients, not {clients}; use bfv or pairwise")
    if layout.weight_max > CKKS_LARGEST_WEIGHT:
        raise MisuseError(f"weight_max is {layout.weight_max}; ckks takes up to {CKKS_LARGEST_WEIGHT}")
    counted = clients * max(counter.bound for counter in layout.counters)
    if counted > 1 << 53:
        raise MisuseError(f"a counter's sum reaches {counted}, beyond the whole numbers of a double; lower its bound")


def readings_allowed(members: int) -> int:
    """How many sums each member of the roster may check under one key."""
    return READINGS // members


def tail_size(layout: VectorLayout) -> int:
    """Coordinates behind the update."""
    return len(layout.counters) + CHECKS


def _ones(width: int, count: int) -> int:
    """1 + 2^width + … with ``count`` terms."""
    return ((1 << (width * count)) - 1) // ((1 << width) - 1)
