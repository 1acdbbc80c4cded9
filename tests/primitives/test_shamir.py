import secrets
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm_secure.primitives import entropy, shamir
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import PRIME, SHARE_BYTES, ShareError, combine, split, weights_at_zero


def probably_prime(number: int) -> bool:
    """Miller-Rabin with 64 random bases: a composite passes with odds below 2^-128."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(64):
        x = pow(secrets.randbelow(number - 3) + 2, odd, number)
        if x not in (1, number - 1) and all((x := x * x % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_prime_is_the_least_above_2_to_the_256():
    assert probably_prime(PRIME)
    assert not any(probably_prime(number) for number in range((1 << 256) + 1, PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.data())
def test_any_t_shares_recover(value, threshold, data):
    points = data.draw(st.lists(st.integers(1, (1 << 32) - 1), min_size=threshold, max_size=9, unique=True))
    shares = split(Secret(value), threshold, points)
    chosen = data.draw(st.permutations(points))[:threshold]
    subset = {point: shares[point] for point in chosen}
    assert combine(subset) == Secret(value) == combine(subset, weights_at_zero(chosen))
    assert all(len(share) == SHARE_BYTES for share in shares.values())


def test_every_subset_of_t_recovers_and_fewer_do_not():
    secret = Secret.generate()
    shares = split(secret, 4, range(1, 8))
    for size in range(1, 8):
        for chosen in combinations(shares, size):
            try:
                found = combine({point: shares[point] for point in chosen}) == secret
            except ShareError:
                found = False
            assert found == (size >= 4)


def test_coefficients_are_uniform_over_the_field(monkeypatch):
    """Zero and p - 1 are possible; p and above are drawn again, not reduced."""
    draws = iter([PRIME, (1 << 257) - 1, 0, PRIME - 1, PRIME + 5, 7])
    monkeypatch.setattr(entropy, "random_bytes", lambda count: next(draws).to_bytes(count))
    assert [shamir._uniform() for _ in range(3)] == [0, PRIME - 1, 7]


def test_a_zero_leading_coefficient_is_kept(monkeypatch):
    draws = iter([0, 5])
    monkeypatch.setattr(entropy, "random_bytes", lambda count: next(draws).to_bytes(count))
    shares = split(Secret((9).to_bytes(32)), 3, [1, 2, 3])
    assert [int.from_bytes(share.reveal()) for share in shares.values()] == [14, 19, 24]


@pytest.mark.parametrize(
    ("threshold", "points"), [(0, [1, 2]), (3, [1, 2]), (2, [1, 1]), (2, [0, 1]), (2, [1, 1 << 32]), (1, [])]
)
def test_splitting_refuses(threshold, points):
    with pytest.raises(ValueError, match=r"threshold|points"):
        split(Secret(bytes(32)), threshold, points)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_32_byte_secrets_are_shared(size):
    with pytest.raises(ValueError, match="32 bytes"):
        split(Secret(bytes(size)), 2, [1, 2])


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {0: Secret(bytes(SHARE_BYTES))},
        {1: Secret(bytes(32))},
        {1: Secret(PRIME.to_bytes(SHARE_BYTES))},
        {1: Secret(b"\xff" * SHARE_BYTES)},
        {1: Secret((1 << 256).to_bytes(SHARE_BYTES))},  # a value of the field that is no 32-byte secret
    ],
)
def test_combining_refuses(shares):
    with pytest.raises(ShareError):
        combine(shares)
