"""A vector that was answered for is never sent again (P-7.5): two such sums may differ by one client's update."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_kit import Federation

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.session import Memory


def after_a_round(dimension: int = 40) -> tuple[Federation, Memory]:
    federation = Federation(dimension=dimension)
    table = federation.table()
    table.finish()
    return federation, table.clients["c01"].memory


def test_memory_names_the_plan_and_the_update():
    federation, memory = after_a_round()
    assert memory.begun == {federation.plan.run.hex(): (3, 2)}
    assert len(memory.answered) == 1
    table = federation.table()
    table.finish()
    client = table.clients["c01"]
    assert client.memory == memory


@pytest.mark.parametrize("disguise", ["itself", "a copy", "other weight", "float64", "negative zeros"])
def test_an_answered_update_opens_no_session(disguise):
    federation = Federation()
    federation.updates["c01"].values[:3] = 0.0
    table = federation.table()
    table.finish()
    memory, values = table.clients["c01"].memory, federation.updates["c01"].values
    weight = 2 if disguise == "other weight" else 1
    if disguise == "float64":
        values = values.astype(np.float64)
    if disguise == "negative zeros":
        values = np.where(values == 0, -values, values)
    if disguise == "a copy":
        values = values[::-1].copy()[::-1]
    with pytest.raises(MisuseError, match=r"P-7\.5"):
        PairwiseClient(federation.party("c01"), Update(values, {"weight": weight}), memory)


def test_a_new_update_and_an_empty_one_do():
    federation, memory = after_a_round()
    other = Update(federation.updates["c01"].values + np.float32(1), {"weight": 1})
    PairwiseClient(federation.party("c01"), other, memory)
    federation, memory = after_a_round(dimension=0)
    assert memory.answered == ()
    PairwiseClient(federation.party("c01"), federation.updates["c01"], memory)


def test_before_the_answer_the_update_may_go_into_a_new_attempt():
    federation = Federation()
    table = federation.table().play_until("unmask")
    assert table.clients["c01"].memory.answered == ()
    federation.memories = {name: client.memory for name, client in table.clients.items()}
    federation.plan = replace(federation.plan, attempt=3)
    federation.table().finish_rightly()


def test_the_old_attempt_does_not_come_back_after_the_new_one():
    """Two uploads of one vector in two attempts, both ready to unmask: only the later may be answered."""
    federation = Federation()
    first = federation.table().play_until("unmask")
    request, saved = first.request("c01"), first.clients["c01"].to_bytes()
    federation.memories = {name: client.memory for name, client in first.clients.items()}
    federation.plan = replace(federation.plan, attempt=3)
    second = federation.table()
    second.finish_rightly()
    now = second.clients["c01"].memory
    with pytest.raises(MisuseError, match=r"P-7\.5"):
        PairwiseClient.from_bytes(saved, federation.party("c01"), federation.updates["c01"], now)
    # It would answer: only the memory stands in the way, which is why a client restores with its own.
    assert PairwiseClient.from_bytes(saved, federation.party("c01"), federation.updates["c01"]).reply(request)


def test_training_in_place_between_two_phases_is_noticed():
    federation = Federation()
    table = federation.table().play_until("masked-input")
    client, request = table.clients["c01"], table.request("c01")
    before = client.to_bytes()
    federation.updates["c01"].values[0] += 1
    with pytest.raises(MisuseError):
        client.reply(request)
    assert client.to_bytes() == before
    with pytest.raises(MisuseError):
        PairwiseClient.from_bytes(before, federation.party("c01"), federation.updates["c01"])


def test_after_the_upload_the_latch_names_what_was_sent():
    federation = Federation()
    table = federation.table().play_until("consistency")
    sent = Update(federation.updates["c01"].values.copy(), {"weight": 1})
    federation.updates["c01"].values[:] = 0
    table.finish()
    with pytest.raises(MisuseError, match=r"P-7\.5"):
        PairwiseClient(federation.party("c01"), sent, table.clients["c01"].memory)
