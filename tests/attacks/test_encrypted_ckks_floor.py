"""What a lying server can change in a CKKS sum without being noticed, measured: next to nothing, but not nothing.

Tags hold up to a tolerance T of ten deviations of their noise (:meth:`CkksSheet._tolerances`). A change of the data
that leaves the indicators alone passes if each of the four tags moves by less, and each moves by a random factor that
the server does not know:

* a change of one slot by δ passes surely if δ < T/2, and well above T with a chance of (T/δ)^4;
* one of many slots, of L2 norm δ, with a chance of about (1.4 T/δ)^4.

In the mean δ is 8.5·clip·weight_max/(√d·W) times as much, W being the weights' sum. For d = 1,000,000 and the
heaviest weights a change by T is 4.2e-12 clip norms among 10 clients, 1.1e-11 among 100 and 2.7e-11 among 1,000; if
all weights are 1 of at most 4,096, it is 4,096 times that: 1.7e-8, 4.3e-8 and 1.1e-7. T is 370 deviations of the noise
of a slot.
"""

import math

import numpy as np
import pytest
from encrypted_attacker import READER, LyingServer, lying_server
from encrypted_kit import EncryptedFederation, held

from fedvlm_secure.encoding.codec import RANGE_DEVIATIONS
from fedvlm_secure.secagg.encrypted.bfv import DATA_SLOTS, BfvSheet
from fedvlm_secure.secagg.encrypted.ckks import TAGS, CkksSheet
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, SLOTS
from fedvlm_secure.secagg.encrypted.scheme import IntegrityError
from fedvlm_secure.secagg.encrypted.sheets import sheet_of

FULL = 4000  # coordinates: one ciphertext, nearly all of its slots


@pytest.fixture(scope="module", params=[CKKS])
def second_round(request) -> LyingServer:
    return lying_server(request.param, dimension=FULL)


@pytest.fixture
def server(second_round) -> LyingServer:
    return second_round.copy()


def passes(sheet, slots: np.ndarray, key, names: tuple[str, ...]) -> bool:
    """Whether whoever holds the key takes these slots for the sum of these clients' ciphertexts."""
    try:
        sheet.read([slots], key.secret, names)
    except IntegrityError:
        return False
    return True


def decrypted(server: LyingServer) -> tuple:
    sheet, key = sheet_of(server.federation.plan), held(server.table, READER)
    return sheet, key, key.key.decrypt(sheet.scheme.load(server.honest_sum()[0]))


# 4,000 tries each; the bounds are six deviations of a binomial variable away.
@pytest.mark.parametrize(("times", "least", "most"), [(0.4, 4000, 4000), (2, 150, 350), (4, 0, 42), (16, 0, 4)])
def test_a_change_of_one_slot(server, times, least, most):
    sheet, key, slots = decrypted(server)
    delta = times * sheet._tolerances(5)[1]
    passed = 0
    for slot in range(FULL):
        changed = slots.copy()
        changed[slot] += delta
        passed += passes(sheet, changed, key, server.names)
    assert least <= passed <= most


@pytest.mark.parametrize(("times", "least", "most"), [(0.3, 495, 500), (3, 2, 60), (30, 0, 2)])
def test_a_change_of_all_slots(server, times, least, most):
    """In a random direction of that norm; whatever the direction, it is random to the tags."""
    sheet, key, slots = decrypted(server)
    random, passed = np.random.default_rng(0), 0
    for _ in range(500):
        direction = random.standard_normal(FULL)
        changed = slots.copy()
        changed[:FULL] += times * sheet._tolerances(5)[1] * direction / np.linalg.norm(direction)
        passed += passes(sheet, changed, key, server.names)
    assert least <= passed <= most


@pytest.mark.parametrize("slot", ["indicator", "other indicator", "tag"])
def test_indicators_and_tags_themselves(server, slot):
    """Their tolerances are those of a slot and of a tag: a hundred deviations are always noticed, one never."""
    sheet, key, slots = decrypted(server)
    place = {"indicator": sheet._data, "other indicator": sheet._data + 4, "tag": SLOTS - TAGS}[slot]
    tolerance = sheet._tolerances(5)[slot == "tag"]
    for times, noticed in ((10, True), (-10, True), (0.1, False), (-0.1, False)):
        changed = slots.copy()
        changed[place] += times * tolerance
        assert passes(sheet, changed, key, server.names) is not noticed


def test_through_the_whole_protocol(server):
    """A plaintext below the tolerance, added by the server: taken. One of fifty tolerances: refused."""
    honest, hidden, noticed = server.copy(), server.copy(), server.copy()
    shift = hidden.taken(shifted(hidden, 0.5)) - honest.taken(honest.message(READER, honest.honest_sum()))
    assert np.argmax(np.abs(shift)) == 7
    assert 0 < abs(shift[7]) < 1e-2, "steps, of which a coordinate of weight 1 has 2,048"
    noticed.refuses(shifted(noticed, 50.0), "E-5.4")


def shifted(server: LyingServer, times: float) -> bytes:
    """The honest sum with so many tolerances added to one slot."""
    slots = np.zeros(SLOTS)
    slots[7] = times * CkksSheet(server.federation.plan)._tolerances(5)[1]
    plain = server.plaintext(slots)
    chunks = server.changed(
        server.honest_sum(), lambda ciphertext: server.evaluator.add_plain_inplace(ciphertext, plain)
    )
    return server.message(READER, chunks)


@pytest.mark.parametrize(
    ("clients", "heavy", "light"), [(10, 4.2e-12, 1.7e-8), (100, 1.1e-11, 4.3e-8), (1000, 2.7e-11, 1.1e-7)]
)
def test_what_that_is_in_the_mean(clients, heavy, light):
    """As the module says: T in clip norms, for the heaviest weights and the lightest."""
    federation = EncryptedFederation(protocol=CKKS, value_bits=20, weight_max=4096)
    federation.names = tuple(f"c{index:04d}" for index in range(clients))
    tolerance = CkksSheet(federation.plan)._tolerances(clients)[1]
    for weight, told in ((4096, heavy), (1, light)):
        change = tolerance * RANGE_DEVIATIONS * 4096 / (math.sqrt(1_000_000) * weight * clients)
        assert change == pytest.approx(told, rel=0.05)


def test_bfv_notices_a_change_by_one():
    """There the chance is one in t: no slot moves by the smallest step without the tag."""
    server = lying_server(BFV, dimension=FULL)
    sheet, key, slots = decrypted(server)
    assert isinstance(sheet, BfvSheet)
    assert passes(sheet, slots, key, server.names)
    for slot in range(DATA_SLOTS + 1):
        changed = slots.copy()
        changed[slot] += 1 if slot % 2 else -1
        assert not passes(sheet, changed, key, server.names)
