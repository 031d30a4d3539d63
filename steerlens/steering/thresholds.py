"""The thresholds that best tell two kinds of similarities apart, found exactly."""

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from steerlens.errors import SteerlensError

MOST_VALUES = 50_000_000
"""Similarities, combinations of layers times prompts, that a search may hold in memory."""


class Similarities(NamedTuple):
    """How similar prompts are to the vector at each searched layer."""

    positive: Float[np.ndarray, "prompt layer"]
    negative: Float[np.ndarray, "prompt layer"]

    def __str__(self) -> str:
        return f"{len(self.positive)} positive and {len(self.negative)} negative prompts"


class Candidate(NamedTuple):
    """The best cut of one combination of layers in one direction."""

    layers: tuple[int, ...]
    side: str
    """ "above" or "below"."""
    threshold: float
    f1: float
    """On the prompts it was chosen on."""
    margin: float
    """Half the gap between the two similarities that the threshold lies between."""


def find_thresholds(
    similarities: Similarities, layers: Sequence[int], combine: int = 1
) -> tuple[Candidate, ...]:
    """The best cut of every combination of up to `combine` layers, both ways; best first.

    "Any layer above" is "the largest one above", so a combination is one more column to cut.
    """
    sizes = range(1, min(combine, len(layers)) + 1)
    rows, columns_made = sum(map(len, similarities)), sum(comb(len(layers), k) for k in sizes)
    if not sizes or rows * columns_made > MOST_VALUES:
        raise SteerlensError(
            f"got {columns_made:,} combinations of up to {combine} of {len(layers)} layers, for "
            f"{rows} prompts; expected at least one, and at most {MOST_VALUES:,} for all prompts "
            "together: give fewer layers or a smaller combine="
        )
    groups = [columns for size in sizes for columns in combinations(range(len(layers)), size)]
    found = []
    for side, sign in (("above", 1.0), ("below", -1.0)):
        positive, negative = (
            np.stack([(sign * group[:, list(columns)]).max(axis=1) for columns in groups], axis=1)
            for group in similarities
        )
        cuts = cuts_of(positive, negative)
        f1 = f1_of(cuts.hits, cuts.alarms, len(positive))
        f1[~cuts.distinct] = -1
        margin = np.where(f1 == f1.max(axis=0), cuts.margins, -1)  # ties: the widest gap
        at = margin.argmax(axis=0), np.arange(len(groups))
        found += [
            Candidate(tuple(layers[c] for c in columns), side, float(cut), float(best), float(gap))
            for columns, cut, best, gap in zip(
                groups, sign * cuts.thresholds[at], f1[at], cuts.margins[at], strict=True
            )
        ]
    return tuple(sorted(found, key=lambda c: (-c.f1, len(c.layers), -c.margin)))


def f1_of(hits: Any, alarms: Any, n_positive: int) -> Any:
    """Numbers or arrays of them."""
    return 2 * hits / (n_positive + hits + alarms)


class Cuts(NamedTuple):
    """What fires above each of the possible thresholds, column by column."""

    thresholds: np.ndarray
    hits: np.ndarray
    alarms: np.ndarray
    margins: np.ndarray
    distinct: np.ndarray
    """False inside a run of equal similarities, where no threshold can cut."""


def cuts_of(positive: np.ndarray, negative: np.ndarray) -> Cuts:
    """All cuts between similarities; each column is one layer, or the largest of several."""
    values = np.concatenate([positive, negative]).astype(np.float64)
    if not np.isfinite(values).all():
        raise SteerlensError("the similarities hold NaN or infinite values; check the activations")
    order = np.argsort(-values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, axis=0)
    is_positive = order < len(positive)
    # Below the last value everything fires; a threshold there has no neighbour to keep away from.
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
