"""For any cohort, thresholds and dropouts: the integer sum over exactly the survivors, or a clean abort."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from secagg_kit import PHASES, Federation, play

from fedvlm_secure.encoding.codec import Codec
from fedvlm_secure.errors import MisuseError, RoundAbortedError
from fedvlm_secure.secagg.pairwise.rules import quorum


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Federation, dict[str, str]]:
    clients = draw(st.integers(3, 8))
    federation = Federation(
        clients=clients,
        dimension=draw(st.sampled_from([0, 1, 5, 33])),
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        max_corrupt=draw(st.integers(0, max(0, clients - 3))),
        threat_model=draw(st.sampled_from(["malicious-server", "honest-but-curious"])),
        value_bits=draw(st.sampled_from([2, 8, 20])),
        weight_max=draw(st.sampled_from([1, 50, 1 << 20])),
        seed=draw(st.integers(0, 99)),
    )
    silent = draw(st.dictionaries(st.sampled_from(federation.names), st.sampled_from(PHASES), max_size=clients))
    return federation, silent


def should_abort(federation: Federation, silent: dict[str, str]) -> bool:
    plan = federation.plan
    needed = [plan.min_survivors] * 3 + [max(quorum(plan), plan.threshold), plan.threshold]
    left = [
        sum(PHASES.index(silent.get(name, "unmask")) > number or name not in silent for name in federation.names)
        for number in range(5)
    ]
    return any(have < need for have, need in zip(left, needed, strict=True))


@settings(deadline=None, max_examples=120)
@given(rounds())
def test_the_sum_is_exact_or_the_round_aborts(case):
    federation, silent = case
    try:
        assume(federation.plan.min_survivors >= federation.policy.min_survivors)
    except MisuseError:  # three clients of which two collude, and the like
        assume(False)
    encoded, encode = [], Codec.encode

    def remember(codec, update):
        result = encode(codec, update)
        encoded.append((update, result.integers.copy()))
        return result

    Codec.encode = remember
    try:
        total = play(federation, silent)
    except RoundAbortedError:
        assert should_abort(federation, silent)
        return
    finally:
        Codec.encode = encode
    assert not should_abort(federation, silent)
    survivors = tuple(
        name for name in federation.names if PHASES.index(silent.get(name, "unmask")) > PHASES.index("masked-input")
    )
    assert total.survivors == survivors
    assert set(total.dropped) == set(federation.names) - set(survivors)
    mine = [integers for update, integers in encoded if any(update is federation.updates[name] for name in survivors)]
    assert len(mine) == len(survivors)
    np.testing.assert_array_equal(total.total, sum(mine))
