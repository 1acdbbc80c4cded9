"""The sparse graph: published parameters, exact probabilities, and the ring itself."""

from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations
from math import comb

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.secagg.graph import Sparse, _tail, neighbours, sparse

SECURITY_LOSS_EACH = Fraction(1, 2**41)
FAILURE = Fraction(1, 2**20)
SEED = bytes(32)

# Degree and threshold of every semi-honest row in `fcp/secagg/server/graph_parameter_finder_test.cc` of
# github.com/google-parfait/federated-compute: (corrupt %, dropped %) -> {clients: (k, t)}. Two rows differ, see below.
KNOWN = {
    (45, 45): {100: (92, 46), 1000: (822, 417), 10**4: (3494, 1771), 10**5: (5508, 2788), 10**6: (6240, 3156)},
    (33, 33): {
        10: (8, 4),
        100: (68, 34),
        1000: (286, 150),
        10**4: (422, 221),
        10**5: (480, 251),
        10**6: (518, 270),
    },
    (5, 33): {100: (28, 6), 1000: (72, 24), 10**4: (86, 29), 10**5: (96, 32), 10**6: (102, 34)},
    (33, 5): {
        10: (4, 4),
        100: (34, 29),
        1000: (78, 60),
        10**4: (92, 70),
        10**5: (102, 77),
        10**6: (110, 83),
    },
    (5, 5): {10: (2, 2), 100: (12, 6), 1000: (30, 17), 10**4: (34, 20), 10**5: (36, 21), 10**6: (38, 22)},
    (33, 0): {10: (4, 4), 100: (26, 25), 1000: (38, 36), 10**4: (42, 40), 10**5: (46, 44), 10**6: (50, 47)},
    (0, 33): {100: (26, 2), 1000: (38, 2), 10**4: (42, 2), 10**5: (46, 2), 10**6: (50, 2)},
    (0, 0): {10: (2, 2), 100: (2, 2), 1000: (2, 2), 10**4: (2, 2), 10**5: (2, 2), 10**6: (2, 2)},
}


def exact_tail(population: int, marked: int, draws: int, least: int) -> Fraction:
    ways = sum(comb(marked, hits) * comb(population - marked, draws - hits) for hits in range(least, draws + 1))
    return Fraction(ways, comb(population, draws))


def exact_search(clients: int, corrupt: int, dropped: int) -> Sparse | None:
    """The definition, in rational numbers and without a shortcut."""
    bad = corrupt + dropped
    for degree in range(2, clients - 1, 2):
        gap_pairs = Fraction(clients * (clients - degree - 1), 2)
        all_bad = Fraction(comb(clients - degree, bad - degree), comb(clients, bad)) if degree <= bad < clients else 0
        if bad >= clients or gap_pairs * all_bad > SECURITY_LOSS_EACH:
            continue
        for threshold in range(2, degree + 1):
            recovered = clients * exact_tail(clients, corrupt, degree, threshold)
            # Fewer than t survivors among the neighbours, counted as survivors.
            alive = clients - dropped
            lost = clients * (1 - exact_tail(clients, alive, degree, threshold))
            if recovered <= SECURITY_LOSS_EACH and lost <= FAILURE:
                return Sparse(degree, threshold)
    return None


def names(clients: int) -> tuple[str, ...]:
    return tuple(f"hospital-{number:03}" for number in range(clients))


def is_connected(graph: Mapping[str, tuple[str, ...]], nodes: set[str]) -> bool:
    reached: set[str] = set()
    waiting = sorted(nodes)[:1]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting.extend(nodes.intersection(graph[name]) - reached)
    return reached == nodes


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropped", "expected"),
    [
        pytest.param(
            clients, corrupt * clients // 100, dropped * clients // 100, row, id=f"{clients}-{corrupt}-{dropped}"
        )
        for (corrupt, dropped), rows in KNOWN.items()
        for clients, row in rows.items()
    ],
)
def test_the_published_parameters_come_out(clients, corrupt, dropped, expected):
    assert sparse(clients, corrupt, dropped) == Sparse(*expected)


def test_a_published_row_whose_threshold_too_few_survivors_may_meet_does_not_come_out():
    # For 10 clients, none corrupt and 3 dropped, the published row is k = 4 and t = 2: that finder raises t to 2 only
    # after it has compared t with the survivors. All three dropouts meet at a given place in 1 of 30 orders.
    lost = 1 - exact_tail(10, 7, 4, 2)
    assert lost == Fraction(1, 30)
    assert 10 * lost > FAILURE
    assert sparse(10, 0, 3) == Sparse(6, 2)


@pytest.mark.parametrize("clients", range(1, 17))
def test_the_search_agrees_with_the_definition_for_every_small_cohort(clients):
    for corrupt in range(clients + 1):
        for dropped in range(clients + 1):
            assert sparse(clients, corrupt, dropped) == exact_search(clients, corrupt, dropped), (corrupt, dropped)


@settings(deadline=None, max_examples=40)
@given(st.integers(50, 260), st.floats(0, 0.4), st.floats(0, 0.4))
def test_the_search_agrees_with_the_definition_where_probabilities_decide(clients, corrupt, dropped):
    counts = int(corrupt * clients), int(dropped * clients)
    assert sparse(clients, *counts) == exact_search(clients, *counts)


