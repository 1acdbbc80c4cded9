"""A client's own update that cannot be sent is its caller's mistake: said so before anything is made for the plan."""

import numpy as np
import pytest
from secagg_kit import Federation, refused

import fedvlm_secure as fs
from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError, ProtocolError, RoundAbortedError

GOOD = np.zeros(40, np.float32)


@pytest.mark.parametrize(
    "update",
    [
        Update(np.full(40, np.nan), {"weight": 1}),
        Update(np.full(40, np.inf, np.float32), {"weight": 1}),
        Update(np.zeros((40, 1)), {"weight": 1}),
        *(Update(GOOD, {"weight": weight}) for weight in (0, -1, 51, 1.5, True)),
    ],
)
def test_nothing_is_sent_and_nothing_changes(update):
    federation = Federation()
    good, federation.updates["c01"] = federation.updates["c01"], update
    table = federation.table()
    client = table.clients["c01"]
    before, memory = client.to_bytes(), client.memory
    with pytest.raises(MisuseError):
        client.reply(table.request("c01"))
    assert (client.to_bytes(), client.memory) == (before, memory)
    # With the update put right, the same request is answered and the round ends well.
    federation.updates["c01"] = good
    table.clients["c01"] = federation.client("c01")
    assert len(table.finish_rightly().survivors) == 5


@pytest.mark.parametrize("update", [Update(np.zeros(39), {"weight": 1}), Update(GOOD, {"loss": 1}), Update(GOOD, {})])
def test_a_plan_for_another_vector_is_the_servers_fault(update):
    federation = Federation()
    federation.updates["c01"] = update
    table = federation.table()
    client = table.clients["c01"]
    before, memory = client.to_bytes(), client.memory
    error = refused(lambda: client.reply(table.request("c01")), "P-2.5", "server")
    assert error.round == federation.plan.place
    assert (client.to_bytes(), client.memory) == (before, memory)


@pytest.mark.parametrize(
    "values", [[0.0] * 40, np.zeros(40, np.int64), np.zeros(40, object), None, np.zeros(40, ">f8")]
)
def test_what_is_no_float_array_opens_no_session(values):
    federation = Federation()
    federation.updates["c01"] = Update(values, {"weight": 1})
    with pytest.raises(MisuseError):
        federation.client("c01")


@pytest.mark.parametrize(
    "call",
    [
        {"vectors": [GOOD] * 2},
        {"vectors": [GOOD, GOOD, np.zeros(41)]},
        {"vectors": [np.zeros((2, 2))] * 3},
        {"vectors": [np.zeros(0)] * 3},
        {"vectors": [["a", "b"]] * 3},
        {"vectors": [[1, 2]] * 3},
        {"vectors": [GOOD, GOOD, np.full(40, np.nan)]},
        {"vectors": [GOOD, GOOD, np.full(40, np.inf)]},
        {"weights": [1, 2]},
        {"weights": [1, 2, 0, 4]},
        {"weights": [1, 2, -3, 4]},
        {"weights": [1, 2, 5000, 4]},
        {"weights": [1, 2, 2.5, 4]},
        {"dropouts": {4: "keys"}},
        {"dropouts": {-1: "keys"}},
        {"dropouts": {0: "lunch"}},
        {"protocol": "pairwize"},
        {"clip_norm": 0.0},
        {"clip_norm": np.nan},
        {"threat_model": "trusting"},
        {"max_corrupt": 4},
        {"max_corrupt": -1},
        {"threshold": 2},
        {"min_survivors": 2},
        {"min_survivors": 9},
        {"rounding": "down"},
        {"value_bits": 1},
        {"weight_max": 0},
        {"value_bits": 24, "weight_max": (1 << 32) - 1, "vectors": [GOOD] * 300},
    ],
)
def test_secure_mean_says_what_to_change(call):
    with pytest.raises(MisuseError):
        fs.secure_mean(**({"vectors": [GOOD] * 4} | call))


@pytest.mark.parametrize("phase", ["keys", "shares", "masked-input", "consistency", "unmask"])
def test_too_few_survivors_end_the_round_cleanly(phase):
    vectors = [np.full(10, float(index)) for index in range(5)]
    with pytest.raises(RoundAbortedError) as refusal:
        fs.secure_mean(vectors, dropouts={0: phase, 1: phase})
    assert isinstance(refusal.value, ProtocolError)
    assert (refusal.value.phase, refusal.value.round) == (phase, (1, 1))


def test_a_failed_server_is_over():
    table = Federation().table()
    with pytest.raises(RoundAbortedError):
        table.server.end_phase()
    with pytest.raises(MisuseError):
        table.server.end_phase()
    restored = type(table.server).from_bytes(table.server.to_bytes(), table.server._identity)
    with pytest.raises(MisuseError):
        next(restored.requests())
