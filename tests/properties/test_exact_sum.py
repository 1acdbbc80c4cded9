"""For any cohort, thresholds, dropouts, weights and values: the integer sum over exactly the survivors, or an abort."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_kit import Silent, check_sum, check_what_was_revealed, federations, how_it_ends, play, silences
from secagg_kit import Federation

cases = federations().flatmap(lambda federation: st.tuples(st.just(federation), silences(federation)))


def check(federation: Federation, silent: Silent) -> None:
    attempt = play(federation, silent)
    clause, survivors = how_it_ends(federation, silent)
    assert attempt.clause == clause
    check_what_was_revealed(federation, attempt, survivors)
    if clause is None:
        check_sum(federation, attempt, survivors)


@settings(deadline=None, max_examples=250)
@given(cases)
def test_the_sum_is_exact_or_the_attempt_aborts(case):
    check(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=800)
@given(cases)
def test_the_sum_is_exact_or_the_attempt_aborts_at_length(case):
    check(*case)
