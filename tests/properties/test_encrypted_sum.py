"""For any cohort, weights, packing and dropouts: BFV's sum is `pairwise`'s bit for bit, CKKS's as near as it says."""

import numpy as np
import pytest
from encrypted_kit import EncryptedFederation, EncryptedTable, weighed
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from round_kit import updates
from secagg_kit import Federation
from secagg_kit import play as play_pairwise

import fedvlm_secure as fs
from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter
from fedvlm_secure.errors import MisuseError, RoundAbortedError
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.bfv import DATA_SLOTS
from fedvlm_secure.secagg.encrypted.ckks import CkksSheet
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, packing
from fedvlm_secure.secagg.plan import HONEST_BUT_CURIOUS, MALICIOUS_SERVER

Silent = dict[str, str]

# value_bits and weight_max that put 1, 1, 2, 3, 4, 6 and 7 or more coordinates into a slot, for cohorts of 3 to 8.
SHAPES = st.sampled_from([(20, 4096), (24, 1), (12, 8), (8, 6), (6, 2), (3, 1), (2, 1)])


@st.composite
def federations(draw: st.DrawFn, protocol: str) -> EncryptedFederation:
    """A cohort of 3 to 8 with its updates; sizes that end on, before and behind a slot's and a ciphertext's border."""
    value_bits, weight_max = draw(SHAPES)
    clients = draw(st.integers(3, 8))
    federation = EncryptedFederation(
        clients=clients,
        protocol=protocol,
        dimension=draw(st.sampled_from([0, 1, 2, 7, 33])),
        threat_model=draw(st.sampled_from([HONEST_BUT_CURIOUS, MALICIOUS_SERVER])),
        min_survivors=draw(st.none() | st.integers(max(3, clients // 2 + 1), clients)),
        value_bits=value_bits,
        weight_max=weight_max,
    )
    if draw(st.integers(0, 4)) == 0:
        per_slot = packing(federation.plan.layout, clients).per_slot if protocol == BFV else 1
        # The last coordinate, counter or check is the first in a second ciphertext, or nearly.
        federation.dimension = DATA_SLOTS * per_slot - 4 + draw(st.integers(-2 * per_slot, 2 * per_slot))
        federation.__dict__.pop("plan", None)  # it follows from the dimension
    federation.updates = {name: draw(updates(federation)) for name in federation.names}
    return federation


@st.composite
def silences(draw: st.DrawFn, federation: EncryptedFederation) -> Silent:
    """Some fall silent before the upload, some before the answer; as many as the round bears, or any number."""
    names = draw(st.permutations(federation.names))
    clients, fewest = len(names), federation.plan.min_survivors
    at_input = draw(st.integers(0, clients - fewest) | st.integers(0, clients))
    at_sum = draw(st.integers(0, max(0, (clients - at_input - 1) // 2)) | st.integers(0, clients - at_input))
    return dict.fromkeys(names[:at_input], m.INPUT) | dict.fromkeys(names[at_input : at_input + at_sum], m.SUM)


def cases(protocol: str) -> st.SearchStrategy:
    return federations(protocol).flatmap(lambda it: st.tuples(st.just(it), silences(it)))


def how_it_ends(federation: EncryptedFederation, silent: Silent) -> str | None:
    """The clause that ends the round, or None; written from the rules E-4.5 and E-6.1, not from the code."""
    uploaded = [name for name in federation.names if silent.get(name) != m.INPUT]
    reading = [name for name in uploaded if name not in silent]
    if len(uploaded) < federation.plan.min_survivors:
        return "E-4.5"
    return None if 2 * len(reading) > len(uploaded) else "E-6.1"


def play(federation: EncryptedFederation, silent: Silent) -> EncryptedTable | None:
    """The round up to its end, or None if it ended as it must."""
    table, clause = federation.table(), how_it_ends(federation, silent)
    if clause is None:
        table.finish(silent)
        return table
    with pytest.raises(RoundAbortedError) as refusal:
        table.finish(silent)
    assert refusal.value.clause == clause
    assert clause != "E-4.5" or all(client.sum is None for client in table.clients.values())
    return None


def read_by(table: EncryptedTable, silent: Silent) -> list[np.ndarray]:
    """What every client has read that answered to the end; who is silent has nothing."""
    sealed = table.server.aggregate()
    assert sealed.survivors == tuple(name for name in table.federation.names if silent.get(name) != m.INPUT)
    totals = []
    for name, client in table.clients.items():
        assert (client.sum is None) == (name in silent)
        if client.sum is not None:
            assert (client.sum.survivors, client.sum.dropped) == (sealed.survivors, sealed.dropped)
            totals.append(client.sum.total)
    return totals


def pairwise_twin(federation: EncryptedFederation) -> Federation:
    """The same cohort, updates and encoding under `pairwise`."""
    kept = ("clients", "dimension", "rounding", "max_corrupt", "threat_model", "value_bits", "weight_max")
    same = {name: getattr(federation, name) for name in kept}
    twin = Federation(min_survivors=federation.plan.min_survivors, **same)
    twin.updates = federation.updates
    return twin


def check_bfv(federation: EncryptedFederation, silent: Silent) -> None:
    note(f"{packing(federation.plan.layout, federation.clients)}")
    table = play(federation, silent)
    if table is None:
        return
    dropped = {name: "masked-input" for name, phase in silent.items() if phase == m.INPUT}
    expected = play_pairwise(pairwise_twin(federation), dropped)
    for total in read_by(table, silent):
        assert total.dtype == expected.total.dtype
        np.testing.assert_array_equal(total, expected.total)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(cases(BFV))
def test_bfv_sums_as_pairwise_does(case):
    check_bfv(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(cases(BFV))
def test_bfv_sums_as_pairwise_does_at_length(case):
    check_bfv(*case)


@pytest.mark.parametrize("dropouts", [{}, {0: "input", 3: "sum"}])
def test_secure_mean_is_the_same_mean(dropouts):
    """From the public function down: BFV's mean is that of `pairwise`, CKKS's differs by what rounding and noise do."""
    random = np.random.default_rng(5)
    vectors, weights = random.standard_normal((6, 3000)).astype(np.float32), [1, 5, 4096, 70, 800, 3]
    settings = {"rounding": "nearest", "max_corrupt": 0}
    gone = {index: "masked-input" if phase == "input" else "unmask" for index, phase in dropouts.items()}
    expected = fs.secure_mean(vectors, weights, "pairwise", gone, **settings)
    exact = fs.secure_mean(vectors, weights, BFV, dropouts, **settings)
    near = fs.secure_mean(vectors, weights, CKKS, dropouts, **settings)
    np.testing.assert_array_equal(exact.mean, expected.mean)
    truth = np.average(vectors[list(near.survivors)].astype(float), 0, np.array(weights)[list(near.survivors)])
    assert np.linalg.norm(near.mean - truth) < 1e-6 * np.linalg.norm(truth)
    for mean in (exact, near):
        assert (mean.survivors, mean.total_weight) == (expected.survivors, expected.total_weight)
        assert set(mean.transcript.bytes_per_phase()) == {m.KEYS, m.INPUT, m.SUM}


def check_ckks(federation: EncryptedFederation, silent: Silent) -> None:
    """Every coordinate within ten deviations of noise, counters and checks exactly."""
    table = play(federation, silent)
    if table is None:
        return
    layout, survivors = federation.plan.layout, table.server.aggregate().survivors
    exact, tail = weighed(federation, survivors)
    tolerance, _ = CkksSheet(federation.plan)._tolerances(len(survivors))
    totals = read_by(table, silent)
    for total in totals:
        np.testing.assert_array_equal(total, totals[0], "clients have to agree on the next model to the bit")
        np.testing.assert_array_equal(total[layout.update :], tail)
        edge = tolerance * layout.weight_max * layout.levels
        np.testing.assert_allclose(total[: layout.update], exact, rtol=1e-12, atol=edge)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(cases(CKKS))
def test_ckks_sums_within_its_noise(case):
    check_ckks(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(cases(CKKS))
def test_ckks_sums_within_its_noise_at_length(case):
    check_ckks(*case)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 40), st.sampled_from([1, 4, 300, 4096]), st.integers(0, 1 << 30))
def test_ckks_is_exact_to_a_millionth(clients, weight_max, seed):
    """The mean's relative L2 error for updates of similar norm, whatever their weights of up to 4,096."""
    assert relative_error(clients, weight_max, seed, lambda random: int(random.integers(1, weight_max + 1))) < 1e-6


@pytest.mark.parametrize(("clients", "least"), [(10, 1), (100, 2), (1000, 16)])
def test_where_ckks_is_exact_to_a_millionth(clients, least):
    """The noise is one of the largest weight, 4,096 here: where all are lighter than ``least``, it shows.

    Measured for independent updates, all of weight 1: 1.4e-7 among 10 clients, 1.2e-6 among 100, 9.8e-6 among 1,000.
    """
    assert relative_error(clients, 4096, clients, lambda random: least) < 1e-6


def relative_error(clients: int, weight_max: int, seed: int, weight) -> float:
    """Of the mean that is decoded from fresh ciphertexts, added up; the sessions are not needed for that."""
    federation = EncryptedFederation(protocol=CKKS, dimension=500, value_bits=20, weight_max=weight_max)
    federation.names = tuple(f"c{index:04d}" for index in range(clients))
    plan, random, secret = federation.plan, np.random.default_rng(seed), Secret.generate()
    sheet = CkksSheet(plan)
    key, total, exact, weights = sheet.scheme.key(Secret.generate(64)), None, np.zeros(500), 0
    for name in plan.cohort:
        values = random.standard_normal(500)
        values *= np.sqrt(500) / np.linalg.norm(values)
        heavy = weight(random)
        exact, weights = exact + heavy * values, weights + heavy
        (slots,) = sheet.fill(Update(values, {"weight": heavy}), secret, name)
        ciphertext = sheet.scheme.load(key.encrypt(slots))
        if total is None:
            total = ciphertext
        else:
            sheet.scheme.add(total, ciphertext)
    decoded = plan.codec.decode(sheet.read([key.decrypt(total)], secret, plan.cohort))
    assert decoded.counters["weight"] == weights
    return float(np.linalg.norm(decoded.mean - exact / weights) / np.linalg.norm(exact / weights))


@st.composite
def counting(draw: st.DrawFn) -> tuple[int, tuple[Counter, ...], list[dict[str, int]]]:
    """A cohort, counters of any bound up to what its sums leave exact, and every client's counts."""
    clients = draw(st.integers(3, 60))
    bounds = draw(
        st.lists(st.sampled_from([1, 7, 65535, 65536, 1 << 30, (1 << 53) // clients]), min_size=1, max_size=5)
    )
    counters = tuple(Counter(f"counter-{index}", bound) for index, bound in enumerate(bounds))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    extreme = draw(st.sampled_from(["none", "all", "some"]))
    counts = []
    for _ in range(clients):
        full = {"none": 0, "all": 1, "some": random.random()}[extreme]
        counts.append(
            {it.name: it.bound if random.random() < full else int(random.integers(0, it.bound + 1)) for it in counters}
        )
    return clients, counters, counts


@settings(deadline=None, max_examples=25)
@given(counting())
def test_ckks_counters_are_exact(case):
    clients, counters, counts = case
    federation = EncryptedFederation(protocol=CKKS, dimension=3, counters=counters)
    federation.names = tuple(f"c{index:04d}" for index in range(clients))
    plan, secret = federation.plan, Secret.generate()
    sheet = CkksSheet(plan)
    key, total = sheet.scheme.key(Secret.generate(64)), None
    for name, count in zip(plan.cohort, counts, strict=True):
        (slots,) = sheet.fill(Update(np.ones(3), {"weight": 50, **count}), secret, name)
        ciphertext = sheet.scheme.load(key.encrypt(slots))
        if total is None:
            total = ciphertext
        else:
            sheet.scheme.add(total, ciphertext)
    counted, participants = plan.codec.counted(sheet.read([key.decrypt(total)], secret, plan.cohort))
    assert participants == clients
    assert counted == {"weight": 50 * clients} | {it.name: sum(count[it.name] for count in counts) for it in counters}


@pytest.mark.parametrize(("clients", "bound"), [(3, (1 << 53) // 3 + 1), (5, 1 << 60), (3, 1 << 61)])
def test_counters_beyond_a_doubles_whole_numbers_are_refused(clients, bound):
    federation = EncryptedFederation(clients=clients, protocol=CKKS, counters=(Counter("loss", bound),))
    with pytest.raises(MisuseError, match="whole numbers"):
        _ = federation.plan
