"""On a sparse graph: exact while enough neighbours of everyone answer, and always within the plan's own dropouts."""

from contextlib import AbstractContextManager
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_kit import Silent, check_sum, check_what_was_revealed, how_it_ends, play, silences
from secagg_kit import PHASES, Federation

from fedvlm_secure.secagg import plan as planning
from fedvlm_secure.secagg.graph import Sparse
from fedvlm_secure.secagg.plan import HONEST_BUT_CURIOUS


@st.composite
def toy_rounds(draw: st.DrawFn) -> tuple[Sparse, Federation, Silent]:
    """A graph far too sparse to be safe, so that a few dropouts leave somebody without neighbours."""
    clients = draw(st.integers(6, 12))
    degree = draw(st.sampled_from(range(2, clients - 1, 2)))
    graph = Sparse(degree, draw(st.integers(2, degree)))
    federation = Federation(
        clients=clients,
        dimension=draw(st.sampled_from([0, 1, 33])),
        threat_model=HONEST_BUT_CURIOUS,
        max_corrupt=draw(st.integers(0, 2)),
        min_survivors=draw(st.integers(max(4, graph.threshold), clients)),
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        seed=draw(st.integers(0, 99)),
    )
    with of_the_graph(graph):
        return graph, federation, draw(silences(federation))


def of_the_graph(graph: Sparse) -> AbstractContextManager[object]:
    """Every cohort above five clients has this graph."""
    return mock.patch.multiple(planning, SPARSE_ABOVE=5, sparse=lambda clients, max_corrupt, max_dropped: graph)


def check(graph: Sparse, federation: Federation, silent: Silent) -> None:
    with of_the_graph(graph):
        assert not federation.plan.complete
        attempt = play(federation, silent)
        clause, survivors = how_it_ends(federation, silent)
    assert attempt.clause == clause
    check_what_was_revealed(federation, attempt, survivors)
    if clause is None:
        check_sum(federation, attempt, survivors)


@settings(deadline=None, max_examples=100)
@given(toy_rounds())
def test_toy_graphs(case):
    check(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(toy_rounds())
def test_toy_graphs_at_length(case):
    check(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_the_real_graph_bears_the_dropouts_it_is_made_for(data):
    """Above 100 clients; with more dropouts than n - min_survivors the round may end, with as many it does not."""
    clients = data.draw(st.integers(101, 112))
    federation = Federation(clients=clients, threat_model=HONEST_BUT_CURIOUS, max_corrupt=data.draw(st.integers(1, 10)))
    federation.names = tuple(f"c{number:03d}" for number in range(clients))
    plan = federation.plan
    assert plan.degree < clients // 2
    gone = data.draw(st.permutations(federation.names))[: clients - plan.min_survivors]
    silent = {name: data.draw(st.sampled_from(PHASES)) for name in gone}
    attempt = play(federation, silent)
    assert attempt.clause is None
    check_sum(federation, attempt, {name for name in federation.names if silent.get(name) not in PHASES[:3]})
    check_what_was_revealed(federation, attempt, set(attempt.total.survivors))
