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
    """Scores texts: a function with a name and a version, which are reported with its scores.

    Args:
        name: A short name, such as "refusal".
        score: `(texts) -> scores`, one number per text; NaN where a text cannot be judged.
        version: What changes the scores, such as a model's weights.

    Raises:
        SteerlensError: When called, if the function does not return one number per text.

    >>> Judge("length", lambda texts: [len(text) for text in texts])(["Hi.", "Hello."])
    array([3., 6.])
    """

    name: str
    score: Callable[[Sequence[str]], Sequence[float] | Float[np.ndarray, " text"]]
    version: str = "1"

    def __repr__(self) -> str:
        return f"Judge({self.name!r}, version {self.version!r})"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        texts = as_texts(texts, "texts to judge")
        result = self.score(list(texts))  # a copy, which the function may sort or empty
        try:
            scores = np.array(result, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SteerlensError(
                f"the judge {self.name!r} returned {short_repr(result)} for {len(texts)} texts; "
                "expected one number per text, NaN where it has none"
            ) from error
        if scores.shape != (len(texts),):
            raise SteerlensError(
                f"the judge {self.name!r} returned shape {scores.shape} for {len(texts)} texts; "
                "expected one number per text"
            )
        return scores


def judge(name: str, function: Callable[[str], float], *, version: str = "1") -> Judge:
    """A judge made of a function of one text; for a function of a list, use `Judge`.

    Args:
        name: The judge's name.
        function: `(text) -> score`; NaN where the text cannot be judged.
        version: What changes the scores.

    >>> judge("questions", lambda text: text.count("?"))(["Why?", "So."])
    array([1., 0.])
    """
    return Judge(name, lambda texts: [float(function(text)) for text in texts], version)


class JudgeWarning(UserWarning):
    """Some texts could not be judged; their scores are NaN."""


class JudgeError(SteerlensError):
    """A judge that stopped midway; `scores` holds the scores so far, NaN elsewhere."""

    def __init__(self, message: str, scores: Float[np.ndarray, " text"]) -> None:
        super().__init__(message)
        self.scores = scores


class Failure(NamedTuple):
    """A text that a judge could not score, and why."""

    judge: str
    text: int
    """The text's index."""
    error: str


class Judged(NamedTuple):
    """Scores of texts by several judges, and the texts that could not be scored."""

    scores: pd.DataFrame
    """A row for each text, a column for each judge."""
    failures: tuple[Failure, ...]


def judge_texts(judges: Sequence[Judge], texts: Sequence[str]) -> Judged:
    """Scores of every text by every judge; where a judge fails, NaN, a warning and the reason.

    A judge that raises on the whole list is called again text by text, unless its `JudgeError`
    holds the scores so far.

    Args:
        judges: Judges of different names.
        texts: The texts, such as `Replies`.

    >>> judge_texts([judges.refusal, judges.sentiment], ["I love it.", ""]).scores.shape
    (2, 2)
    """
    texts = as_texts(texts, "texts to judge")
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise SteerlensError(f"got judges named {names}; expected a name of its own for each")
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
    errors: dict[int, Exception | None] = dict.fromkeys(missing, error)
    if error and not isinstance(error, JudgeError):
        for index in errors:
            [scores[index]], errors[index] = try_judge(judge, [texts[index]])
    failures += [Failure(judge.name, index, reason(why)) for index, why in errors.items() if why]
    return scores


def try_judge(
    judge: Judge, texts: Sequence[str]
) -> tuple[Float[np.ndarray, " text"], Exception | None]:
    """A judge's scores and the error it raised, if any; NaN for texts that it did not score.

    A judge may be a user's code, and its error must not cost the replies.

    Args:
        judge: The judge.
        texts: The texts to score.

    >>> try_judge(judges.sentiment, ["I love it."])[1] is None
    True
    """
    try:
        return judge(texts), None
    except Exception as error:
        scored = error.scores if isinstance(error, JudgeError) else np.full(len(texts), np.nan)
        return scored, error


def reason(error: Exception) -> str:
    """An error as one line: its class and message, or the message alone of a `JudgeError`.

    >>> reason(ValueError("no words"))
    'ValueError: no words'
    """
    return str(error) if isinstance(error, JudgeError) else f"{type(error).__name__}: {error}"
