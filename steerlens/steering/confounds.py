"""What else could tell the prompts of a search apart: their length, their words, chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from steerlens.intervals import Interval, f1_difference, score_decisions
from steerlens.models.host import Model
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import TokenRow
from steerlens.steering.search_prompts import SideRows
from steerlens.steering.thresholds import Similarities, find_thresholds

CALIPER = 0.05
"""Prompts count as equally long if they differ by at most this share of the median length."""
RESAMPLES = 2000
SAME_LENGTH = "majority, prompts of equal length"
"""The baseline on the prompts that pair off in length, where length tells nothing."""

Fired = tuple[Bool[np.ndarray, " positive"], Bool[np.ndarray, " negative"]]
"""Which of the positives, and which of the negatives, a decision fires on."""


@dataclass(frozen=True, eq=False)
class Confounds:
    """Lengths of a search's prompts, and what a bag of their words decides."""

    chosen_lengths: Similarities
    """Tokens of the prompts that the condition was chosen on; one column."""
    scored_lengths: Similarities
    by_words: Fired
    """On the prompts scored: TF-IDF and logistic regression, fitted to the prompts chosen on."""

    @classmethod
    def of(cls, model: Model, chosen: SideRows, scored: SideRows) -> "Confounds":
        """Measure them; of each prompt the user's words, where they are known, else all of it."""
        lengths = [
            Similarities(*(np.array([[float(len(_words(row)))] for row in side]) for side in sides))
            for sides in (chosen, scored)
        ]
        texts = [
            [[decoded(model.tokenizer, _words(row)) for row in side] for side in sides]
            for sides in (chosen, scored)
        ]
        return cls(lengths[0], lengths[1], decided_by_words(texts[0], texts[1]))

    def by_length(self) -> Fired:
        """What the best threshold on the length alone decides, found as a condition's is."""
        best = find_thresholds(self.chosen_lengths, [0])[0]
        sign = 1 if best.side == "above" else -1
        fired = [sign * side[:, 0] > sign * best.threshold for side in self.scored_lengths]
        return fired[0], fired[1]

    def by_majority(self) -> Fired:
        """Always firing, or never: whichever has the better F1, which is always."""
        return np.ones(len(self.by_words[0]), bool), np.ones(len(self.by_words[1]), bool)

    def matched(self) -> tuple[np.ndarray, np.ndarray]:
        """The scored positives and negatives that pair off in length, by index."""
        positive, negative = (side[:, 0] for side in self.scored_lengths)
        return matched_by_length(positive, negative)


class Comparison(NamedTuple):
    """A condition beside a baseline, on the same prompts."""

    baseline: str
    condition: Interval
    """F1."""
    f1: Interval
    """The baseline's."""
    difference: Interval
    """The condition's F1 minus the baseline's."""
    n: int
    """Prompts."""


def compare(fired: Fired, confounds: Confounds, *, seed: int) -> tuple[Comparison, ...]:
    """A condition's decisions beside the baselines', all prompts first, then those of one length.

    Args:
        fired: What the condition fires on, of the prompts scored.
        confounds: Of the same prompts.
        seed: For the intervals, which resample prompts.
    """
    baselines: dict[str, Fired] = {
        "length": confounds.by_length(),
        "words": confounds.by_words,
        "majority": confounds.by_majority(),
    }
    f1 = _f1_of(fired, seed)
    found = [_beside(name, fired, f1, other, seed) for name, other in baselines.items()]
    positive, negative = confounds.matched()
    if len(positive):
        mine, majority = (
            (side[0][positive], side[1][negative]) for side in (fired, confounds.by_majority())
        )
        found.append(_beside(SAME_LENGTH, mine, _f1_of(mine, seed), majority, seed))
    return tuple(found)


def verdict(comparisons: Sequence[Comparison]) -> str:
    """What the comparisons come to.

    >>> even, better = Interval(0.0, -0.1, 0.1), Interval(0.2, 0.1, 0.3)
    >>> verdict([Comparison("length", better, better, even, 60)])
    'explained by length'
    >>> verdict([Comparison("words", better, better, better, 60)])
    'better than length and words'
    """
    not_above = {one.baseline for one in comparisons if not one.difference.low > 0}
    told = []
    if not_above & {"length", SAME_LENGTH}:
        told.append("explained by length")
    if "words" in not_above:
        told.append("no better than its words")
    if "majority" in not_above:
        told.append("no better than chance")
    return ", ".join(told) or "better than length and words"


def matched_by_length(
    positive: Float[np.ndarray, " positive"], negative: Float[np.ndarray, " negative"]
) -> tuple[np.ndarray, np.ndarray]:
    """As many positives and negatives as pair off in length, by index, pair by pair.

    >>> matched_by_length(np.array([5.0, 90.0]), np.array([40.0, 91.0, 5.0]))
    (array([0, 1]), array([2, 1]))
    """
    reach = CALIPER * float(np.median(np.concatenate([positive, negative])))
    orders = np.argsort(positive, kind="stable"), np.argsort(negative, kind="stable")
    pairs, at = [], [0, 0]
    while at[0] < len(positive) and at[1] < len(negative):
        p, n = orders[0][at[0]], orders[1][at[1]]
        if abs(positive[p] - negative[n]) <= reach:
            pairs.append((p, n))
            at = [at[0] + 1, at[1] + 1]
        else:
            at[int(positive[p] > negative[n])] += 1
    found = np.array(pairs, dtype=int).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def decided_by_words(fitted: Sequence[Sequence[str]], asked: Sequence[Sequence[str]]) -> Fired:
    """What a logistic regression on TF-IDF of words says of (positive, negative) texts.

    Args:
        fitted: Positive and negative texts to fit it to.
        asked: Positive and negative texts to decide on.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # Beginnings and ends of texts are words too: no text is without any.
    bag = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b|\A|\Z")
    labels = [True] * len(fitted[0]) + [False] * len(fitted[1])
    model = make_pipeline(bag, LogisticRegression(max_iter=1000))
    model.fit([*fitted[0], *fitted[1]], labels)
    said: Callable[[Sequence[str]], np.ndarray] = model.predict
    return said(list(asked[0])).astype(bool), said(list(asked[1])).astype(bool)


def _words(row: TokenRow) -> tuple[int, ...]:
    return row.ids[row.parts["user"] or slice(None)]


def _f1_of(fired: Fired, seed: int) -> Interval:
    return score_decisions(*fired, seed=seed, resamples=RESAMPLES).f1


def _beside(name: str, fired: Fired, f1: Interval, other: Fired, seed: int) -> Comparison:
    difference = f1_difference(fired, other, seed=seed, resamples=RESAMPLES)
    return Comparison(name, f1, _f1_of(other, seed), difference, sum(map(len, fired)))
