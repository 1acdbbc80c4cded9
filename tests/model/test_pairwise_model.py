"""The pairwise protocol, searched: with its rules no honest client is ever alone, without one of them some client is.

`protocols/pairwise/MODEL.md` says what is modelled and what is not. The attacks are printed; `-s` shows them.
"""

from functools import cache

import pytest
from pairwise_model import Model, Rule, Setting, p_2_4_settings, subsets
from pairwise_search import Search, TwoAttempts, two_attempts
from pairwise_servers import as_prescribed, in_turn

# Reachable states of one attempt, by clients, colluders, threshold and min_survivors: a changed model is noticed.
STATES = {
    (3, 0, 2, 2): 1_475,
    (3, 0, 2, 3): 66,
    (3, 0, 3, 3): 66,
    (3, 1, 3, 3): 34,
    (4, 0, 3, 3): 25_734,
    (4, 0, 3, 4): 182,
    (4, 0, 4, 4): 182,
    (4, 1, 3, 3): 10_557,
    (4, 1, 3, 4): 224,
    (4, 1, 4, 4): 224,
    (4, 2, 4, 4): 34,
}
STATES_OF_FIVE = {
    (5, 1, 4, 4): 343_114,
    (5, 1, 4, 5): 1_244,
    (5, 1, 5, 5): 1_244,
    (5, 2, 4, 4): 19_991,
    (5, 2, 4, 5): 224,
    (5, 2, 5, 5): 224,
    (5, 3, 5, 5): 34,
}
THREE, THREE_WITH_ONE = p_2_4_settings(3, 0)[0], p_2_4_settings(3, 1)[0]


@cache
def searched(setting: Setting, *off: Rule) -> Search:
    return Search(Model(setting, frozenset(off)))


def numbers(setting: Setting) -> tuple[int, int, int, int]:
    return setting.clients, setting.colluding, setting.threshold, setting.min_survivors


def label(value: object) -> str:
    return "n={}, c={}, t={}, min_survivors={}".format(*numbers(value)) if isinstance(value, Setting) else str(value)


def settings(clients: tuple[int, ...]) -> list[Setting]:
    """All that the rules allow, with as many colluders as can be."""
    return [setting for n in clients for c in range(n - 1) for setting in p_2_4_settings(n, c)]


def sum_over(setting: Setting, survivors: str) -> tuple[int, ...]:
    return tuple(int(name in survivors) for name in setting.honest)


def learns_one_sum_or_nothing(setting: Setting, states: int) -> None:
    """The sum over the honest clients of one survivor list; and each such sum is indeed what some states give."""
    found = searched(setting)
    assert found.alone is None
    assert len(found.came_from) == states
    lists = [survivors for survivors in subsets(setting.cohort) if len(survivors) >= setting.min_survivors]
    assert {outcome.sums for outcome in found.outcomes} == {(), *((sum_over(setting, names),) for names in lists)}
    assert all(sum(sum_over(setting, names)) >= setting.min_survivors - setting.colluding >= 2 for names in lists)
    for outcome in found.outcomes:
        for row in outcome.sums:
            # Two vectors at least are in no later sum: so no later sum, of any attempt, leaves fewer than two clients.
            assert (
                sum(name in outcome.answered for name, counts in zip(setting.honest, row, strict=True) if counts) >= 2
            )


@pytest.mark.parametrize("setting", settings((3, 4)), ids=label)
def test_no_client_is_ever_alone(setting):
    learns_one_sum_or_nothing(setting, STATES[numbers(setting)])


@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in settings((5,)) if s.colluding], ids=label)
def test_no_client_is_ever_alone_among_five(setting):
    learns_one_sum_or_nothing(setting, STATES_OF_FIVE[numbers(setting)])


@pytest.mark.parametrize("colluding", [0, 1, 2])
def test_no_client_is_alone_after_two_attempts(colluding):
    """In any two cohorts of three or four with any clients in common, each with any thresholds allowed."""
    attempts = [searched(setting) for setting in settings((3, 4)) if setting.colluding == colluding]
    assert attempts
    for first in attempts:
        for second in attempts:
            assert not list(two_attempts(first, second))


def attack(found: Search) -> list[str]:
    """The shortest attack there is, after a look at it; the last line is what the server knows then."""
    assert found.alone is not None
    trace = found.trace(found.alone)
    print("\n" + "\n".join(trace))
    return trace


def test_without_never_both():
    trace = attack(searched(THREE, Rule.NEVER_BOTH))
    assert trace[-4:] == [
        "B signs the survivors AB",
        "A answers for the survivors AB and the dropped A",
        "B answers for the survivors AB and the dropped A",
        "self-mask seeds known: AB; mask seeds known: A",
    ]
    assert attack(searched(THREE_WITH_ONE, Rule.NEVER_BOTH))[-1] == "self-mask seeds known: AB; mask seeds known: A"


def test_without_the_signatures_of_a_quorum():
    """Everyone is told of other survivors. A masks with B and C alone, whom the others take for dropped.

    In one attempt of three or four clients the thresholds still hold (see the end), so five it is.
    """
    five = Setting(5, 0, threshold=3, min_survivors=3, quorum=3)
    assert Search(Model(five, frozenset(), in_turn)).alone is None
    trace = attack(Search(Model(five, frozenset({Rule.CONSENTS}), in_turn)))
    assert [line for line in trace if "A is given" in line or "answers" in line] == [
        "A is given the parcels of BC, and uploads",
        "A answers for the survivors ABC and the dropped nobody",
        "B answers for the survivors ABD and the dropped CE",
        "C answers for the survivors ACD and the dropped BE",
        "D answers for the survivors ADE and the dropped BC",
        "E answers for the survivors ADE and the dropped BC",
    ]
    assert trace[-1] == "self-mask seeds known: AD; mask seeds known: BC"


