"""Rates and scores with their 95 % intervals."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import betaincinv
from scipy.stats import binomtest, false_discovery_control, norm, t, wilcoxon

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval; unpacks into value, low and high.

    Not a tuple, which pandas would print as one.

    >>> Interval(1 / 30, 0.006, 0.167)
    0.033 [0.006, 0.167]
    """

    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    def __repr__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def columns(self, name: str) -> dict[str, float]:
        """Three columns of a tidy table: `name`, `name_low`, `name_high`.

        >>> Interval(0.5, 0.25, 0.75).columns("effect")
        {'effect': 0.5, 'effect_low': 0.25, 'effect_high': 0.75}
        """
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def rate(hits: int, n: int) -> Interval:
    """A proportion with Wilson's score interval, which is valid at 0 and 1, too (Wilson 1927).

    Args:
        hits: How many of the units have the property.
        n: All units; with 0, the interval is [0, 1] and the value NaN.


    >>> print(rate(0, 100))
    0.000 [0.000, 0.037]
    """
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0)
    ends = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / n, float(ends.low), float(ends.high))


def paired_rates(before: Bool[np.ndarray, " unit"], after: Bool[np.ndarray, " unit"]) -> Interval:
    """The change of a proportion of the same units, with Newcombe's paired score interval.

    Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635). Unlike a bootstrap interval, it has
    a width even if all units changed, or none.

    Args:
        before: Whether each unit had the property before.
        after: Whether it has it after.

    >>> print(paired_rates(np.zeros(10, bool), np.ones(10, bool)))
    1.000 [0.608, 1.000]
    """
    n = len(before)
    if n == 0:
        return Interval(float("nan"), -1.0, 1.0)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    rose, fell = int((~before & after).sum()), int((before & ~after).sum())
    first, second = rate(both + rose, n), rate(both + fell, n)
    agreement = float(both * neither - rose * fell)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0)
    margins = (both + rose) * (neither + fell) * (both + fell) * (neither + rose)
    phi = agreement / np.sqrt(margins) if margins else 0.0

    def width(a: float, b: float) -> float:
        return float(np.sqrt(max(a**2 - 2 * phi * a * b + b**2, 0)))

    change = first.value - second.value
    down = width(first.value - first.low, second.high - second.value)
    up = width(first.high - first.value, second.value - second.low)
    return Interval(change, max(change - down, -1.0), min(change + up, 1.0))


