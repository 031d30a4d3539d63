"""Intervals cover what they say they cover."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_1samp
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

from steerlens.intervals import (
    adjusted,
    detectable,
    mean,
    means,
    paired_p,
    paired_rates,
    rate,
    ratios,
    score_decisions,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (3, 30), (15, 30), (30, 30), (250, 1000)])
def test_rate_is_wilsons_interval(hits, n):
    oracle = binomtest(hits, n).proportion_ci(method="wilson")
    assert tuple(rate(hits, n)) == pytest.approx((hits / n, oracle.low, oracle.high))
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
    assert np.isnan(tuple(mean(np.array([np.nan])))).all()


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


def pairs(both, rose, fell, neither):
    before = np.repeat([True, False, True, False], [both, rose, fell, neither])
    after = np.repeat([True, True, False, False], [both, rose, fell, neither])
    return before, after


def test_paired_rates_are_newcombes():
    """The worked example of Newcombe 1998: 36 both, 12 one way, 2 the other, 0 neither."""
    assert tuple(paired_rates(*pairs(36, 12, 2, 0))) == pytest.approx(
        (0.2, 0.0569, 0.3404), abs=1e-4
    )
    swapped = paired_rates(*reversed(pairs(36, 12, 2, 0)))
    assert tuple(swapped) == pytest.approx((-0.2, -0.3404, -0.0569), abs=1e-4)


@pytest.mark.parametrize(
    "shares", [(0.2, 0.3, 0.1, 0.4), (0.02, 0.9, 0.0, 0.08), (0, 0.05, 0, 0.95)]
)
def test_paired_rates_cover_the_truth_about_95_times_in_100(shares):
    random = np.random.default_rng(0)
    truth = shares[1] - shares[2]
    found = [paired_rates(*pairs(*counts)) for counts in random.multinomial(40, shares, 1000)]
    assert np.mean([low <= truth <= high for _, low, high in found]) >= 0.93


@pytest.mark.parametrize("n", [20, 40, 120])
def test_bootstrap_means_cover_the_truth_about_95_times_in_100(n):
    """Paired differences of simulated prompts; every column is one experiment."""
    random = np.random.default_rng(1)
    n_experiments = 2000
    prompts = random.normal(0, 2, (n, n_experiments))  # what prompts differ in cancels
    before, after = (prompts + random.normal(size=prompts.shape) + shift for shift in (0, 0.5))
    found = means(after - before, seed=0)
    covered = sum(low <= 0.5 <= high for _, low, high in found)
    assert binomtest(covered, n_experiments, 0.95).pvalue > 0.001


def test_tokens_of_one_text_are_not_taken_for_independent():
    """The same 8 texts with every token counted 100 times are no better known."""
    values = np.random.default_rng(2).normal(size=(8, 1))
    once, often = (ratios(values * k, np.full((8, 1), k), seed=0)[0] for k in (1.0, 100.0))
    assert tuple(once) == pytest.approx(tuple(often))


def test_missing_scores_are_left_out_and_one_unit_has_no_interval():
    values = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [3.0, np.nan, np.nan]])
    full, single, none = means(values, seed=0)
    assert full.value == 2
    assert 1 <= full.low < 2 < full.high <= 3
    assert single.value == 5
    assert np.isnan([single.low, single.high, *none]).all()


def test_q_values_are_benjamini_and_hochbergs():
    random = np.random.default_rng(3)
    p = random.random(40) ** 2
    by_rank = np.argsort(p)
    plain = p[by_rank] * len(p) / np.arange(1, len(p) + 1)
    expected = np.empty_like(p)
    for place, index in enumerate(by_rank):
        expected[index] = min(1.0, plain[place:].min())
    assert adjusted(p) == pytest.approx(expected)
    with_gaps = np.insert(p, 7, np.nan)
    assert np.isnan(adjusted(with_gaps)[7])
    assert np.delete(adjusted(with_gaps), 7) == pytest.approx(expected)
    assert len(adjusted(np.array([]))) == 0


def test_few_of_what_is_called_real_is_false():
    """1 in 20 on average, although most of the 200 tests are of no effect."""
    random = np.random.default_rng(4)
    shares = []
    for _ in range(30):
        changes = random.normal(0, 1, (200, 30))
        changes[:40] += 1.0
        found = adjusted(np.array([paired_p(one) for one in changes])) < 0.05
        assert found[:40].sum() > 30
        shares.append(found[40:].sum() / found.sum())
    assert np.mean(shares) < 0.06


def test_paired_p_is_mcnemars_and_wilcoxons():
    rose, fell = 9, 2
    yes_or_no = np.r_[np.ones(rose), -np.ones(fell), np.zeros(20)]
    tails = sum(math.comb(11, k) for k in range(fell + 1)) * 2 / 2**11
    assert paired_p(yes_or_no) == pytest.approx(tails)
    ranks = np.array([1.0, -2, 3, 4, 5, 6]) / 10  # exact: sums of ranks of all 64 signs
    sums = [np.dot(signs, range(1, 7)) for signs in itertools.product((0, 1), repeat=6)]
    assert paired_p(ranks) == pytest.approx(2 * np.mean(np.array(sums) <= 2))
    assert paired_p(np.r_[ranks, np.nan, 0]) == paired_p(ranks)
    assert paired_p(np.zeros(4)) == 1
    assert np.isnan(paired_p(np.array([np.nan])))


@pytest.mark.parametrize("n", [6, 8, 24, 49])
def test_a_detectable_share_is_found_four_times_in_five(n):
    share = detectable(np.zeros(n), binary=True)
    found = [k for k in range(n + 1) if paired_p(np.r_[np.ones(k), np.zeros(n - k)]) <= 0.05]
    assert binom.pmf(found, n, share).sum() == pytest.approx(0.8)
    assert detectable(np.zeros(5), binary=True) == np.inf


def test_a_detectable_mean_is_found_four_times_in_five():
    random = np.random.default_rng(5)
    changes = random.normal(0, 2, 30)
    effect = detectable(changes, binary=False)
    drawn = random.normal(effect, changes.std(ddof=1), (2000, 30))
    found = ttest_1samp(drawn, 0, axis=1).pvalue < 0.05
    assert 0.77 < found.mean() < 0.83
    assert detectable(np.array([1.0, np.nan]), binary=False) == np.inf
