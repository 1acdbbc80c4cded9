"""Ed25519 keys under which anyone can sign: a forger who holds no secret succeeds, and the check finds each of them."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.signing import Identity, SignatureError, check_public, verify

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19
D = -121665 * pow(121666, -1, PRIME)

# All y of a point whose order divides 8, canonical or not (the last two), with either sign of x.
ORDER_8 = int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little")
LOW_ORDER = [
    (y + sign * 2**255).to_bytes(32, "little")
    for y in (0, 1, ORDER_8, PRIME - ORDER_8, PRIME - 1, PRIME, PRIME + 1)
    for sign in (0, 1)
]


def forged(seed: int) -> bytes:
    """R = rB, S = r for a known r: right whenever the challenge times the public key is the neutral point."""
    seed_bytes = bytes([seed]) * 32
    scalar = bytearray(hashlib.sha512(seed_bytes).digest()[:32])
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    point = Ed25519PrivateKey.from_private_bytes(seed_bytes).public_key().public_bytes_raw()
    return point + (int.from_bytes(scalar, "little") % GROUP_ORDER).to_bytes(32, "little")


def accepts_a_forgery(public: bytes) -> bool:
    for seed in range(200):  # one in eight succeeds under a key of order 8
        try:
            verify(public, "test", b"anything", forged(seed))
        except SignatureError:
            continue
        return True
    return False


@pytest.mark.parametrize("public", LOW_ORDER, ids=bytes.hex)
def test_a_low_order_key_is_refused_and_would_be_forged_under(public: bytes) -> None:
    assert accepts_a_forgery(public)
    with pytest.raises(SignatureError, match="anyone can sign"):
        check_public(public)


def order_divides_8(y: int) -> bool:
    """Three doublings on the twisted Edwards curve, of which only y is needed, lead to the neutral point."""
    for _ in range(3):
        y2 = y * y % PRIME
        x2 = (y2 - 1) * pow(D * y2 + 1, -1, PRIME) % PRIME
        y = (y2 + x2) * pow(1 - D * x2 * y2, -1, PRIME) % PRIME
    return y == 1


def test_exactly_the_low_order_keys_are_refused() -> None:
    for y in range(2, 300):
        assert not order_divides_8(y)
        check_public(y.to_bytes(32, "little"))
    for public in LOW_ORDER:
        assert order_divides_8(int.from_bytes(public, "little") % 2**255)


def test_honest_keys_are_accepted_and_forged_under_by_nobody() -> None:
    public = Identity(Secret(bytes(32))).public
    check_public(public)
    assert not accepts_a_forgery(public)
