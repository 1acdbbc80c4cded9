"""What a sheet holds beside the data, and that it is another for every key, plan, client and ciphertext."""

from dataclasses import replace

import numpy as np
import pytest
from encrypted_kit import THREE_CHUNKS, EncryptedFederation, weighed

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted.bfv import DATA_SLOTS, BfvSheet
from fedvlm_secure.secagg.encrypted.ckks import TAGS, CkksSheet
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, HALF_MODULUS, PLAIN_MODULUS, SLOTS
from fedvlm_secure.secagg.encrypted.scheme import IntegrityError
from fedvlm_secure.secagg.encrypted.sheets import sheet_of

BOTH = pytest.mark.parametrize("protocol", [BFV, CKKS])
SECRET, OTHER_SECRET = Secret(bytes(32)), Secret(bytes(31) + b"x")


def plans(protocol: str) -> list:
    """Attempts that differ in one thing each."""
    plan = EncryptedFederation(protocol=protocol, dimension=THREE_CHUNKS).plan
    changes: list[dict] = [{}, {"attempt": 9}, {"round": 9}, {"run": b"r" * 16}, {"model": b"m" * 32}]
    return [replace(plan, **change) for change in changes]


@BOTH
def test_pads_and_indicators_repeat_nowhere(protocol):
    """A pad that two ciphertexts share would let one stand for the other, as far as it goes."""
    values = []
    for plan in plans(protocol):
        for secret in (SECRET, OTHER_SECRET):
            for client in plan.cohort:
                sheet = sheet_of(plan)
                values += (sheet._pads if protocol == BFV else sheet._indicators)(secret, client).tolist()
    assert len(values) == 5 * 2 * 5 * 3
    # 150 words of 32 bits or more: two alike by a chance of 3e-6 under CKKS, where they are fixed, so never.
    assert len(set(values)) == len(values)
    if protocol == BFV:
        assert min(values) >= 0
        assert max(values) < PLAIN_MODULUS
        assert sum(value > HALF_MODULUS for value in values) > 40
    else:
        assert min(values) >= 0.5
        assert max(values) < 1.0
        assert max(values) - min(values) > 0.4


@BOTH
def test_alphas_repeat_nowhere(protocol):
    seen = []
    for plan in plans(protocol):
        for secret in (SECRET, OTHER_SECRET):
            alphas = list(sheet_of(plan)._coefficients(secret))[:3]
            seen += [alpha[0, :50].tobytes() for alpha in alphas]
            if protocol == CKKS:
                assert alphas[0].shape == (TAGS, SLOTS - TAGS)
                assert len({row.tobytes() for row in alphas[0]}) == TAGS
                # Uniform in [-1, 1): mean 0, variance 1/3, to six deviations.
                assert abs(alphas[0].mean()) < 6 * np.sqrt(1 / 3 / alphas[0].size)
                assert abs(alphas[0].var() - 1 / 3) < 6 * np.sqrt(4 / 45 / alphas[0].size)
    assert len(set(seen)) == len(seen) == 5 * 2 * 3


@BOTH
def test_a_sheet_sums_to_what_is_read(protocol):
    """Without any encryption: sheets added as they are, at the least and the most that slots hold."""
    federation = EncryptedFederation(protocol=protocol, dimension=THREE_CHUNKS, counters=(Counter("asked", 1 << 30),))
    federation.updates = {
        name: Update(sign * np.full(THREE_CHUNKS, 1e9), {"weight": 50, "asked": 1 << 30})
        for name, sign in zip(federation.names, (1, 1, -1, 1, 1), strict=True)
    }
    sheet, layout = sheet_of(federation.plan), federation.plan.layout
    filled = [sheet.fill(federation.updates[name], SECRET, name) for name in federation.names]
    total = [sum(sheets) for sheets in zip(*filled, strict=True)]
    read = sheet.read([wrapped(slots) for slots in total], SECRET, federation.names)
    exact, tail = weighed(federation, federation.names)
    np.testing.assert_array_equal(read[layout.update :], tail)
    np.testing.assert_allclose(read[: layout.update], exact, atol=0.5 * 5 if protocol == BFV else 1e-6)


def wrapped(slots: np.ndarray) -> np.ndarray:
    """As a decryption gives them: BFV's mod t, nearest to zero."""
    if slots.dtype == np.float64:
        return slots
    return (slots + HALF_MODULUS) % PLAIN_MODULUS - HALF_MODULUS


@BOTH
def test_unfilled_slots_are_bound_as_well(protocol):
    """Behind the last check of the last ciphertext nothing is read; a change there is noticed all the same."""
    federation = EncryptedFederation(protocol=protocol, dimension=10)
    sheet = sheet_of(federation.plan)
    (slots,) = sheet.fill(federation.updates["c01"], SECRET, "c01")
    sheet.read([slots], SECRET, ("c01",))
    for place in (20, 3000, (DATA_SLOTS if protocol == BFV else SLOTS - TAGS - 5) - 1):
        changed = slots.copy()
        changed[place] += 1
        with pytest.raises(IntegrityError):
            sheet.read([changed], SECRET, ("c01",))


@BOTH
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_all_ciphertexts_are_checked_before_any_refusal(protocol, bad):
    """So that the time it takes does not tell which one it was (E-5.4)."""
    federation = EncryptedFederation(protocol=protocol, dimension=THREE_CHUNKS)
    sheet, decrypted = sheet_of(federation.plan), []

    def sums():
        for number, slots in enumerate(sheet.fill(federation.updates["c01"], SECRET, "c01")):
            decrypted.append(number)
            slots[5] += number == bad
            yield slots

    with pytest.raises(IntegrityError):
        sheet.read(sums(), SECRET, ("c01",))
    assert decrypted == [0, 1, 2]


def test_one_client_sets_one_indicator():
    federation = EncryptedFederation(protocol=CKKS, dimension=10)
    sheet = CkksSheet(federation.plan)
    for index, name in enumerate(federation.names):
        (slots,) = sheet.fill(federation.updates[name], SECRET, name)
        indicators = slots[-TAGS - 5 : -TAGS]
        assert np.flatnonzero(indicators).tolist() == [index]


@pytest.mark.parametrize("value", [0, 1, -1, HALF_MODULUS, -HALF_MODULUS, 123_456_789_012])
def test_bfv_tags_are_exact_at_any_size(value):
    """The inner product in doubles against Python's integers; 4,095 products of 37 bits each are no double's."""
    federation = EncryptedFederation(dimension=DATA_SLOTS - 4)
    sheet = BfvSheet(federation.plan)
    sheet._pack = lambda integers: np.full(DATA_SLOTS, value, np.int64)
    (slots,) = sheet.fill(federation.updates["c00"], SECRET, "c00")
    alpha = next(iter(sheet._coefficients(SECRET)))
    words = [int(low) + (int(high) << 19) for low, high in alpha.T]
    assert all(0 <= word < PLAIN_MODULUS for word in words)
    tag = (sum(word * value for word in words) + int(sheet._pads(SECRET, "c00")[0])) % PLAIN_MODULUS
    assert int(slots[DATA_SLOTS]) % PLAIN_MODULUS == tag
    assert abs(int(slots[DATA_SLOTS])) <= HALF_MODULUS
