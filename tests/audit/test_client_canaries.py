"""Canary clients in sums made by real sessions: what holds stands, what is broken is caught.

Where the system's randomness decides, a test fails less than once in a million runs.
"""

import math

import pytest

from fedvlm_secure.audit import client_canaries
from fedvlm_secure.audit.client_canaries import ClientGame, play
from fedvlm_secure.encoding import codec, noisy
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings

SURE = 1 - 1e-7
DELTA = 1e-5
COHORT = tuple(f"site-{letter}" for letter in "abcde")


def game(epsilon=8.0, rounds=2, canaries=60, protocol="pairwise", size=400):
    settings = Settings.from_tables(
        {
            "rounds": rounds,
            "privacy": {"mode": "client", "target-epsilon": epsilon},
            "aggregation": {"protocol": protocol},
        }
    )
    return ClientGame(settings, COHORT, size, canaries=canaries, unseen=1000)


@pytest.mark.parametrize("protocol", ["pairwise", "bfv"])
def test_the_claim_stands_and_canaries_are_seen(protocol):
    """The bound is far from the claim at this confidence, and far from none: ε = 30 shows."""
    scores = play(game(30.0, protocol=protocol, canaries=40))
    assert 3.0 < scores.bound(DELTA, SURE) < 30.0


def test_a_canary_is_one_clip_norm_in_every_sum_and_the_noise_is_what_is_counted_on():
    """Its update is ten long. More shares of noise than those counted on would be an eighth or more."""
    played = game(8.0, rounds=3)
    scores, deviation = play(played), played.noise_multiplier * math.sqrt(3)
    assert abs(scores.present.mean() - 3) < 6 * deviation / math.sqrt(len(scores.present))
    assert len(scores.absent) == 1000
    cross_talk = 3 * math.sqrt(played.shares / 400)
    assert scores.absent.std() == pytest.approx(math.hypot(deviation, cross_talk), rel=6 / math.sqrt(2000))
    assert abs(scores.absent.mean()) < 6 * scores.absent.std() / math.sqrt(1000)


def test_colluders_add_no_noise_and_as_many_answer_as_a_sum_must_have():
    sums = client_canaries._Sums(game().settings, COHORT, 400, 1.0)
    assert (len(sums.colluding), len(sums.honest)) == (1, 3)
    assert game().shares == 3


@pytest.mark.parametrize(("noise", "epsilon"), [(0.0, 16.0), (0.4, 4.0)])
def test_too_little_noise_is_caught(noise, epsilon):
    played = game(epsilon, rounds=1, canaries=90)
    assert play(played, noise=noise).bound(DELTA, 0.95) > epsilon


def test_nothing_is_left_behind():
    play(game(rounds=1, canaries=1), noise=0.0)
    assert codec.add_noise is noisy.add_noise


def test_nothing_is_left_behind_where_a_round_breaks(monkeypatch):
    def broken(*_):
        assert codec.add_noise is not noisy.add_noise
        raise KeyboardInterrupt

    monkeypatch.setattr(client_canaries, "run_round", broken)
    with pytest.raises(KeyboardInterrupt):
        play(game(rounds=1, canaries=1))
    assert codec.add_noise is noisy.add_noise


def test_the_number_of_sums_is_known_beforehand():
    played, heard = game(rounds=2, canaries=4), []
    scores = play(played, on_sum=lambda: heard.append(1))
    assert (played.runs, played.sums, len(heard), len(scores.present)) == (2, 4, 4, 6)


def test_settings_without_noise_in_the_sum_are_refused():
    settings = Settings.from_tables({})
    with pytest.raises(MisuseError, match="canary clients"):
        play(ClientGame(settings, COHORT, 400))
