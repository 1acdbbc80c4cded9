"""Whole runs of every strategy: what leaves the hospitals, what stays, what stands still."""

import itertools

import pytest
import safetensors.numpy
from engine_kit import ROUNDS, final_state, interrupted

from fedvlm_secure.adapters.strategies import STRATEGIES, factor_of
from fedvlm_secure.engines import local
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings

SITES = ("site-a", "site-b", "site-c", "site-d")


def at(folder, place):
    return safetensors.numpy.load_file(folder / place)


def same(left, right):
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


@pytest.fixture(params=sorted(STRATEGIES))
def finished(request, settings, tmp_path):
    strategy = request.param
    local.run(settings(f"adapter.strategy={strategy}", "training.learning-rate=0.01"), tmp_path / "run")
    return STRATEGIES[strategy], tmp_path / "run"


def test_the_server_holds_what_is_shared_and_hospitals_the_rest(finished):
    strategy, run = finished
    shared = at(run, f"coordinator/global/round-{ROUNDS:04d}.safetensors")
    assert all(strategy.ever_shared(name) for name in shared)
    standing = at(run, "sites/site-a/state/standing.safetensors")
    own = {name.removeprefix("personal.") for name in standing}
    names = own | set(shared)
    assert {name for name in names if strategy.ever_shared(name)} == set(shared)
    assert own == (names if strategy.keeps_copy else names - set(shared))


def test_a_round_moves_what_it_shares_and_nothing_else(finished):
    strategy, run = finished
    states = [at(run, f"coordinator/global/round-{place:04d}.safetensors") for place in range(ROUNDS + 1)]
    for round_index, (before, after) in enumerate(itertools.pairwise(states), start=1):
        # In the first round B is zero, and A's gradient with it, until the first step was made.
        moved = {name for name in before if (before[name] != after[name]).any()}
        assert moved == {name for name in before if strategy.shared(name, round_index)}


def test_hospitals_differ_in_what_is_personal_and_trained(finished):
    strategy, run = finished
    kept = [at(run, f"sites/{site}/state/standing.safetensors") for site in SITES]
    for name in kept[0]:
        own = name.removeprefix("personal.")
        trained = any(strategy.trained(own, round_index) for round_index in range(1, ROUNDS + 1))
        assert any((kept[0][name] != other[name]).any() for other in kept[1:]) == trained, factor_of(own)


@pytest.mark.parametrize("strategy", ["rolora", "ditto", "fedsb"])
@pytest.mark.parametrize("protocol", ["plain", "bfv"])
def test_the_protocol_changes_nothing_about_a_strategy(strategy, protocol, settings, tmp_path):
    for name in ("pairwise", protocol):
        insecure = ["policy.protocols=['plain']"] if name == "plain" else []
        local.run(settings(f"adapter.strategy={strategy}", f"aggregation.protocol={name}", *insecure), tmp_path / name)
    for site in SITES:
        place = f"sites/{site}/adapter/adapter_model.safetensors"
        assert same(at(tmp_path / "pairwise", place), at(tmp_path / protocol, place))


@pytest.mark.parametrize("strategy", ["rolora", "ditto"])
def test_an_interrupted_run_ends_where_it_would_have(strategy, settings, tmp_path):
    chosen = settings(f"adapter.strategy={strategy}")
    local.run(chosen, tmp_path / "whole")
    assert len(list(interrupted(chosen, tmp_path / "pieces", after=9))) > 1
    assert final_state(tmp_path / "pieces") == final_state(tmp_path / "whole")


@pytest.mark.parametrize(
    ("strategy", "mode", "reason"), [("ditto", "record", "without noise"), ("rolora", "client", "one size")]
)
def test_strategies_that_a_mode_of_privacy_cannot_carry_are_refused(strategy, mode, reason):
    with pytest.raises(MisuseError, match=rf"^settings: strategy = .{strategy}. .*{reason}"):
        Settings.from_tables({}, [f"adapter.strategy={strategy}", f"privacy.mode={mode}"])


def test_ditto_has_a_pull_of_its_own():
    assert Settings.from_tables({}, ["adapter.strategy=ditto"]).training.proximal > 0
    assert Settings.from_tables({}, ["adapter.strategy=ditto", "training.proximal=0.5"]).training.proximal == 0.5
    assert Settings.from_tables({}, []).training.proximal == 0
