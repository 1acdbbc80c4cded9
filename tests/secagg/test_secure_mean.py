"""The weighted mean is right for every dropout, and what one survivor list sums is exact."""

from itertools import combinations, product

import numpy as np
import pytest
from secagg_kit import PHASES, Federation, play

import fedvlm_secure as fs
from fedvlm_secure.errors import RoundAbortedError
from fedvlm_secure.secagg.protocols import PROTOCOLS

CLIENTS = 10
ACCURACY = 1e-5


def inputs(dimension: int, clients: int = CLIENTS, seed: int = 1) -> tuple[list[np.ndarray], list[int]]:
    """Vectors of similar norm with a common part, as updates have, and weights from 1 to 500."""
    random = np.random.default_rng(seed)
    common = random.standard_normal(dimension)
    vectors = [(common + random.standard_normal(dimension)).astype(np.float32) for _ in range(clients)]
    return vectors, [1, 500, *random.integers(1, 501, clients - 2).tolist()]


def error(result: fs.SecureMean, vectors: list[np.ndarray], weights: list[int]) -> float:
    rows = np.stack([vectors[index] for index in result.survivors]).astype(np.float64)
    mean = np.average(rows, axis=0, weights=[weights[index] for index in result.survivors])
    assert result.total_weight == sum(weights[index] for index in result.survivors)
    return float(np.linalg.norm(result.mean - mean) / np.linalg.norm(mean))


def check(vectors: list[np.ndarray], weights: list[int], dropouts: dict[int, str]) -> float:
    result = fs.secure_mean(vectors, weights, dropouts=dropouts)
    # Whoever uploaded is in the sum, whatever it did afterwards.
    gone = {index for index, phase in dropouts.items() if phase in PHASES[:3]}
    assert result.survivors == tuple(sorted(set(range(CLIENTS)) - gone))
    off = error(result, vectors, weights)
    assert off <= ACCURACY
    return off


@pytest.mark.parametrize("phase", PHASES)
def test_every_single_dropout(phase):
    vectors, weights = inputs(3000)
    for client in range(CLIENTS):
        check(vectors, weights, {client: phase})


@pytest.mark.parametrize(("first", "second"), list(product(PHASES, PHASES)))
def test_double_dropouts(first, second):
    """Each ordered pair of phases, by clients first, last and between in the order of names."""
    vectors, weights = inputs(1000)
    one, other = ((0, 9), (9, 4), (3, 0))[(PHASES.index(first) + PHASES.index(second)) % 3]
    check(vectors, weights, {one: first, other: second})


def test_full_size():
    vectors, weights = inputs(100_000)
    assert check(vectors, weights, {0: "unmask", 7: "masked-input"}) <= ACCURACY


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_every_dropout_at_full_size(phase):
    """All single dropouts at ``phase``, and all double ones of which the first leaves at ``phase``."""
    vectors, weights = inputs(100_000)
    worst = max(check(vectors, weights, {client: phase}) for client in range(CLIENTS))
    for one, other in combinations(range(CLIENTS), 2):
        for second in PHASES:
            worst = max(worst, check(vectors, weights, {one: phase, other: second}))
    assert worst <= ACCURACY


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dimension", [1, 2, 3, 32_767, 32_765, 32_769])
def test_lengths_around_a_chunk(protocol, dimension):
    vectors, weights = inputs(dimension, 4)
    result = fs.secure_mean(vectors, weights, protocol)
    assert error(result, vectors, weights) <= (ACCURACY if dimension > 10 else 1e-4)


@pytest.mark.parametrize(("value_bits", "weight_max"), [(2, 1), (6, 1), (20, 500), (24, 4096), (24, 1 << 24)])
def test_rings_of_other_widths(value_bits, weight_max):
    vectors, weights = inputs(2000)
    weights = [min(weight, weight_max) for weight in weights]
    result = fs.secure_mean(
        vectors, weights, dropouts={2: "masked-input"}, value_bits=value_bits, weight_max=weight_max
    )
    step = 8.5 / 2 ** (value_bits - 1)
    assert error(result, vectors, weights) <= 3 * step


@pytest.mark.parametrize("threat_model", ["malicious-server", "honest-but-curious"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_settings(threat_model, rounding):
    vectors, weights = inputs(500)
    result = fs.secure_mean(
        vectors, weights, threat_model=threat_model, rounding=rounding, max_corrupt=2, dropouts={0: "shares"}
    )
    assert error(result, vectors, weights) <= ACCURACY
    assert set(result.timings) == {*PHASES, "done"}
    assert set(result.transcript.bytes_per_phase()) == set(PHASES)


def test_honest_but_curious_survives_more_dropouts():
    vectors, weights = inputs(200)
    gone = dict.fromkeys(range(7), "unmask")
    with pytest.raises(RoundAbortedError):
        fs.secure_mean(vectors, weights, dropouts=gone)
    result = fs.secure_mean(vectors, weights, dropouts=gone, threat_model="honest-but-curious")
    assert len(result.survivors) == CLIENTS


def test_an_empty_update_is_summed_by_its_counters():
    federation = Federation(dimension=0)
    total = play(federation, {"c02": "masked-input"})
    decoded = federation.plan.codec.decode(total.total)
    assert decoded.participants == 4
    assert decoded.counters["weight"] == sum(federation.updates[name].counters["weight"] for name in total.survivors)