def ratios(
    sums: Float[np.ndarray, "unit column"], counts: Float[np.ndarray, "unit column"], *, seed: int
) -> list[Interval]:
    """Sum divided by count for each column, with bootstrap intervals that resample units.

    The percentiles are widened for few units (Hesterberg 2015, "expanded percentile"): with 8 units
    the intervals cover about 94 in 100, with 20, 95. One unit has no interval: its ends are NaN.

    Args:
        sums: The numerators. A unit is what was sampled independently: a prompt, not a token.
        counts: The denominators.
        seed: Seed of the draws, which all columns share.

    >>> print(ratios(np.arange(100.0)[:, None], np.ones((100, 1)), seed=0)[0])
    49.500 [44.102, 55.207]
    """
    n = (counts > 0).sum(axis=0)
    weights = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        values, drawn = sums.sum(axis=0) / counts.sum(axis=0), (weights @ sums) / (weights @ counts)
        tails = norm.cdf(-np.sqrt(n / (n - 1)) * t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    return [
        Interval(float(value), *_percentiles(draws[~np.isnan(draws)], tail))
        for value, draws, tail in zip(values, drawn.T, tails, strict=True)
    ]


def _percentiles(drawn: Float[np.ndarray, " draw"], tail: float) -> tuple[float, float]:
    if np.isnan(tail) or not len(drawn):
        return float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # an infinite value has no interval
        low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def means(values: Float[np.ndarray, "unit column"], *, seed: int) -> list[Interval]:
    """The mean of each column with its interval, as in `ratios`; NaN counts as missing.

    >>> print(means(np.arange(100.0)[:, None], seed=0)[0])
    49.500 [44.102, 55.207]
    """
    known = ~np.isnan(values)
    return ratios(np.where(known, values, 0.0), known.astype(float), seed=seed)


class Scores(NamedTuple):
    """Agreement of a yes-or-no decision with the truth."""

    f1: Interval
    precision: Interval
    recall: Interval
    balanced_accuracy: Interval
    n_positive: int
    n_negative: int


def score_decisions(
    fired_on_positive: np.ndarray, fired_on_negative: np.ndarray, *, seed: int, resamples: int
) -> Scores:
    """Scores with bootstrap intervals, resampling positives and negatives separately.

    A resample of decisions is a binomial count, so that all resamples are drawn at once.

    Args:
        fired_on_positive: The decision on each positive.
        fired_on_negative: The decision on each negative.
        seed: Seed of the resamples.
        resamples: Number of resamples.

    >>> fired = np.array([True] * 9 + [False])
    >>> score_decisions(fired, ~fired, seed=0, resamples=1000).recall.value
    0.9
    """
    n_positive, n_negative = len(fired_on_positive), len(fired_on_negative)
    hits, alarms = int(fired_on_positive.sum()), int(fired_on_negative.sum())
    random = np.random.default_rng(seed)
    drawn_hits = random.binomial(n_positive, hits / n_positive, resamples)
    drawn_alarms = random.binomial(n_negative, alarms / n_negative, resamples)
    measured = _measures(np.array([hits]), np.array([alarms]), n_positive, n_negative)
    drawn = _measures(drawn_hits, drawn_alarms, n_positive, n_negative)
    tail = (1 - CONFIDENCE) / 2
    f1, precision, recall, balanced = (
        Interval(float(value[0]), *np.quantile(draws, [tail, 1 - tail]).tolist())
        for value, draws in zip(measured, drawn, strict=True)
    )
    return Scores(f1, precision, recall, balanced, n_positive, n_negative)


def auroc(
    positive: Float[np.ndarray, " positive"],
    negative: Float[np.ndarray, " negative"],
    *,
    seed: int,
) -> Interval:
    """The probability that a positive scores above a negative, ties counted as half.

    Args:
        positive: Scores of the positives.
        negative: Scores of the negatives.
        seed: Of the bootstrap, which resamples either side.

    >>> auroc(np.array([2.0, 3.0]), np.array([0.0, 2.0]), seed=0).value
    0.875
    """
    above = np.sign(positive[:, None] - negative[None, :]) / 2 + 0.5
    random = np.random.default_rng(seed)
    weights = [random.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in above.shape]
    drawn = ((weights[0] @ above) * weights[1]).sum(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(above.mean()), float(low), float(high))


def f1_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    resamples: int,
) -> Interval:
    """F1 of one decision minus that of another on the same prompts, with a bootstrap interval.

    Prompts are resampled, positives and negatives each among themselves; both decisions share the
    draws. Drawn as counts of the four ways in which two decisions can come out.

    Args:
        first: What it fires on: Booleans for the positives, and for the negatives.
        second: The same of the other decision.
        seed: Of the draws.
        resamples: How many.

    >>> fires, never = (np.ones(20, bool), np.zeros(20, bool)), (np.zeros(20, bool),) * 2
    >>> print(f1_difference(fires, never, seed=0, resamples=100))
    1.000 [1.000, 1.000]
    """
    random = np.random.default_rng(seed)
    drawn, counted = [], []
    for one, other in zip(first, second, strict=True):
        counts = np.bincount(2 * one.astype(int) + other.astype(int), minlength=4)
        counted.append(counts[None])
        drawn.append(random.multinomial(len(one), counts / len(one), resamples))
    n_positive, n_negative = map(len, first)

    def f1(way: int, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        hits, alarms = (side[:, way] + side[:, 3] for side in (positive, negative))
        return _measures(hits, alarms, n_positive, n_negative)[0]

    def difference(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
        return f1(2, positive, negative) - f1(1, positive, negative)

    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(difference(*drawn), [tail, 1 - tail]).tolist()
    return Interval(float(difference(*counted)[0]), low, high)


def _measures(
    hits: np.ndarray, alarms: np.ndarray, n_positive: int, n_negative: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    recall = hits / n_positive
    return (
        2 * hits / (n_positive + hits + alarms),
        hits / np.maximum(hits + alarms, 1),
        recall,
        (recall + 1 - alarms / n_negative) / 2,
    )


def mean(values: Float[np.ndarray, " unit"], *, seed: int = 0) -> Interval:
    """The mean of one column with its interval; see `means`."""
    return means(values[:, None], seed=seed)[0]


POWER = 0.8
"""How often an effect has to be found to count as detectable."""


def paired_p(changes: Float[np.ndarray, " unit"]) -> float:
    """The two-sided p-value of no change, from paired changes; NaN counts as missing,
    and without any change known the value is NaN.

    Exact McNemar's test where all changes are −1, 0 or 1, as those of yes-or-no scores are;
    otherwise Wilcoxon's signed-rank test. Units that did not change say nothing: without others, 1.

    >>> paired_p(np.array([1.0, 1, 1, 1, 1, 0])), paired_p(np.array([0.1, 0.2, 0.3, 0.4]))
    (0.0625, 0.125)
    """
    known = changes[~np.isnan(changes)]
    moved = known[known != 0]
    if not len(known):
        return math.nan
    if not len(moved):
        return 1.0
    if np.isin(moved, (-1, 1)).all():
        return float(binomtest(int((moved > 0).sum()), len(moved)).pvalue)
    return float(wilcoxon(moved).pvalue)


def adjusted(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Benjamini and Hochberg's q-values (1995): adjusted for the number of tests.

    Of the tests with q below .05, at most 1 in 20 is expected to be of no effect, where tests are
    independent or depend on each other positively, as those of neighbouring cells do.

    Args:
        p_values: NaN is no test, and remains.

    >>> adjusted(np.array([0.01, 0.04, 0.03, 0.5])).round(3).tolist()
    [0.04, 0.053, 0.053, 0.5]
    """
    is_test = ~np.isnan(p_values)
    q_values = np.full(len(p_values), np.nan)
    q_values[is_test] = false_discovery_control(p_values[is_test])
    return q_values


def detectable(changes: Float[np.ndarray, " unit"], *, binary: bool) -> float:
    """The smallest true mean change that so many units would show four times in five.

    Of yes-or-no scores: the share of units which, all changing one way, McNemar's exact test at .05
    finds with a power of .8; infinite if none is large enough. Otherwise that of a paired t-test,
    (t₀.₉₇₅ + t₀.₈) · sd / √n, with the standard deviation that these changes have.

    Args:
        changes: Paired changes; NaN counts as missing.
        binary: Whether the scores are all 0 or 1.

    >>> round(detectable(np.zeros(24), binary=True), 3), detectable(np.zeros(5), binary=True)
    (0.309, inf)
    """
    known = changes[~np.isnan(changes)]
    n = len(known)
    fewest = 1 + math.ceil(-math.log2(1 - CONFIDENCE)) if binary else 2  # 2 · ½ᵏ ≤ .05
    if n < fewest:
        return math.inf
    if binary:
        return float(betaincinv(fewest, n - fewest + 1, POWER))
    quantiles = t.ppf([0.5 + CONFIDENCE / 2, POWER], n - 1)
    return float(quantiles.sum() * known.std(ddof=1) / np.sqrt(n))
