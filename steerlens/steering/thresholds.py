"""The thresholds that best separate two sets of similarities, found exactly."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from steerlens.errors import SteerlensError
from steerlens.steering.similarities import Standard

MOST_VALUES = 50_000_000
"""Most similarities (combinations of layers × prompts) that a search may hold in memory."""


class Similarities(NamedTuple):
    """How similar prompts are to the vector at each searched layer."""

    positive: Float[np.ndarray, "prompt layer"]
    negative: Float[np.ndarray, "prompt layer"]

    @property
    def standard(self) -> Standard:
        """What makes the layers comparable: mean and deviation at each, over both sides."""
        return Standard.of(torch.from_numpy(np.concatenate([self.positive, self.negative])))

    def __str__(self) -> str:
        return f"{len(self.positive)} positive and {len(self.negative)} negative prompts"


class Candidate(NamedTuple):
    """The best threshold of one combination of layers, on one side of it."""

    layers: tuple[int, ...]
    side: str
    """Where the condition fires: "above" or "below" the threshold."""
    threshold: float
    f1: float
    """F1 on the prompts that the threshold was chosen on."""
    margin: float
    """Half the gap between the two similarities that the threshold lies between."""


def find_thresholds(
    similarities: Similarities, layers: Sequence[int], combine: int = 1
) -> tuple[Candidate, ...]:
    """The best threshold of every combination of layers, above and below; best first, by F1.

    Every threshold that changes a decision is tried. "Any layer above" means "the largest one
    above", so a combination of layers is one more column to cut.

    Args:
        similarities: Of the positive and the negative prompts, one column for each of `layers`.
        layers: The layers' numbers, in the order of the columns.
        combine: Most layers that a candidate may combine; it fires if any of them does.

    Returns:
        One candidate for each combination and side, sorted by F1, then fewest layers, then the
        widest margin.

    >>> sides = Similarities(np.array([[0.9], [0.7]]), np.array([[0.1], [0.3]]))
    >>> best = find_thresholds(sides, layers=[4])[0]
    >>> best.layers, best.side, best.threshold, best.f1
    ((4,), 'above', 0.5, 1.0)
    """
    sizes = range(1, min(combine, len(layers)) + 1)
    n_prompts, n_combinations = (
        sum(map(len, similarities)),
        sum(comb(len(layers), k) for k in sizes),
    )
    if not sizes or n_prompts * n_combinations > MOST_VALUES:
        raise SteerlensError(
            f"got {n_combinations:,} combinations of up to {combine} of {len(layers)} layers for "
            f"{n_prompts} prompts; expected at least one, and at most {MOST_VALUES:,} "
            "combinations × prompts: give fewer layers or a smaller combine="
        )
    groups = [columns for size in sizes for columns in combinations(range(len(layers)), size)]
    candidates = []
    for side, sign in (("above", 1.0), ("below", -1.0)):
        positive, negative = (
            np.stack([(sign * group[:, list(columns)]).max(axis=1) for columns in groups], axis=1)
            for group in similarities
        )
        cuts = cuts_of(positive, negative)
        f1 = f1_of(cuts.hits, cuts.alarms, len(positive))
        f1[~cuts.distinct] = -1
        margin = np.where(f1 == f1.max(axis=0), cuts.margins, -1)  # ties: the widest gap
        best_cut = margin.argmax(axis=0), np.arange(len(groups))
        candidates += [
            Candidate(tuple(layers[c] for c in columns), side, float(cut), float(best), float(gap))
            for columns, cut, best, gap in zip(
                groups,
                sign * cuts.thresholds[best_cut],
                f1[best_cut],
                cuts.margins[best_cut],
                strict=True,
            )
        ]
    return tuple(sorted(candidates, key=lambda c: (-c.f1, len(c.layers), -c.margin)))


def threshold_of_mean(
    similarities: Similarities, layers: Sequence[int], standard: Standard
) -> tuple[Candidate, ...]:
    """The best thresholds, above and below, of the layers' mean standardised similarity.

    >>> sides = Similarities(np.array([[0.9, 3.0]]), np.array([[0.1, 1.0]]))
    >>> threshold_of_mean(sides, [4, 5], Standard((0.5, 2.0), (0.4, 1.0)))[0]
    Candidate(layers=(4, 5), side='above', threshold=0.0, f1=1.0, margin=1.0)
    """
    means = (standard.mean_of(torch.from_numpy(side)).numpy() for side in similarities)
    found = find_thresholds(Similarities(*means), [0])
    return tuple(candidate._replace(layers=tuple(layers)) for candidate in found)


def f1_of(hits: Any, alarms: Any, n_positive: int) -> Any:
    """F1 from counts: numbers, or arrays of them.

    Args:
        hits: Positives that fire.
        alarms: Negatives that fire.
        n_positive: All positives.

    >>> f1_of(hits=3, alarms=1, n_positive=4)
    0.75
    """
    return 2 * hits / (n_positive + hits + alarms)


class Cuts(NamedTuple):
    """What fires above each possible threshold; arrays [cut, column]."""

    thresholds: Float[np.ndarray, "cut column"]
    hits: Int[np.ndarray, "cut column"]
    """How many positives fire."""
    alarms: Int[np.ndarray, "cut column"]
    """How many negatives fire."""
    margins: Float[np.ndarray, "cut column"]
    """Half the gap that the threshold lies in."""
    distinct: Bool[np.ndarray, "cut column"]
    """False inside a run of equal similarities, where no threshold can cut."""


def cuts_of(
    positive: Float[np.ndarray, "positive column"], negative: Float[np.ndarray, "negative column"]
) -> Cuts:
    """All cuts between similarities; a column is one layer, or the largest of several.

    >>> cuts = cuts_of(np.array([[0.9]]), np.array([[0.1]]))
    >>> cuts.hits[:, 0].tolist(), cuts.alarms[:, 0].tolist()
    ([1, 1], [0, 1])
    """
    values = np.concatenate([positive, negative]).astype(np.float64)
    if not np.isfinite(values).all():
        raise SteerlensError(
            "got NaN or infinite similarities; expected finite numbers: check the activations"
        )
    order = np.argsort(-values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, axis=0)
    is_positive = order < len(positive)
    # A threshold below the last value lets everything fire; no gap limits where it goes.
    beyond = ranked[-1:] - (ranked[:1] - ranked[-1:]) / 10 - 1e-3
    after = np.concatenate([ranked[1:], beyond])
    margins = (ranked - after) / 2
    margins[-1] = 0
    return Cuts(
        thresholds=(ranked + after) / 2,
        hits=is_positive.cumsum(axis=0),
        alarms=(~is_positive).cumsum(axis=0),
        margins=margins,
        distinct=ranked > after,
    )


class Curve(NamedTuple):
    """Scores at every threshold that changes a decision, strictest first."""

    thresholds: Float[np.ndarray, " cut"]
    f1: Float[np.ndarray, " cut"]
    precision: Float[np.ndarray, " cut"]
    recall: Float[np.ndarray, " cut"]
    false_alarms: Float[np.ndarray, " cut"]
    """Share of negatives that fire."""


def curve_of(
    positive: Float[np.ndarray, "positive 1"],
    negative: Float[np.ndarray, "negative 1"],
    sign: float,
) -> Curve:
    """Scores at every threshold of one column.

    Args:
        positive: The positives' similarities, times `sign`.
        negative: The negatives'.
        sign: 1 where the condition fires above the threshold, −1 where below.
    """
    cuts = cuts_of(positive, negative)
    kept = cuts.distinct[:, 0]
    hits, alarms, thresholds = (
        values[kept, 0] for values in (cuts.hits, cuts.alarms, cuts.thresholds)
    )
    return Curve(
        sign * thresholds,
        f1_of(hits, alarms, len(positive)),
        hits / (hits + alarms),
        hits / len(positive),
        alarms / len(negative),
    )
