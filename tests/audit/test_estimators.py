"""Bounds that hold as often as they say, on mechanisms whose ε is known; all seeds are fixed."""

import math
from bisect import bisect_left
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from fedvlm_secure.audit.canaries import likelihood_ratios
from fedvlm_secure.audit.estimators import (
    Guesses,
    gaussian_bound,
    gaussian_delta,
    gaussian_epsilon,
    guess,
    many_runs_bound,
    one_run_bound,
    one_run_p_value,
    sampled_bound,
)
from fedvlm_secure.audit.score_bounds import cosine_bound, normal_bound, normal_delta, normal_estimate
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.privacy import accounting

DELTA = 1e-5
PLAYS = 300


def separation(epsilon: float) -> float:
    """μ of the Gaussian mechanism with this ε."""
    low, high = 0.0, 10.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, DELTA) < epsilon else (low, middle)
    return high


def play(rng: np.random.Generator, epsilon: float, canaries: int, made: int) -> Guesses:
    """One run of an ideal Gaussian mechanism against an attacker who sees every canary's noisy coordinate."""
    included = rng.random(canaries) < 0.5
    return guess(rng.normal(size=canaries) + separation(epsilon) * included, included, made)


def most(confidence: float) -> int:
    """Of PLAYS true claims, no more are refuted but once in a million experiments."""
    return int(binom.isf(1e-6, PLAYS, 1 - confidence))


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("bound", [one_run_bound, gaussian_bound])
def test_a_gaussian_mechanism_is_refuted_as_rarely_as_the_confidence_says(bound, epsilon):
    rng = np.random.default_rng(int(10 * epsilon))
    plays = [play(rng, epsilon, 200, 40) for _ in range(PLAYS)]
    refuted = {guesses: bound(guesses, DELTA, 0.9) > epsilon for guesses in set(plays)}
    exceeded = sum(refuted[guesses] for guesses in plays)
    assert exceeded <= most(0.9)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_against_randomised_response_the_one_run_bound_wastes_nothing(epsilon):
    """It answers each coin truly with probability e^ε/(1+e^ε): nothing of (ε, 0) leaks more."""
    rng = np.random.default_rng(1)
    right = rng.binomial(300, 1 / (1 + math.exp(-epsilon)), PLAYS).tolist()
    refuted = {v: one_run_bound(Guesses(300, 300, v), 0.0, 0.9) > epsilon for v in set(right)}
    exceeded = sum(refuted[v] for v in right)
    assert 0.05 * PLAYS < exceeded <= most(0.9)


def test_what_delta_allows_is_not_held_against_epsilon():
    """All coins are shown with probability δ, none otherwise: (0, δ)-private, and often refuted at δ = 0."""
    rng = np.random.default_rng(2)
    plays = [Guesses(20, 20, 20 if rng.random() < 0.15 else int(rng.binomial(20, 0.5))) for _ in range(PLAYS)]
    assert sum(one_run_bound(play, 0.15, 0.97) > 0 for play in plays) <= most(0.97)
    assert sum(one_run_bound(play, 0.0, 0.97) > 0 for play in plays) > most(0.97)


@pytest.mark.parametrize(("found", "mistaken"), [(0.9, 0.1), (0.6, 0.01)])
def test_many_runs_are_refuted_as_rarely_as_the_confidence_says(found, mistaken):
    epsilon = math.log((found - DELTA) / mistaken)
    rng = np.random.default_rng(3)
    counts = zip(rng.binomial(500, found, PLAYS), rng.binomial(500, mistaken, PLAYS), strict=True)
    bounds = [many_runs_bound(int(f), 500, int(m), 500, DELTA, 0.9) for f, m in counts]
    assert sum(bound > epsilon for bound in bounds) <= most(0.9)
    assert np.median(bounds) > 0.75 * epsilon


@pytest.mark.parametrize(("epsilon", "one_run", "gaussian"), [(2.0, 0.4, 0.5), (4.0, 1.1, 1.5), (8.0, 2.2, 3.1)])
def test_a_thousand_canaries_find_what_others_report(epsilon, one_run, gaussian):
    """Medians; the figures are the `jax_privacy` auditor's at m = 1,000, δ = 1e-5 and 95 %."""
    rng = np.random.default_rng(4)
    plays = [play(rng, epsilon, 1000, 200) for _ in range(21)]
    assert one_run < np.median([one_run_bound(guesses, DELTA, 0.95) for guesses in plays]) < epsilon
    assert gaussian < np.median([gaussian_bound(guesses, DELTA, 0.95) for guesses in plays]) < epsilon


