"""Sums of very many fresh ciphertexts at the edge of a slot: exact under BFV, within the tolerance under CKKS."""

import numpy as np
import pytest
from encrypted_kit import EncryptedFederation

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted.ckks import DEVIATIONS, CkksSheet
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, HALF_MODULUS, SLOTS, scale_bits
from fedvlm_secure.secagg.encrypted.scheme import Key, Scheme

LARGEST_EVER = 10_000  # clients that BFV's noise is to bear


def bfv_key() -> tuple[Scheme, Key]:
    scheme = Scheme(BFV)
    return scheme, scheme.key(Secret.generate(64))


def extremes(count: int, random: np.random.Generator) -> np.ndarray:
    """Slots of which ``count`` add up to the edge of what a slot holds, on either side; some random, some zero."""
    slots = random.choice([-1, 1], SLOTS) * (HALF_MODULUS // count)
    slots[: SLOTS // 4] = random.integers(-(HALF_MODULUS // count), HALF_MODULUS // count, SLOTS // 4)
    slots[:8] = 0
    return slots


def budget(key: Key, ciphertext) -> int:
    """Bits between the noise and the message."""
    return key._decryptor.invariant_noise_budget(ciphertext)


def test_bfv_sums_hundreds_of_extreme_ciphertexts_exactly():
    """As many additions as ten thousand clients make, of 300 fresh ciphertexts: their noise adds up, not only its
    variance, so that this is harder than ten thousand fresh ones."""
    scheme, key = bfv_key()
    random, fresh = np.random.default_rng(1), 300
    times = -(-LARGEST_EVER // fresh)
    expected, total = np.zeros(SLOTS, np.int64), None
    for _ in range(fresh):
        slots = extremes(fresh * times, random)
        ciphertext = scheme.load(key.encrypt(slots))
        for _ in range(times):
            if total is None:
                total = scheme.load(key.encrypt(slots))
            else:
                scheme.add(total, ciphertext)
        expected += times * slots
    np.testing.assert_array_equal(key.decrypt(total), expected)
    assert budget(key, total) >= 1


def test_bfv_sums_to_either_edge_of_a_slot_and_not_beyond():
    scheme, key = bfv_key()
    parts = [HALF_MODULUS // 7] * 6 + [HALF_MODULUS - 6 * (HALF_MODULUS // 7)]
    for sign in (1, -1):
        total = scheme.load(key.encrypt(np.full(SLOTS, sign * parts[0], np.int64)))
        for part in parts[1:]:
            scheme.add(total, scheme.load(key.encrypt(np.full(SLOTS, sign * part, np.int64))))
        assert set(key.decrypt(total).tolist()) == {sign * HALF_MODULUS}
        scheme.add(total, scheme.load(key.encrypt(np.full(SLOTS, sign, np.int64))))
        assert set(key.decrypt(total).tolist()) == {-sign * HALF_MODULUS}, "it wraps: hence the headroom"


@pytest.mark.slow
def test_bfv_sums_ten_thousand_fresh_ciphertexts_exactly():
    """Bits of noise budget left: 11 fresh, 8 after 100, 6 after 1,000, 4 after 10,000."""
    scheme, key = bfv_key()
    random = np.random.default_rng(2)
    signs = extremes(LARGEST_EVER, random)
    total, expected = scheme.load(key.encrypt(signs)), signs.copy()
    left = {1: budget(key, total)}
    for count in range(2, LARGEST_EVER + 1):
        slots = np.roll(signs, count)
        slots[count % SLOTS] = random.integers(-(HALF_MODULUS // LARGEST_EVER), HALF_MODULUS // LARGEST_EVER)
        scheme.add(total, scheme.load(key.encrypt(slots)))
        expected += slots
        if count in (100, 1000, LARGEST_EVER):
            left[count] = budget(key, total)
            np.testing.assert_array_equal(key.decrypt(total), expected)
    assert left[LARGEST_EVER] >= 4, left


@pytest.mark.parametrize("clients", [10, 100, 1000])
def test_ckks_noise_is_what_its_tolerances_count_with(clients):
    """The deviation that :meth:`CkksSheet._tolerances` is ten of, measured; so they are neither short nor generous."""
    federation = EncryptedFederation(protocol=CKKS)
    federation.names = tuple(f"c{index:04d}" for index in range(clients))
    sheet = CkksSheet(federation.plan)
    scheme, random = sheet.scheme, np.random.default_rng(clients)
    assert scheme.scale == 2.0 ** scale_bits(clients)
    key = scheme.key(Secret.generate(64))
    total, exact = None, np.zeros(SLOTS)
    for _ in range(clients):
        slots = random.choice([-1.0, 1.0, -0.5, 1e-9, 0.99999], SLOTS)
        ciphertext = scheme.load(key.encrypt(slots))
        exact += slots
        if total is None:
            total = ciphertext
        else:
            scheme.add(total, ciphertext)
    error = key.decrypt(total) - exact
    tolerance, _ = sheet._tolerances(clients)
    assert np.abs(error).max() <= tolerance
    # The deviation of 4,096 normal values is known to 1.1 %.
    assert 0.85 < error.std() / (tolerance / DEVIATIONS) < 1.15
    assert abs(error.mean()) < 6 * error.std() / np.sqrt(SLOTS)


@pytest.mark.parametrize("clients", [10, 100, 1000])
def test_ckks_tags_and_counters_at_their_bounds(clients):
    """Every client at its largest: heaviest weight, counters of 2^30, saturated coordinates. Exact, and tags fit."""
    bounds = tuple(Counter(name, 1 << 30) for name in ("asked", "correct"))
    federation = EncryptedFederation(
        protocol=CKKS, dimension=500, weight_max=4096, value_bits=20, counters=bounds, max_corrupt=0
    )
    federation.names = tuple(f"c{index:04d}" for index in range(clients))
    plan = federation.plan
    sheet, secret, random = CkksSheet(plan), Secret.generate(), np.random.default_rng(clients)
    key = sheet.scheme.key(Secret.generate(64))
    totals: list = []
    weights, asked = [], []
    for number, name in enumerate(plan.cohort):
        weights.append(4096 if number % 3 else int(random.integers(1, 4097)))
        asked.append((1 << 30) - number % 2)
        counters = {"weight": weights[-1], "asked": asked[-1], "correct": int(random.integers(0, 1 << 30))}
        update = Update(1e30 * random.choice([-1.0, 1.0], 500), counters)
        for chunk, slots in enumerate(sheet.fill(update, secret, name)):
            ciphertext = sheet.scheme.load(key.encrypt(slots))
            if chunk == len(totals):
                totals.append(ciphertext)
            else:
                sheet.scheme.add(totals[chunk], ciphertext)
    total = sheet.read((key.decrypt(ciphertext) for ciphertext in totals), secret, plan.cohort)
    counted, participants = plan.codec.counted(total)
    assert participants == clients
    assert (counted["weight"], counted["asked"]) == (sum(weights), sum(asked))


@pytest.mark.parametrize("kind", [BFV, CKKS])
def test_no_two_ciphertexts_share_their_randomness(kind):
    """The key follows from a seed; encryption must not: the difference of two ciphertexts would be readable."""
    scheme = Scheme(kind, 40 if kind == CKKS else 0)
    seed, slots = Secret.generate(64), np.zeros(SLOTS, np.int64 if kind == BFV else np.float64)
    made = []
    for key in (scheme.key(seed), scheme.key(seed)):
        made += [scheme.load(key.encrypt(slots)) for _ in range(4)]
    # Coefficients of both polynomials: none comes back in another ciphertext, but by a chance of 2^-54.
    for index in (0, SLOTS - 1, SLOTS, 2 * SLOTS - 1):
        assert len({ciphertext.dyn_array().at(index) for ciphertext in made}) == len(made)


@pytest.mark.parametrize("kind", [BFV, CKKS])
def test_equal_seeds_give_equal_keys_and_others_do_not(kind):
    seed = Secret.generate(64)
    schemes = [Scheme(kind, 40 if kind == CKKS else 0) for _ in range(2)]
    checks = {scheme.key(seed).check() for scheme in schemes}
    assert len(checks) == 1
    assert schemes[0].key(Secret.generate(64)).check() not in checks
    slots = np.arange(SLOTS) if kind == BFV else np.arange(SLOTS) / SLOTS
    ciphertext = schemes[1].load(schemes[0].key(seed).encrypt(slots))
    np.testing.assert_allclose(schemes[1].key(seed).decrypt(ciphertext), slots, rtol=0, atol=0 if kind == BFV else 1e-9)
