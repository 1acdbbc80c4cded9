"""What the encrypted protocols run with: secure by the standard's table, and refused where a sum would not fit."""

import math
from dataclasses import replace

import pytest
import tenseal.sealapi as seal
from encrypted_kit import EncryptedFederation, says
from secagg_kit import refused

from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.sealing import PUBLIC_BYTES
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.parameters import (
    BFV,
    CKKS,
    CKKS_LARGEST_COHORT,
    COEFFICIENT_BITS,
    DEGREE,
    HALF_MODULUS,
    LARGEST_ROSTER,
    PLAIN_MODULUS,
    check_fits,
    packing,
    scale_bits,
    tail_size,
)
from fedvlm_secure.secagg.encrypted.scheme import Scheme
from fedvlm_secure.secagg.plan import LARGEST_COHORT, MALICIOUS_SERVER, Plan, propose, shape
from fedvlm_secure.secagg.roster import Member
from fedvlm_secure.secagg.session import SERVER

# Albrecht et al., Homomorphic Encryption Security Standard, 2018: the largest log2 q for 128-bit security with a
# uniform ternary secret and errors of deviation 8/√(2π), by degree. Table 1 (classical) and table 2 (quantum).
CLASSICAL_128 = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
QUANTUM_128 = {1024: 25, 2048: 51, 4096: 101, 8192: 202, 16384: 411, 32768: 827}


@pytest.mark.parametrize("kind", [BFV, CKKS])
def test_what_seal_runs_with_is_within_both_rows(kind):
    """All primes of the context count, key-switching primes included; nothing larger ever encrypts."""
    data = Scheme(kind, 40 if kind == CKKS else 0).context.key_context_data()
    primes = [prime.value() for prime in data.parms().coeff_modulus()]
    assert data.parms().poly_modulus_degree() == DEGREE
    bits = math.prod(primes).bit_length()
    assert bits == data.total_coeff_modulus_bit_count() == COEFFICIENT_BITS
    assert bits <= QUANTUM_128[DEGREE] < CLASSICAL_128[DEGREE]
    assert len(primes) == 1, "with a second prime the server's ciphertexts would be switched, or larger than needed"


def test_the_table_is_seals_own():
    for degree, bits in CLASSICAL_128.items():
        assert seal.CoeffModulus.MaxBitCount(degree, seal.SEC_LEVEL_TYPE.TC128) == bits


def test_one_bit_more_than_the_table_allows_is_refused_by_seal():
    """So the security level that the context is made with is one that it enforces."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(DEGREE)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [55, 55]))
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    assert not context.parameters_set()
    assert Scheme(CKKS, 40).context.parameters_set()


def test_the_plain_modulus():
    assert PLAIN_MODULUS % (2 * DEGREE) == 1, "no slots"
    assert PLAIN_MODULUS < 1 << 38
    assert is_prime(PLAIN_MODULUS)
    assert HALF_MODULUS * 2 + 1 == PLAIN_MODULUS
    assert not any(is_prime(larger) for larger in range(PLAIN_MODULUS + 2 * DEGREE, 1 << 38, 2 * DEGREE))


def is_prime(number: int) -> bool:
    """Miller and Rabin with the first twelve primes, which is certain below 3·10^23."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def layout(value_bits: int, weight_max: int, bound: int = 1, update: int = 10) -> VectorLayout:
    return VectorLayout(update, (Counter("weight", weight_max), Counter("loss", bound)), value_bits, weight_max)


def proposed(protocol: str, clients: int, layout: VectorLayout) -> Plan:
    return propose(
        run=bytes(16),
        round=1,
        attempt=1,
        cohort=tuple(f"c{index:05d}" for index in range(clients)),
        layout=layout,
        clip_norm=1.0,
        roster=bytes(32),
        model=bytes(32),
        protocol=protocol,
    )


# A coordinate is at most weight_max·2^(value_bits - 1) + 1 for each client, and a slot holds 137,438,908,416.
@pytest.mark.parametrize(
    ("value_bits", "clients", "largest_weight"),
    [(20, 10, 26214), (20, 100, 2621), (20, 1000, 262), (24, 3, 5461), (24, 1000, 16), (2, 1024, 67108841)],
)
def test_bfv_headroom_for_coordinates(value_bits, clients, largest_weight):
    fits, too_much = layout(value_bits, largest_weight), layout(value_bits, largest_weight + 1)
    assert clients * (largest_weight * fits.levels + 1) <= HALF_MODULUS
    assert clients * ((largest_weight + 1) * fits.levels + 1) > HALF_MODULUS
    assert packing(fits, clients).per_slot == 1
    assert proposed(BFV, clients, fits).protocol == BFV
    for act in (packing, lambda layout, clients: proposed(BFV, clients, layout)):
        with pytest.raises(MisuseError, match="lower value_bits, weight_max or a counter's bound, or use pairwise"):
            act(too_much, clients)


@pytest.mark.parametrize("clients", [3, 7, 1000])
def test_bfv_headroom_for_counters(clients):
    most = HALF_MODULUS // clients
    assert proposed(BFV, clients, layout(8, 10, most)).protocol == BFV
    for act in (packing, lambda layout, clients: proposed(BFV, clients, layout)):
        with pytest.raises(MisuseError):
            act(layout(8, 10, most + 1), clients)


@pytest.mark.parametrize("protocol", ["pairwise", CKKS])
def test_what_bfv_refuses_others_take(protocol):
    assert proposed(protocol, 10, layout(20, 30_000)).protocol == protocol