@pytest.mark.parametrize(("canaries", "cap"), [(50, 2.8), (100, 3.5), (1000, 5.8)])
def test_a_perfect_attacker_is_capped_by_the_number_of_canaries(canaries, cap):
    assert one_run_bound(Guesses(canaries, canaries, canaries), DELTA, 0.95) == pytest.approx(cap, abs=0.06)


def test_without_delta_a_perfect_attacker_has_a_closed_form():
    perfect = 0.05 ** (1 / 60)
    assert one_run_bound(Guesses(80, 60, 60), 0.0, 0.95) == pytest.approx(math.log(perfect / (1 - perfect)), abs=2e-4)


def test_the_p_value_is_the_formula_of_the_paper():
    guesses, epsilon, delta = Guesses(40, 12, 9), 0.7, 1e-3

    def tail(least: int) -> float:
        success = math.exp(epsilon) / (1 + math.exp(epsilon))
        return sum(math.comb(12, k) * success**k * (1 - success) ** (12 - k) for k in range(max(least, 0), 13))

    slack = max((tail(9 - i) - tail(9)) / i for i in range(1, 10))
    assert one_run_p_value(guesses, epsilon, delta) == pytest.approx(tail(9) + 2 * 40 * delta * slack, rel=1e-9)


@pytest.mark.parametrize(("canaries", "made", "right"), [(40, 12, 11), (200, 30, 27), (25, 20, 20)])
def test_the_gaussian_bound_is_where_the_recursion_of_the_paper_ends_at_its_cap(canaries, made, right):
    """Written down by hand, without a way out: what is refuted lies below the bound, and nothing above it."""
    normal = NormalDist()

    def excess(mu: float) -> float:
        chances, errors = {right: 0.05 * right / canaries}, {right: 0.05 * (made - right) / canaries}
        for i in reversed(range(right)):
            errors[i] = max(errors[i + 1], normal.cdf(normal.inv_cdf(chances[i + 1]) - mu))
            chances[i] = min(1 - 1e-12, chances[i + 1] + i / (made - i) * (errors[i] - errors[i + 1]))
        return chances[0] + errors[0] - made / canaries

    epsilon = gaussian_bound(Guesses(canaries, made, right), DELTA, 0.95)
    assert epsilon > 0.2
    assert excess(separation(epsilon - 0.002)) > 0 > excess(separation(epsilon + 0.002))


@pytest.mark.parametrize("right", [100, 180, 199])
def test_without_sampling_the_sampled_bound_is_the_gaussian_one(right):
    guesses = Guesses(1000, 200, right)
    assert sampled_bound(guesses, 1.0, 1, DELTA, 0.95) == pytest.approx(gaussian_bound(guesses, DELTA, 0.95), abs=0.02)


def test_a_sampled_mechanism_is_refuted_as_rarely_as_the_confidence_says():
    """Four steps at a third, scored by the likelihood ratio: more right guesses, and rarely so many as would refute."""
    rng, rate, sigma, steps = np.random.default_rng(5), 1 / 3, 0.8, 4
    epsilon = accounting.epsilon([accounting.SampledGaussian(sigma, rate, steps)], DELTA, "pld")
    right = []
    for _ in range(PLAYS):
        included = rng.random(300) < 0.5
        drawn = included & (rng.random((steps, 300)) < rate)
        releases = drawn + sigma * rng.normal(size=(steps, 300))
        right.append(guess(likelihood_ratios(releases, sigma, rate), included, 60).correct)
    least = bisect_left(
        range(60), x=True, key=lambda v: sampled_bound(Guesses(300, 60, v), rate, steps, DELTA, 0.9) > epsilon
    )
    assert sum(v >= least for v in right) <= most(0.9)
    assert least - 12 < np.median(right) < least


def test_all_right_is_worth_more_by_the_mechanisms_own_trade_off():
    guesses = Guesses(2000, 200, 200)
    by_mechanism = sampled_bound(guesses, 0.5, 20, DELTA, 0.95)
    assert by_mechanism > one_run_bound(guesses, DELTA, 0.95) + 1


