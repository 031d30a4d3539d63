"""AxBench's three judges, without an endpoint: is the concept there, is it an answer, is it fluent?

Each is a probability from one number, by a logistic fitted to texts of which the answer is known,
and comes with its AUROC on others of these.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit
from scipy.stats import hmean

from steerlens.data.axbench import ConceptRows
from steerlens.errors import SteerlensError
from steerlens.intervals import Interval, auroc
from steerlens.judges.fluency import degenerate
from steerlens.judges.models import bits_per_character
from steerlens.models.host import Model

SCALE = 2.0
"""The best score, as in AxBench; 0 is the worst."""
GOLD = 0.9
"""Least AUROC, on training texts, of a judge of a concept."""
FOR_JUDGES = 3
"""Each third negative of training teaches the judge, and no vector is made from it."""


class Logistic(NamedTuple):
    """The probability of one of two kinds, from a number."""

    middle: float
    steepness: float
    auroc: Interval

    def __call__(self, values: Float[np.ndarray, " text"]) -> Float[np.ndarray, " text"]:
        """Probabilities; 0 where there is no number."""
        return np.nan_to_num(expit(self.steepness * (values - self.middle)))


def told_apart(
    right: Float[np.ndarray, " right"], wrong: Float[np.ndarray, " wrong"], *, seed: int
) -> Logistic:
    """A logistic fitted to every other number of both kinds; its AUROC is on the rest.

    >>> found = told_apart(np.arange(4.0, 8.0), np.arange(4.0), seed=0)
    >>> round(found.middle, 1), found.auroc.value
    (3.0, 1.0)
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, needed only here

    fitted = np.concatenate([right[::2], wrong[::2]])
    labels = np.repeat([1, 0], [len(right[::2]), len(wrong[::2])])
    size = float(fitted.std()) or 1.0
    found = LogisticRegression(class_weight="balanced").fit(fitted[:, None] / size, labels)
    steepness = float(found.coef_[0, 0]) / size
    middle = -float(found.intercept_[0]) / (steepness or 1.0)
    return Logistic(middle, steepness, auroc(right[1::2], wrong[1::2], seed=seed))


class ConceptJudge(NamedTuple):
    """Whether texts show a concept: by their words, as held-out texts taught it."""

    score: Callable[[Sequence[str]], Float[np.ndarray, " text"]]
    """Probabilities."""
    auroc: Interval
    """On the concept's training texts, of which the judge has seen none."""


def concept_judge(concept: ConceptRows, *, seed: int) -> ConceptJudge:
    """TF-IDF of words and signs, and logistic regression, on texts that no vector is made from.

    Those are the rows of evaluation, and a third of the negatives of training.

    Args:
        concept: From `read_axbench`.
        seed: Of the interval.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    shown = concept.eval_positive
    not_shown = [*concept.eval_negative, *concept.train_negative[::FOR_JUDGES]]
    model = make_pipeline(
        TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=3000, class_weight="balanced"),
    )
    model.fit([*shown, *not_shown], [1] * len(shown) + [0] * len(not_shown))

    def score(given: Sequence[str]) -> Float[np.ndarray, " text"]:
        return np.asarray(model.predict_proba(list(given))[:, 1])

    gold = [score(side) for side in (concept.train_positive, negatives_for_vectors(concept))]
    return ConceptJudge(score, auroc(*gold, seed=seed))


def negatives_for_vectors(concept: ConceptRows) -> list[str]:
    """The negatives of training that teach no judge."""
    return [text for place, text in enumerate(concept.train_negative) if place % FOR_JUDGES]


class ReplyJudges(NamedTuple):
    """Whether replies answer their instruction, and whether they are fluent."""

    model: Model
    answers: Logistic
    """From how many bits per character the own instruction saves against another one."""
    fluent: Logistic
    """From the bits per character that the unsteered model finds in a reply, negative."""

    def score(
        self, concept: ConceptJudge, prompts: Sequence[str], replies: Sequence[str]
    ) -> list[dict[str, float]]:
        """Each reply's scores from 0 to 2: concept, instruction, fluency, and all three.

        The last, `score`, is their harmonic mean. A degenerate reply has 0 for fluency.
        """
        own, other = bits(self.model, prompts, replies)
        whole = np.array([not degenerate(reply) for reply in replies])
        parts = SCALE * np.stack(
            [concept.score(replies), self.answers(other - own), self.fluent(-own) * whole], axis=1
        )
        together = np.where(parts.min(axis=1) > 0, hmean(np.maximum(parts, 1e-9), axis=1), 0.0)
        names = ("concept", "instruction", "fluency", "score")
        rows = np.column_stack([parts, together]).round(4).tolist()
        return [dict(zip(names, row, strict=True)) for row in rows]


def reply_judges(
    model: Model, prompts: Sequence[str], replies: Sequence[str], *, seed: int
) -> ReplyJudges:
    """Judges taught by unsteered replies: beside another instruction, and with words shuffled.

    Args:
        model: The unsteered model judges.
        prompts: Instructions other than those that are judged later.
        replies: The unsteered model's.
        seed: Of the shuffling and the intervals.
    """
    whole = [number for number, reply in enumerate(replies) if len(reply.split()) > 1]
    if len(whole) < 4:
        raise SteerlensError(
            f"got {len(whole)} replies of more than one word to {len(prompts)} instructions from "
            f"the unsteered {model.cfg.model_name}; its judges need at least 4"
        )
    prompts, replies = [prompts[one] for one in whole], [replies[one] for one in whole]
    turned = [*prompts[1:], prompts[0]]
    own, other = bits(model, prompts, replies)
    wrong_own, wrong_other = bits(model, turned, replies)
    broken, _ = bits(model, prompts, [_shuffled(reply, seed) for reply in replies])
    return ReplyJudges(
        model,
        told_apart(other - own, wrong_other - wrong_own, seed=seed),
        told_apart(-own, -broken, seed=seed),
    )


def bits(
    model: Model, prompts: Sequence[str], replies: Sequence[str]
) -> tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]:
    """Bits per character of the replies: after their own prompts, and each after another one."""
    different = list(dict.fromkeys(prompts))
    following = dict(zip(different, [*different[2:], *different[:2]], strict=True))
    first = bits_per_character(model, prompts)(replies)
    return first, bits_per_character(model, [following[one] for one in prompts])(replies)


def _shuffled(text: str, seed: int) -> str:
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)