@pytest.mark.parametrize(
    ("value_bits", "weight_max", "clients", "per_slot"),
    [(20, 4096, 10, 1), (12, 1, 10, 2), (8, 1, 10, 3), (8, 1, 3, 3), (4, 1, 3, 6), (2, 1, 3, 7), (2, 1, 2, 9)],
)
def test_packing_is_as_tight_as_the_slot_allows(value_bits, weight_max, clients, per_slot):
    found = packing(layout(value_bits, weight_max), clients)
    assert found.per_slot == per_slot
    largest = clients * (weight_max * (1 << (value_bits - 1)) + 1)
    # Sums of either sign stay apart in their digits, and the whole slot within (-t/2, t/2).
    assert largest < 1 << (found.width - 1)
    assert sum(largest << (found.width * place) for place in range(per_slot)) <= HALF_MODULUS
    assert sum(largest << (found.width * place) for place in range(per_slot + 1)) > HALF_MODULUS


def test_no_packing_lets_a_slot_wrap():
    """Whatever the cohort and the layout: one coordinate more would not fit, and those that are there do."""
    found = set()
    for clients in (*range(2, 40), 100, 333, 1000):
        for value_bits in range(2, 21, 3):
            for weight_max in (1, 2, 3, 5, 100, 4096):
                if clients * (weight_max << (value_bits - 1)) + clients > HALF_MODULUS:
                    continue
                fits = packing(layout(value_bits, weight_max), clients)
                largest = clients * ((weight_max << (value_bits - 1)) + 1)
                slots = [
                    sum(largest << (fits.width * place) for place in range(fits.per_slot + more)) for more in (0, 1)
                ]
                assert slots[0] <= HALF_MODULUS < slots[1]
                found.add(fits.per_slot)
    assert found >= set(range(1, 8))


def test_every_counter_and_check_has_a_slot_of_its_own():
    assert tail_size(layout(20, 4096)) == 2 + 3


def test_ckks_cohort_limit():
    assert proposed(CKKS, CKKS_LARGEST_COHORT, layout(20, 4096)).protocol == CKKS
    for act in (check_fits, lambda protocol, layout, clients: proposed(protocol, clients, layout)):
        with pytest.raises(MisuseError, match="up to 1000 clients, not 1001"):
            act(CKKS, layout(20, 4096), CKKS_LARGEST_COHORT + 1)


@pytest.mark.parametrize("clients", [2, 3, 10, 31, 32, 100, 999, CKKS_LARGEST_COHORT])
def test_ckks_scale_leaves_room_for_the_sum(clients):
    """Slots of magnitude 1 and tags of up to 4,092: a polynomial's coefficients stay below eight scales a client."""
    assert clients * 8 * 2 ** scale_bits(clients) <= 2 ** (COEFFICIENT_BITS - 1)
    assert scale_bits(clients) >= 39


def test_no_cohort_is_larger_than_the_noise_allows():
    """Ten thousand sums are exact (tests/secagg/test_encrypted_noise.py); no plan comes near."""
    assert CKKS_LARGEST_COHORT <= LARGEST_ROSTER <= LARGEST_COHORT < 10_000


def refuses_the_plan(federation: EncryptedFederation, plan: Plan, clause: str) -> None:
    """The dealer makes no key for it; nothing happens to its session."""
    federation.plan = plan
    client = federation.client("c00")
    before = client.to_bytes()
    request = says(federation, m.KEYS, "c00", m.KeysRequest(plan, 1))
    refused(lambda: client.reply(request), clause, SERVER)
    assert client.to_bytes() == before


@pytest.mark.parametrize(
    ("protocol", "clients"), [(CKKS, CKKS_LARGEST_COHORT + 1), (BFV, LARGEST_ROSTER + 1), (BFV, LARGEST_COHORT + 1)]
)
def test_a_client_refuses_a_cohort_that_is_too_large(protocol, clients):
    federation = EncryptedFederation(protocol=protocol)
    names = tuple(f"d{index:05d}" for index in range(clients - 1))
    keys = [(index.to_bytes(32), index.to_bytes(PUBLIC_BYTES)) for index in range(1, clients)]
    crowd = tuple(Member(name, *key) for name, key in zip(names, keys, strict=True))
    federation.roster = replace(federation.roster, members=(federation.roster.members[0], *crowd))
    cohort = ("c00", *names)
    wiring = shape(MALICIOUS_SERVER, clients, 0, clients)
    plan = replace(
        federation.plan,
        cohort=cohort,
        degree=wiring.degree,
        threshold=wiring.least_threshold,
        min_survivors=clients,
        ring_bits=federation.plan.layout.ring_bits(clients),
        roster=federation.roster.hash,
    )
    refuses_the_plan(federation, plan, "P-2.5" if clients <= LARGEST_COHORT else "P-2.4")


@pytest.mark.parametrize("bound", [(HALF_MODULUS // 5) + 1, 1 << 40])
def test_a_client_refuses_a_counter_that_is_too_large(bound):
    federation = EncryptedFederation()
    widest = replace(federation.plan.layout, counters=(Counter("weight", 50), Counter("loss", bound)))
    plan = replace(federation.plan, layout=widest, ring_bits=widest.ring_bits(5))
    refuses_the_plan(federation, plan, "P-2.5")


def test_a_client_refuses_coordinates_that_are_too_large():
    federation = EncryptedFederation(value_bits=24)
    heavy = HALF_MODULUS // 5 // (1 << 23) + 1
    widest = replace(federation.plan.layout, counters=(Counter("weight", heavy),), weight_max=heavy)
    plan = replace(federation.plan, layout=widest, ring_bits=widest.ring_bits(5))
    refuses_the_plan(federation, plan, "P-2.5")
