"""Client-level noise through whole rounds: as much as was planned whoever drops out, and none where none was.

Statistical bounds alarm falsely with a chance of at most 1e-8 each.
"""

import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from secagg_kit import Federation, refused

import fedvlm_secure as fs
from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError, PolicyRefusalError
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.plan import propose
from fedvlm_secure.secagg.policy import Policy
from fedvlm_secure.secagg.session import SERVER

FALSE_ALARM = 1e-8
SIZE, CLIP, Z = 6000, 50.0, 0.8
DROPOUTS = {
    "pairwise": [{}, {4: "masked-input"}, {0: "masked-input", 5: "shares"}, {1: "unmask", 2: "masked-input"}],
    "bfv": [{}, {4: "input"}, {0: "input", 5: "input"}],
}
LAYOUT = VectorLayout(64, (Counter("weight", 1),), 20, 1)
FEDERATION = Federation(clients=6)


def vectors(clients: int = 6) -> list[np.ndarray]:
    generator = np.random.default_rng()
    drawn = [generator.normal(size=SIZE) for _ in range(clients)]
    return [CLIP * 0.9 * each / np.linalg.norm(each) for each in drawn]


def noisy_mean(given, protocol, dropouts=None, noise=Z, **params):
    max_corrupt = 1 if protocol == "pairwise" else 0
    return fs.secure_mean(
        given,
        protocol=protocol,
        dropouts=dropouts,
        clip_norm=CLIP,
        noise_multiplier=noise,
        **{"min_survivors": 4, "max_corrupt": max_corrupt} | params,
    )


@pytest.mark.parametrize(
    ("protocol", "dropouts"), [(p, each) for p, cases in DROPOUTS.items() for each in cases], ids=str
)
def test_the_noise_of_the_mean_is_as_planned_down_to_min_survivors(protocol, dropouts):
    given = vectors()
    found = noisy_mean(given, protocol, dropouts)
    survivors = len(found.survivors)
    assert found.total_weight == survivors >= 4
    noise = (found.mean - np.mean([given[index] for index in found.survivors], axis=0)) * survivors
    deviation = Z * CLIP / math.sqrt(3) * math.sqrt(survivors)  # three of at least four: one may know its own
    assert FALSE_ALARM < stats.chi2.cdf(float(np.sum((noise / deviation) ** 2)), SIZE) < 1 - FALSE_ALARM
    assert abs(noise.sum()) / deviation / math.sqrt(SIZE) < 6
    assert stats.kstest(noise / deviation, "norm").pvalue > FALSE_ALARM
    assert deviation >= Z * CLIP  # what the accounting counts on, at the fewest survivors and above


def test_little_noise_leaves_the_mean_and_none_leaves_it_alone():
    given = vectors()
    exact = np.mean(given, axis=0)
    for protocol in ("pairwise", "bfv"):
        slight = noisy_mean(given, protocol, noise=1e-6).mean
        none = noisy_mean(given, protocol, noise=0.0).mean
        # At 20 bits a step is 8.5·c/√d/2^19, which dwarfs noise of this size; rounding remains.
        step = 8.5 * CLIP / math.sqrt(SIZE) / (1 << 19)
        assert np.abs(none - exact).max() < 2 * step * math.sqrt(math.log(SIZE))
        assert 0 < np.abs(slight - exact).max() < 30 * step


