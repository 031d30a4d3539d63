"""Texts → scores: does a reply refuse, has it degenerated, how does it sound?"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from steerlens.data.prompts import as_texts
from steerlens.errors import SteerlensError, short_repr


@dataclass(frozen=True)
class Judge:
    """Scores texts; its name and version stand beside every score it gave.

    Raises if the function returns another number of scores than it was given texts.

    >>> Judge("length", lambda texts: [len(text) for text in texts])(["Hi.", "Hello."])
    array([3., 6.])
    """

    name: str
    score: Callable[[Sequence[str]], Sequence[float] | Float[np.ndarray, " text"]]
    """One number per text; NaN where a text cannot be judged."""
    version: str = "1"

    def __repr__(self) -> str:
        return f"Judge({self.name!r}, version {self.version!r})"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        texts = as_texts(texts, "texts to judge")
        found = self.score(list(texts))  # a list of its own, that it may sort or empty
        try:
            scores = np.array(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SteerlensError(
                f"the judge {self.name!r} returned {short_repr(found)} for {len(texts)} texts; "
                "expected one number per text, NaN where it has none"
            ) from error
        if scores.shape != (len(texts),):
            raise SteerlensError(
                f"the judge {self.name!r} returned shape {scores.shape} for {len(texts)} texts; "
                "expected one number per text"
            )
        return scores


def judge(name: str, function: Callable[[str], float], *, version: str = "1") -> Judge:
    """A judge made of a function of one text; of a function of a list, `Judge(name, function)`.

    >>> judge("questions", lambda text: text.count("?"))(["Why?", "So."])
    array([1., 0.])
    """
    return Judge(name, lambda texts: [float(function(text)) for text in texts], version)


class JudgeWarning(UserWarning):
    """Some texts could not be judged; their scores are NaN."""


class JudgeError(SteerlensError):
    """A judge that stopped midway; `scores` holds what it had judged, NaN elsewhere."""

    def __init__(self, message: str, scores: Float[np.ndarray, " text"]) -> None:
        super().__init__(message)
        self.scores = scores


class Failure(NamedTuple):
    """A text that a judge could not score, and why."""

    judge: str
    text: int
    error: str


class Judged(NamedTuple):
    """Scores of texts by several judges, and what went wrong."""

    scores: pd.DataFrame
    """A row for each text, a column for each judge."""
    failures: tuple[Failure, ...]


def judge_texts(judges: Sequence[Judge], texts: Sequence[str]) -> Judged:
    """Scores of every text by every judge; where a judge fails, NaN, a warning and the reason.

    A judge that raises on the whole list is asked again text by text, unless it says what it had.

    >>> judge_texts([judges.refusal, judges.sentiment], ["I love it.", ""]).scores.shape
    (2, 2)
    """
    texts = as_texts(texts, "texts to judge")
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise SteerlensError(f"the judges are named {names}; give each a name of its own")
    failures: list[Failure] = []
    scores = {judge.name: _scores(judge, texts, failures) for judge in judges}
    if failures:
        first = failures[0]
        warnings.warn(
            f"{len(failures)} of {len(texts) * len(judges)} scores are missing; the first: "
            f"{first.judge} on text {first.text}: {first.error}",
            JudgeWarning,
            stacklevel=2,
        )
    return Judged(pd.DataFrame(scores, index=range(len(texts))), tuple(failures))


def _scores(
    judge: Judge, texts: Sequence[str], failures: list[Failure]
) -> Float[np.ndarray, " text"]:
    scores, error = try_judge(judge, texts)
    missing = np.flatnonzero(np.isnan(scores)).tolist() if error else []
    told: dict[int, Exception | None] = dict.fromkeys(missing, error)
    if error and not isinstance(error, JudgeError):
        for index in told:
            [scores[index]], told[index] = try_judge(judge, [texts[index]])
    failures += [Failure(judge.name, index, reason(why)) for index, why in told.items() if why]
    return scores


def try_judge(
    judge: Judge, texts: Sequence[str]
) -> tuple[Float[np.ndarray, " text"], Exception | None]:
    """Its scores, and what it raised, if it did; NaN where it had not come to.

    A judge may be anybody's code, and the replies cost more than it.

    >>> try_judge(judges.sentiment, ["I love it."])[1] is None
    True
    """
    try:
        return judge(texts), None
    except Exception as error:
        had = error.scores if isinstance(error, JudgeError) else np.full(len(texts), np.nan)
        return had, error


def reason(error: Exception) -> str:
    """In words; those of a `JudgeError` need no class before them."""
    return str(error) if isinstance(error, JudgeError) else f"{type(error).__name__}: {error}"