@given(st.data())
def test_a_tail_is_never_below_the_exact_one_and_hardly_above(data):
    population = data.draw(st.integers(1, 400))
    marked, draws = data.draw(st.integers(0, population)), data.draw(st.integers(1, population))
    least = data.draw(st.integers(0, draws + 1))
    exact, bound = exact_tail(population, marked, draws, least), Fraction(_tail(population, marked, draws, least))
    if least * population <= marked * draws:
        assert bound == 1
    else:
        assert exact <= bound <= exact * Fraction(1_000_002, 1_000_000)


def test_far_tails_of_a_million_clients_keep_their_precision():
    # Where the log-gammas are largest, about 10^7.
    for marked, draws, least in ((330_000, 518, 270), (330_000, 518, 518), (50_000, 38, 22), (900_000, 3000, 3000)):
        exact = exact_tail(10**6, marked, draws, least)
        assert exact <= Fraction(_tail(10**6, marked, draws, least)) <= exact * Fraction(1_000_002, 1_000_000)


@pytest.mark.parametrize("degree", [2, 4, 6])
@pytest.mark.parametrize("marked", [3, 5, 7])
def test_the_expected_number_of_clients_with_so_many_marked_neighbours_is_the_union_bound(degree, marked):
    cohort = names(11)
    graph = neighbours(cohort, degree, SEED)
    sets = [set(chosen) for chosen in combinations(cohort, marked)]
    for least in range(degree + 1):
        hit = sum(len(chosen.intersection(graph[name])) >= least for chosen in sets for name in cohort)
        assert Fraction(hit, len(sets)) == 11 * exact_tail(11, marked, degree, least)


@pytest.mark.parametrize("degree", [2, 4, 6])
@pytest.mark.parametrize("bad", [2, 4, 6, 8])
def test_the_ring_falls_apart_no_more_often_than_the_union_bound(degree, bad):
    cohort = names(12)
    graph = neighbours(cohort, degree, SEED)
    apart = sum(not is_connected(graph, set(cohort).difference(chosen)) for chosen in combinations(cohort, bad))
    bound = Fraction(12 * (12 - degree - 1), 2) * exact_tail(12, bad, degree, degree)
    assert Fraction(apart, comb(12, bad)) <= bound
    assert (apart == 0) == (bad < degree)
    if bad == degree:
        assert Fraction(apart, comb(12, bad)) == bound  # nothing is counted twice


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 150), st.integers(0, 150))
def test_more_corrupt_or_more_dropped_clients_never_make_the_graph_sparser(clients, corrupt, dropped):
    def degree(found: Sparse | None) -> int:
        return clients if found is None else found.degree

    here = degree(sparse(clients, corrupt, dropped))
    assert here <= degree(sparse(clients, corrupt + 1, dropped))
    assert here <= degree(sparse(clients, corrupt, dropped + 1))


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropped"),
    [
        (0, 0, 0),
        (1, 0, 0),
        (3, 0, 0),  # every ring of three is complete
        (5, 1, 3),
        (10, 5, 5),
        (100, 50, 50),
        (100, 0, 100),
        (100, 100, 0),
        (100, 101, 0),
        (100, 2**70, 2**70),
        (100, -1, 5),
        (100, 5, -1),
        (-5, 0, 0),
    ],
)
def test_no_sparse_graph(clients, corrupt, dropped):
    assert sparse(clients, corrupt, dropped) is None


@given(st.integers(3, 40), st.integers(1, 19), st.binary(max_size=40))
def test_the_graph_is_a_connected_ring_of_the_degree_asked_for(clients, half, seed):
    degree = 2 * half
    assume(degree < clients)
    cohort = names(clients)
    graph = neighbours(cohort, degree, seed)
    assert set(graph) == set(cohort)
    for name, around in graph.items():
        assert len(around) == degree
        assert list(around) == sorted(set(around))
        assert name not in around
        assert all(name in graph[peer] for peer in around)
    assert is_connected(graph, set(cohort))


def test_neighbours_are_those_nearest_in_the_order_of_the_digests():
    cohort = names(9)
    ring = sorted(cohort, key=lambda name: digest("graph-order", SEED, name))
    graph = neighbours(cohort, 4, SEED)
    assert graph[ring[0]] == tuple(sorted((ring[7], ring[8], ring[1], ring[2])))
    assert graph[ring[4]] == tuple(sorted((ring[2], ring[3], ring[5], ring[6])))


@given(st.binary(min_size=1, max_size=32), st.binary(min_size=1, max_size=32))
def test_the_graph_follows_from_the_seed_alone(seed, other):
    cohort = names(40)
    graph = neighbours(cohort, 6, seed)
    neighbours.cache_clear()
    assert neighbours(tuple(reversed(cohort)), 6, seed) == graph
    assert (neighbours(cohort, 6, other) == graph) == (seed == other)


@pytest.mark.parametrize(("clients", "degree"), [(10, 0), (10, -2), (10, 3), (10, 10), (1, 2), (0, 2)])
def test_a_degree_that_no_ring_has_is_refused(clients, degree):
    with pytest.raises(MisuseError, match="degree"):
        neighbours(names(clients), degree, SEED)


def test_the_graph_that_all_callers_share_cannot_be_changed():
    graph = neighbours(names(10), 4, SEED)
    with pytest.raises(TypeError):
        graph["hospital-000"] = ()