@pytest.mark.parametrize("epsilon", [4.0, 8.0])
def test_normal_scores_exceed_a_true_claim_as_rarely_as_the_confidence_says(epsilon):
    rng, mu, bounds = np.random.default_rng(6), separation(epsilon), []
    for _ in range(PLAYS):
        present, absent = 3 * rng.normal(size=(2, 60))
        bounds.append(normal_bound(present + 3 * mu, absent, DELTA, 0.9))
    assert sum(bound > epsilon for bound in bounds) <= most(0.9)
    assert np.median(bounds) > epsilon / 4


def test_many_normal_scores_find_most_of_a_claim():
    rng = np.random.default_rng(8)
    present, absent = rng.normal(size=4000) + separation(4.0), rng.normal(size=4000)
    assert 3.4 < normal_bound(present, absent, DELTA, 0.95) < 4.0
    assert normal_estimate(present, absent, DELTA) == pytest.approx(4.0, abs=1.2)  # deviations that differ by 3 %


def test_scores_without_any_spread_are_beyond_what_is_told():
    assert normal_bound([1.0, 1.0], [0.0, 0.0], DELTA, 0.95) == 64.0
    assert normal_estimate([1.0, 1.0], [0.0, 0.0], DELTA) == 64.0
    assert normal_bound([0.0, 1.0], [2.0, 3.0], DELTA, 0.95) == 0.0


@pytest.mark.parametrize(("ours", "theirs"), [(1.3, 0.8), (0.8, 1.3), (1.0, 1.0 + 1e-12)])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_delta_between_two_normals_is_the_integral(ours, theirs, epsilon):
    first, second = NormalDist(0.9, ours), NormalDist(0.0, theirs)
    grid = np.linspace(-12, 12, 48001)
    densities = [np.array([each.pdf(x) for x in grid]) for each in (first, second)]
    by_hand = max(
        np.maximum(one - math.exp(epsilon) * other, 0).sum() * (grid[1] - grid[0])
        for one, other in (densities, densities[::-1])
    )
    assert normal_delta(0.9, ours, theirs, epsilon) == pytest.approx(by_hand, abs=1e-5)


