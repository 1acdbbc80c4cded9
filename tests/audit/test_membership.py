"""The membership attack on scores whose answer is known; all seeds are fixed."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fedvlm_secure.audit.membership import RATE, allowed, attack, pooled
from fedvlm_secure.training import evaluate, row_losses
from tests.adapters.tiny_vlm import FakeSplit, tiny_vlm

RNG = np.random.default_rng(7)


def test_members_who_stand_out_are_found_and_counted():
    others = np.arange(5000.0)
    members = np.concatenate([np.full(30, 4994.0), np.full(70, 4990.0), np.full(100, 9999.0)])
    found = attack(members, others, 0.95)
    assert (found.members, found.others, found.mistaken, found.found) == (200, 5000, 5, 100)
    assert found.rate == 0.5
    expected = binomtest(100, 200).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert attack(members + 0.5, others, 0.95).found == 130


def test_members_like_others_are_found_as_often_as_others_are_mistaken():
    found = attack(RNG.normal(size=20000), RNG.normal(size=20000), 0.999999)
    assert found.low < RATE < found.high
    assert found.area == pytest.approx(0.5, abs=0.02)
    assert found.mistaken == 20


def test_mistaken_are_never_more_than_the_rate_whatever_the_ties():
    others = RNG.integers(0, 3, 2500).astype(float)
    found = attack(np.full(10, 2.0), others, 0.95)
    assert (found.mistaken, found.found) == (0, 0)


def test_the_area_is_that_of_pairs():
    members, others = RNG.normal(0.7, 1, 40).round(1), RNG.normal(size=60).round(1)
    pairs = np.sign(members[:, None] - others[None]).mean() / 2 + 0.5
    assert attack(members, others, 0.95).area == pytest.approx(pairs)


def test_fewer_than_a_thousand_others_give_no_rate():
    few, enough = (attack(RNG.normal(size=50), RNG.normal(size=count), 0.95) for count in (999, 1000))
    assert (few.rate, few.found, few.low) == (None, None, None)
    assert enough.mistaken == 1
    assert few.to_json()["true-positive-rate"] is None


def test_a_site_whose_scores_are_higher_does_not_make_its_rows_members():
    """Site b has nine tenths of the members and a third of the others; nobody's score knows who is a member."""
    scores = {"a": (RNG.normal(size=100), RNG.normal(size=2000)), "b": (RNG.normal(5, 1, 900), RNG.normal(5, 1, 1000))}
    careless = attack(*(np.concatenate([site[kind] for site in scores.values()]) for kind in (0, 1)), 0.95)
    members, others = pooled(scores)
    assert careless.area > 0.7
    assert attack(members, others, 0.95).area == pytest.approx(0.5, abs=0.07)
    assert (len(members), len(others)) == (150, 3000)


def test_where_sites_are_alike_in_proportion_nobody_is_left_out():
    scores = {"a": (np.arange(30.0), np.arange(20.0)), "b": (np.arange(60.0), np.arange(40.0))}
    members, others = pooled(scores)
    assert (len(members), len(others)) == (90, 60)


@pytest.mark.parametrize(("epsilon", "most"), [(0.0, RATE + 1e-5), (1.0, math.e * RATE + 1e-5), (9.0, 0.999877)])
def test_what_a_claim_allows(epsilon, most):
    assert allowed(epsilon, 1e-5) == pytest.approx(most, abs=2e-6)


def test_row_losses_are_what_the_evaluation_sums():
    model, split = tiny_vlm(), FakeSplit(7)
    losses = row_losses(model, split, batch_size=3)
    assert losses.shape == (7,)
    assert losses.sum() == pytest.approx(evaluate(model, split, batch_size=7).loss_sum, rel=1e-6)
    assert len(set(losses.round(6).tolist())) > 1
    assert not torch.is_inference_mode_enabled()
