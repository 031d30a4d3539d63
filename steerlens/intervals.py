"""Rates and scores with their 95 % intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

CONFIDENCE = 0.95
_Z = float(norm.ppf(0.5 + CONFIDENCE / 2))


class Interval(NamedTuple):
    """A measured value, between the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def rate(hits: int, n: int) -> Interval:
    """A share with Wilson's score interval, which holds at 0 and 1 too (Wilson 1927).

    >>> print(rate(0, 100))
    0.000 [0.000, 0.037]
    """
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share = hits / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # Rounding must not part the interval from a share of 0 or 1.
    return Interval(
        share, float(min(share, max(0, centre - half))), float(max(share, min(1, centre + half)))
    )


def mean(values: Float[np.ndarray, " text"], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """The mean of scores with its percentile bootstrap interval; NaN scores are left out.

    >>> print(mean(np.array([1.0, 1.0, np.nan])))
    1.000 [1.000, 1.000]
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(*[float("nan")] * 3)
    times = np.random.default_rng(seed).multinomial(
        len(known), [1 / len(known)] * len(known), resamples
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(times @ known / len(known), [tail, 1 - tail]).tolist()
    return Interval(float(known.mean()), low, high)


class Scores(NamedTuple):
    """How well a yes-or-no decision agrees with the truth."""

    f1: Interval
    precision: Interval
    recall: Interval
    balanced_accuracy: Interval
    n_positive: int
    n_negative: int


def score_decisions(
    fired_on_positive: np.ndarray, fired_on_negative: np.ndarray, *, seed: int, resamples: int
) -> Scores:
    """Scores with bootstrap intervals, resampling positives and negatives each among themselves.

    A resample of decisions is a binomial count of hits, so all of them are drawn at once.
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
        Interval(float(value[0]), *np.quantile(many, [tail, 1 - tail]).tolist())
        for value, many in zip(measured, drawn, strict=True)
    )
    return Scores(f1, precision, recall, balanced, n_positive, n_negative)


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