def cosines(rng, canaries, size, mu):
    """Of random unit vectors with a release that adds them up under noise: the Gaussian mechanism of separation mu."""
    directions = rng.normal(size=(canaries, size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    release = mu * directions.sum(axis=0) + rng.normal(size=size)
    return directions @ release / np.linalg.norm(release)


@pytest.mark.parametrize(("epsilon", "size"), [(0.5, 3000), (2.0, 3000), (2.0, 40)])
def test_cosines_exceed_a_true_claim_as_rarely_as_the_confidence_says(epsilon, size):
    rng, mu = np.random.default_rng(5), separation(epsilon)
    bounds = [cosine_bound(cosines(rng, 20, size, mu), size, DELTA, 0.9) for _ in range(200)]
    assert binomtest(sum(bound > epsilon for bound in bounds), 200, 0.1, "greater").pvalue > 1e-6
    assert all(bound >= 0 for bound in bounds)


def test_cosines_find_most_of_what_is_there():
    rng = np.random.default_rng(6)
    assert cosine_bound(cosines(rng, 200, 20_000, separation(8.0)), 20_000, DELTA, 0.95) > 3.0
    assert cosine_bound(cosines(rng, 20, 20_000, 60.0), 20_000, DELTA, 0.95) > 15.0
    assert cosine_bound(np.ones(1), 3000, DELTA, 0.95) > 0
    assert cosine_bound(np.zeros(100), 3000, DELTA, 0.95) == 0.0


@pytest.mark.parametrize("size", [2, 3, 50])
def test_the_chance_of_a_cap_is_the_spheres(size):
    """A single canary's cosine above the k-th height refutes what that height's chance says, and no more."""
    rng = np.random.default_rng(size)
    directions = rng.normal(size=(200_000, size))
    found = directions[:, 0] / np.linalg.norm(directions, axis=1)
    for height in (0.5, 1.0):
        threshold = height / math.sqrt(size)
        chance = float((found > threshold).mean())
        many = np.where(np.arange(2000) < 2000 * 0.999, threshold + 1e-6, -1.0)
        bound = cosine_bound(many, size, DELTA, 0.95)
        assert bound >= math.log(0.99 / chance) - 0.05


def test_equal_normals_are_the_gaussian_mechanism():
    assert normal_delta(1.4, 2.0, 2.0, 1.0) == pytest.approx(gaussian_delta(0.7, 1.0), rel=1e-9)


def test_the_gaussian_conversion_is_that_of_dp_accounting():
    from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

    for sigma in (0.3, 1.0, 4.0):
        for delta in (1e-3, 1e-7):
            assert gaussian_epsilon(1 / sigma, delta) == pytest.approx(get_epsilon_gaussian(sigma, delta), abs=1e-5)


def test_clopper_and_pearson_are_those_of_scipy():
    found = binomtest(90, 100).proportion_ci(0.95, method="exact").low
    mistaken = binomtest(7, 80).proportion_ci(0.95, method="exact").high
    assert many_runs_bound(90, 100, 7, 80, 0.01, 0.95) == pytest.approx(math.log((found - 0.01) / mistaken))


def test_absences_recognised_count_as_presences_do():
    assert many_runs_bound(99, 100, 40, 100, 0.0, 0.95) == pytest.approx(many_runs_bound(60, 100, 1, 100, 0.0, 0.95))


@pytest.mark.parametrize("bound", [one_run_bound, gaussian_bound])
def test_bounds_grow_with_what_was_right_and_fall_with_the_confidence(bound):
    by_right = [bound(Guesses(500, 100, right), DELTA, 0.95) for right in range(0, 101, 5)]
    assert by_right == sorted(by_right)
    assert by_right[0] == by_right[10] == 0.0
    assert bound(Guesses(500, 100, 95), DELTA, 0.999) < bound(Guesses(500, 100, 95), DELTA, 0.9)


@pytest.mark.parametrize("bound", [one_run_bound, gaussian_bound])
def test_no_guess_and_no_right_guess_refute_nothing(bound):
    assert bound(Guesses(100, 0, 0), DELTA, 0.95) == 0.0
    assert bound(Guesses(100, 20, 0), DELTA, 0.95) == 0.0
    assert bound(Guesses(0, 0, 0), DELTA, 0.95) == 0.0


def test_nothing_seen_in_many_runs_refutes_nothing():
    assert many_runs_bound(0, 0, 0, 0, DELTA, 0.95) == 0.0
    assert many_runs_bound(0, 10, 10, 10, DELTA, 0.95) == 0.0


def test_the_highest_scores_are_guessed_in_and_the_lowest_out():
    assert guess([5.0, 1.0, 4.0, 2.0, 3.0], [True, True, False, False, True], 4) == Guesses(5, 4, 2)
    assert guess([5.0, 1.0, 4.0, 2.0, 3.0], [True, False, False, False, True], 2) == Guesses(5, 2, 2)


def test_ties_do_not_know_the_truth():
    truth = np.arange(100) < 50
    assert guess(np.zeros(100), truth, 100).correct == 0
    assert guess(np.zeros(100), ~truth, 100).correct == 100


@pytest.mark.parametrize(
    "ask",
    [
        lambda: guess([0.0, math.nan], [True, False], 2),
        lambda: guess([0.0, 1.0], [True], 2),
        lambda: guess([0.0, 1.0, 2.0], [True, False, True], 3),
        lambda: guess([0.0, 1.0], [True, False], 4),
        lambda: Guesses(10, 5, 6),
        lambda: Guesses(4, 5, 3),
        lambda: one_run_bound(Guesses(10, 5, 5), 1.0, 0.95),
        lambda: one_run_bound(Guesses(10, 5, 5), DELTA, 1.0),
        lambda: gaussian_bound(Guesses(10, 5, 5), 0.0, 0.95),
        lambda: gaussian_bound(Guesses(10, 5, 5), DELTA, 0.0),
        lambda: many_runs_bound(3, 2, 0, 5, DELTA, 0.95),
        lambda: sampled_bound(Guesses(10, 5, 5), 0.5, 3, 0.0, 0.95),
        lambda: normal_bound([1.0], [0.0, 1.0], DELTA, 0.95),
        lambda: cosine_bound([], 10, DELTA, 0.95),
        lambda: cosine_bound([1.5], 10, DELTA, 0.95),
        lambda: cosine_bound([0.5], 1, DELTA, 0.95),
        lambda: cosine_bound([math.nan], 10, DELTA, 0.95),
        lambda: normal_bound([1.0, math.inf], [0.0, 1.0], DELTA, 0.95),
    ],
)
def test_what_makes_no_sense_is_refused(ask):
    with pytest.raises(MisuseError):
        ask()
