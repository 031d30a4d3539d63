"""Intervals cover what they say they cover."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

from steerlens.intervals import mean, rate, score_decisions


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (3, 30), (15, 30), (30, 30), (250, 1000)])
def test_rate_is_wilsons_interval(hits, n):
    oracle = binomtest(hits, n).proportion_ci(method="wilson")
    assert rate(hits, n) == pytest.approx((hits / n, oracle.low, oracle.high))
    assert 0 <= rate(hits, n).low <= rate(hits, n).value <= rate(hits, n).high <= 1


def test_rate_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    for truth in (0.02, 0.3, 0.9):
        counts = random.binomial(120, truth, 2000)
        covered = [rate(int(k), 120).low <= truth <= rate(int(k), 120).high for k in counts]
        assert 0.92 <= np.mean(covered) <= 0.98


def test_the_mean_is_within_its_interval_and_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    drawn = [mean(random.exponential(2, 80), seed=seed) for seed in range(400)]
    assert all(one.low <= one.value <= one.high for one in drawn)
    assert 0.91 <= np.mean([one.low <= 2 <= one.high for one in drawn]) <= 0.98


def test_scores_that_are_missing_do_not_count():
    assert mean(np.array([1.0, np.nan, 3.0])) == mean(np.array([1.0, 3.0]))
    assert np.isnan(mean(np.array([np.nan]))).all()


def test_scores_are_scikit_learns():
    random = np.random.default_rng(1)
    positive, negative = random.random(80) < 0.8, random.random(130) < 0.2
    scores = score_decisions(positive, negative, seed=0, resamples=500)
    truth = np.r_[np.ones(80), np.zeros(130)]
    fired = np.r_[positive, negative]
    for measured, oracle in (
        (scores.f1, f1_score),
        (scores.precision, precision_score),
        (scores.recall, recall_score),
        (scores.balanced_accuracy, balanced_accuracy_score),
    ):
        assert measured.value == pytest.approx(oracle(truth, fired))
        assert measured.low <= measured.value <= measured.high


def test_counting_draws_the_bootstrap_distribution_of_resampled_rows():
    """Drawing the number of hits is drawing the rows: same mean and spread of F1."""
    random = np.random.default_rng(2)
    positive, negative = random.random(60) < 0.7, random.random(60) < 0.3
    scores = score_decisions(positive, negative, seed=0, resamples=20_000)
    drawn = []
    for _ in range(4000):
        p, n = random.choice(positive, 60), random.choice(negative, 60)
        drawn.append(2 * p.sum() / (60 + p.sum() + n.sum()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert scores.f1.low == pytest.approx(low, abs=0.01)
    assert scores.f1.high == pytest.approx(high, abs=0.01)


def test_nothing_fires_is_a_score_of_zero_not_an_error():
    scores = score_decisions(np.zeros(5, bool), np.zeros(5, bool), seed=0, resamples=10)
    assert scores.f1.value == scores.precision.value == scores.recall.value == 0
    assert scores.balanced_accuracy.value == 0.5
