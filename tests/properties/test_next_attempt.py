"""After an abort in any phase, the same updates go into the next attempt under fresh keys, and the sum is exact."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_kit import Attempt, Silent, check_sum, check_what_was_revealed, federations, how_it_ends, play
from secagg_kit import PHASES, Federation

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.secagg.envelope import split
from fedvlm_secure.secagg.pairwise import messages as m


@st.composite
def aborted(draw: st.DrawFn) -> tuple[Federation, Silent]:
    """As many fall silent in one phase that the rest are too few."""
    federation = draw(federations(most_clients=9))
    plan, phase = federation.plan, draw(st.sampled_from(PHASES))
    needed = plan.threshold if phase in (m.CONSISTENCY, m.UNMASK) else plan.min_survivors
    gone = draw(st.integers(len(federation.names) - needed + 1, len(federation.names)))
    return federation, dict.fromkeys(draw(st.permutations(federation.names))[:gone], phase)


def public_material(attempt: Attempt) -> set[bytes]:
    """Every public key, commitment, check and box of an attempt, and every masked chunk."""
    found = set()
    for keys in attempt.bodies(m.KEYS, m.Keys).values():
        found |= {keys.share_key, keys.mask_key, keys.self_commitment}
    for reply in attempt.replies[m.SHARES].values():
        for data in map(bytes, split(reply)[1:]):
            parcel = m.Parcel.from_bytes(data, with_pair=len(data) > 64 + m.SHARES_BOX_BYTES)
            found |= {parcel.self_check, parcel.seed_check, parcel.shares, parcel.pair or b""}
    for reply in attempt.replies[m.MASKED_INPUT].values():
        found |= set(map(bytes, split(reply)[1:]))
    return found - {b""}


def check(federation: Federation, silent: Silent) -> None:
    clause, survivors = how_it_ends(federation, silent)
    assert clause is not None
    first = play(federation, silent)
    assert first.clause == clause
    check_what_was_revealed(federation, first, survivors)
    federation.plan = replace(federation.plan, attempt=federation.plan.attempt + 1)
    federation.memories = first.memories
    for name in first.replies[m.UNMASK]:
        renew_answered(federation, name)
    second = play(federation, {})
    assert second.clause is None
    check_sum(federation, second, set(federation.names))
    assert not public_material(first) & public_material(second)
    assert not first.seeds & second.seeds


def renew_answered(federation: Federation, name: str) -> None:
    """Whoever has answered `unmask` trains again: its old update opens no session (P-7.5), unless there is none."""
    if federation.dimension:
        with pytest.raises(MisuseError, match=r"P-7\.5"):
            federation.client(name)
        federation.updates[name] = Update(np.linspace(1, 2, federation.dimension), federation.updates[name].counters)


@settings(deadline=None, max_examples=100)
@given(aborted())
def test_the_next_attempt_is_fresh_and_exact(case):
    check(*case)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(aborted())
def test_the_next_attempt_is_fresh_and_exact_at_length(case):
    check(*case)