def test_clipping_holds_under_noise():
    long = [1000 * each for each in vectors()]
    found = noisy_mean(long, "pairwise", noise=0.01).mean
    clipped = np.mean([CLIP * each / np.linalg.norm(each) for each in long], axis=0)
    deviation = 0.01 * CLIP / math.sqrt(3 * 6)
    assert np.linalg.norm(found - clipped) < 2 * deviation * math.sqrt(SIZE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "ckks"}, "modulus"),
        ({"protocol": "plain"}, "single vectors"),
        ({"rounding": "nearest"}, "rounding"),
        ({"weights": [1] * 6}, "weights"),
        ({"clip_norm": None}, "clip_norm"),
        ({"noise": -1.0}, "noise_multiplier"),
        ({"noise": math.nan}, "noise_multiplier"),
        ({"noise": 1e12}, "cannot be drawn"),
        ({"protocol": "bfv", "noise": 1e4}, "lower the noise"),
    ],
    ids=str,
)
def test_what_noise_cannot_go_with_is_refused(changes, said):
    arguments = {"protocol": "pairwise", "weights": None, "clip_norm": CLIP, "noise": Z} | changes
    noise = arguments.pop("noise")
    with pytest.raises(MisuseError, match=said):
        fs.secure_mean(vectors(), noise_multiplier=noise, **arguments)


def plan_with(multiplier: float, **changes):
    plan = propose(
        run=bytes(16),
        round=1,
        attempt=1,
        cohort=FEDERATION.plan.cohort,
        layout=LAYOUT,
        clip_norm=1.0,
        roster=FEDERATION.roster.hash,
        model=FEDERATION.plan.model,
        noise_multiplier=multiplier,
    )
    return replace(plan, **changes)


def client(floor: float = 0.0) -> PairwiseClient:
    party = FEDERATION.party("c01", policy=Policy(least_noise_multiplier=floor))
    return PairwiseClient(party, Update(np.zeros(LAYOUT.update), {"weight": 1}))


@pytest.mark.parametrize(("planned", "floor", "accepted"), [(1.0, 1.0, True), (0.999, 1.0, False), (0.0, 0.1, False)])
def test_less_noise_than_the_floor_is_refused(planned, floor, accepted):
    request = FEDERATION.says(m.KEYS, "c01", plan_with(planned), plan_with(planned))
    if accepted:
        assert client(floor).reply(request)
        return
    with pytest.raises(PolicyRefusalError) as refusal:
        client(floor).reply(request)
    assert (refusal.value.clause, refusal.value.party) == ("P-2.6", SERVER)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": struct.pack(">d", math.nan)},
        {"noise": struct.pack(">d", -1.0)},
        {"noise": struct.pack(">d", math.inf)},
        {"noise": struct.pack(">d", 1e-300)},
        {"noise": struct.pack(">d", 1e300)},
        {"noise": struct.pack(">d", 1e4)},  # needs a larger ring than the plan's
        {"ring_bits": LAYOUT.ring_bits(6)},  # has no room for the noise
        {"rounding": "nearest"},
        {"layout": replace(LAYOUT, weight_max=2, counters=(Counter("weight", 2),))},
        {"layout": replace(LAYOUT, counters=(*LAYOUT.counters, Counter("right", 1)))},
    ],
    ids=str,
)
def test_a_plan_whose_noise_does_not_fit_is_refused(changes):
    lie = plan_with(1.0, **changes)
    assert lie != plan_with(1.0)
    refused(lambda: client().reply(FEDERATION.says(m.KEYS, "c01", lie, lie)), "P-2.5", SERVER)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "ckks"},
        {"protocol": "plain"},
        {"layout": replace(LAYOUT, counters=(*LAYOUT.counters, Counter("right", 1)))},
    ],
    ids=str,
)
def test_what_else_noise_cannot_go_with(changes):
    """Where another rule would refuse the plan as well."""
    plan_with(1.0).check_fits()
    with pytest.raises(MisuseError):
        plan_with(1.0, **changes).check_fits()


def test_noise_is_bound_into_the_plans_hash():
    assert plan_with(1.0).hash != plan_with(1.0, noise=struct.pack(">d", 2.0)).hash


def test_two_encodings_of_one_update_have_other_noise():
    codec, update = plan_with(1.0).codec, Update(np.zeros(LAYOUT.update), {"weight": 1})
    first, second = (codec.encode(update).integers[: LAYOUT.update] for _ in range(2))
    assert np.count_nonzero(first == second) < 3
