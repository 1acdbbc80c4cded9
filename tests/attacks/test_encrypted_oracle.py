"""What a client would tell about the key if it said more, or more often, than whether a sum is one.

A decryption of a chosen ciphertext is the key itself. A client gives none away: it answers with a hash of a model, or
with a refusal. The refusal is one bit, and a server that sends sums with a little noise of its own can aim it at one
coefficient of the key; hence the limit of readings (E-5.6).
"""

import contextlib

import numpy as np
import pytest
import tenseal.sealapi as seal
from encrypted_attacker import READER, LyingServer, forged, lying_server
from encrypted_kit import held, pin_of
from secagg_kit import refused

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, DEGREE, PLAIN_MODULUS, READINGS, readings_allowed
from fedvlm_secure.secagg.session import SERVER

PRIME = 18014398509309953
STEP = PRIME // PLAIN_MODULUS  # Δ: what a message's 1 is in a ciphertext


@pytest.fixture(scope="module")
def second_round() -> LyingServer:
    return lying_server(BFV, dimension=10)


@pytest.fixture
def server(second_round) -> LyingServer:
    return second_round.copy()


def key_of(server: LyingServer) -> np.ndarray:
    """The secret polynomial's coefficients, as a decryption of (0, Δ) shows them."""
    key, plain = held(server.table, READER).key, seal.Plaintext()
    key._decryptor.decrypt(server.scheme.load(forged(server.scheme, [0] * DEGREE, [STEP] + [0] * (DEGREE - 1))), plain)
    values = [plain.dyn_array().at(index) for index in range(plain.coeff_count())]
    values += [0] * (DEGREE - len(values))
    return np.array([value - PLAIN_MODULUS if value > PLAIN_MODULUS // 2 else value for value in values])


def test_a_decryption_of_a_chosen_ciphertext_is_the_key(server):
    """Ternary, as the standard's table asks: each of -1, 0 and 1 for a third of the coefficients."""
    key = key_of(server)
    assert set(key.tolist()) == {-1, 0, 1}
    for value in (-1, 0, 1):
        # Binomial with a deviation of 30: eight of them are a chance below 1e-14.
        assert abs(np.count_nonzero(key == value) - DEGREE / 3) < 250


def test_no_client_gives_that_decryption_away(server):
    chunk = forged(server.scheme, [0] * DEGREE, [STEP] + [0] * (DEGREE - 1))
    server.refuses(server.message(READER, [chunk]), "E-5.4")


def nudged(server: LyingServer, coefficient: int, sign: int) -> bytes:
    """The honest sum, so near to a wrong one that a coefficient of the key decides: c₀ + b, and c₁ + e at one place.

    e·s is e at one coefficient where the key is 1 there, -e where it is -1. With b + e beyond Δ/2 and b below, the
    message's constant term moves by one in the first case only.
    """
    ciphertext = server.scheme.load(server.honest_sum()[0])
    words = [ciphertext.dyn_array().at(index) for index in range(2 * DEGREE)]
    margin, push = STEP // 4, STEP // 2 - STEP // 8
    words[0] = (words[0] + push) % PRIME
    # X^(N-k)·s has -s_k as its constant term, since X^N is -1.
    place = (DEGREE - coefficient) % DEGREE
    turn = -1 if coefficient else 1
    words[DEGREE + place] = (words[DEGREE + place] + turn * sign * margin) % PRIME
    return server.message(READER, [forged(server.scheme, words[:DEGREE], words[DEGREE:])])


@pytest.mark.parametrize("coefficient", [0, 1, 77, 4095])
def test_whether_a_client_refuses_shows_a_coefficient(server, coefficient):
    """The attack that the limit is for: two answers know one coefficient. It takes a key's holder to do no more."""
    refusing = set()
    for sign in (1, -1):
        again = server.copy()
        with contextlib.suppress(ProtocolError):
            again.table.clients[READER].reply(nudged(again, coefficient, sign))
        if again.table.clients[READER].sum is None:
            refusing.add(sign)
    secret = int(key_of(server)[coefficient])
    assert refusing == ({secret} if secret else set())


@pytest.mark.parametrize("members", [3, 10, 100, 1000, READINGS // 2])
def test_all_members_together_answer_less_often_than_it_takes(members):
    """2,048 bits know at most 1,293 ternary coefficients; 2,048 or more unknown ones keep 54 bits at the standard's."""
    answers = members * readings_allowed(members)
    assert answers <= READINGS
    assert DEGREE - answers / np.log2(3) >= 2048
    assert readings_allowed(members) >= 2, "one in the round, one by catching up"


def test_a_refusal_spoils_the_key_at_once(server):
    """The bit that cost the server something: whoever refuses encrypts nothing more under that key."""
    reading = pin_of(server.table.clients[READER]).readings
    error = None
    for sign in (1, -1):
        again = server.copy()
        coefficient = int(np.flatnonzero(key_of(server) == sign)[0])
        error = refused(lambda again=again, c=coefficient, s=sign: again.taken(nudged(again, c, s)), "E-5.4", SERVER)
        pin = pin_of(again.table.clients[READER])
        assert (pin.readings, pin.spoiled) == (reading + 1, True)
    assert "ciphertext" not in error.detail


def test_ckks_tells_no_more_than_bfv():
    """A chosen sum is refused there as well, and its decryption stays with the client."""
    server = lying_server(CKKS, dimension=10)
    chunk = forged(server.scheme, [0] * DEGREE, [1 << 40] * DEGREE)
    error = server.refuses(server.message(READER, [chunk]), "E-5.4")
    assert error.detail == f"the sum is not that of its list; listed are {', '.join(server.names)}"