def breach(first: Search, second: Search, combination: str) -> TwoAttempts:
    """The shortest two attempts that give this combination."""
    found = next(attack for attack in two_attempts(first, second) if attack.combination == combination)
    print("\n" + "\n".join([*found.trace, found.combination]))
    return found


def test_without_the_signatures_of_a_quorum_among_three():
    """A helps with a list of its own, so that C need not answer for the sum B + C, and may send its vector again.

    That and the next such sum differ by two updates of B.
    """
    found = searched(THREE, Rule.CONSENTS)
    trace = breach(found, found, "B - B'").trace
    assert [line for line in trace if line.startswith("1") and "answers" in line] == [
        "1: A answers for the survivors ABC and the dropped nobody",
        "1: B answers for the survivors BC and the dropped nobody",
    ]
    assert trace[-1] == "sent again: C"


def test_without_the_latch():
    """The difference of two answered sums is one client's update."""
    found = searched(THREE, Rule.LATCH)
    assert found.alone is None
    trace = breach(found, found, "A").trace
    answers = [line for line in trace if "answers" in line]
    assert answers == [
        "1: A answers for the survivors ABC and the dropped nobody",
        "1: B answers for the survivors ABC and the dropped nobody",
        "2: B answers for the survivors BC and the dropped nobody",
        "2: C answers for the survivors BC and the dropped nobody",
    ]
    assert trace[-1] == "sent again: BC"


@pytest.mark.parametrize(
    ("setting", "answered"),
    [
        # t and quorum at half of n + c: C, or it and the colluder, is enough to unmask A and to drop A's only peer.
        (Setting(3, 0, threshold=1, min_survivors=2, quorum=1), "AC"),
        (Setting(4, 1, threshold=2, min_survivors=3, quorum=2), "ACX"),
        # t no larger than c: the colluders' own shares are enough.
        (Setting(3, 1, threshold=1, min_survivors=3, quorum=3), None),
        (Setting(4, 2, threshold=2, min_survivors=4, quorum=4), None),
        pytest.param(Setting(4, 0, threshold=2, min_survivors=2, quorum=2), "ACD", marks=pytest.mark.slow),
    ],
    ids=label,
)
def test_with_thresholds_too_low(setting, answered):
    trace = attack(searched(setting))
    if answered is None:
        assert trace[-2:] == [
            f"A is given the parcels of B{setting.colluders}, and uploads",
            "self-mask seeds known: AB; mask seeds known: AB",
        ]
    else:
        assert f"A is given the parcels of B{setting.colluders}, and uploads" in trace
        assert trace[-2] == f"{setting.honest[-1]} answers for the survivors {answered} and the dropped B"


def test_with_two_answers():
    """A is a survivor in the first list that B answers for, and dropped in the second."""
    trace = attack(searched(THREE, Rule.ONE_ANSWER))
    assert [line for line in trace if line.startswith("B") and "answers" in line] == [
        "B answers for the survivors AB and the dropped C",
        "B answers for the survivors BC and the dropped A",
    ]
    assert trace[-1] == "self-mask seeds known: ABC; mask seeds known: A"


def test_with_substituted_keys():
    assert attack(searched(THREE, Rule.SIGNED_KEYS)) == [
        "A publishes its keys",
        "A is shown the keys of ABC, those of BC forged, and deals its parcels",
        "A is given the parcels of B, and uploads",
        "self-mask seeds known: A; mask seeds known: A",
    ]


def test_without_min_survivors():
    """A masks with nobody, and two others vouch that it is a survivor; or A is the only honest client of a plan."""
    trace = attack(searched(THREE, Rule.MIN_SURVIVORS))
    assert "A is given the parcels of nobody, and uploads" in trace
    assert not any(line.startswith("A signs") for line in trace)
    assert p_2_4_settings(3, 2) == []
    alone = attack(searched(Setting(3, 2, threshold=3, min_survivors=3, quorum=3)))
    assert alone[-2] == "A answers for the survivors AXY and the dropped nobody"


def test_with_survivors_whose_parcels_are_missing():
    trace = attack(searched(THREE, Rule.HELD))
    assert "A is given the parcels of B, and uploads" in trace
    assert "A answers for the survivors AC and the dropped B" in trace


@pytest.mark.parametrize("setting", [Setting(4, 0, 2, 2, quorum=2), Setting(4, 1, 2, 3, quorum=2)], ids=label)
def test_with_a_share_key_from_the_mask_seed(setting):
    """At the thresholds of `honest-but-curious`: the dropped clients' mask seeds open the shares sealed to them."""
    assert Search(Model(setting, frozenset(), as_prescribed)).alone is None
    trace = attack(Search(Model(setting, frozenset({Rule.SHARE_KEY}), as_prescribed)))
    assert trace[-1].endswith(f"mask seeds known: {setting.honest}")


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Rule.CONSENTS, Rule.SHARE_KEY, Rule.KEY_ROOT], ids=lambda rule: rule.name)
@pytest.mark.parametrize("setting", settings((3, 4)), ids=label)
def test_what_the_other_rules_still_hold(setting, rule):
    """Not each rule is needed in one attempt of so few clients; a rule that becomes needed here is news."""
    assert searched(setting, rule).alone is None
