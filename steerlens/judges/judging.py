"""Texts → scores: does a reply refuse, has it degenerated, how does it sound?"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        texts = require_texts(texts)
        result = self.score(list(texts))  # a copy, which the function may sort or empty
        try:
            listed = result.tolist() if hasattr(result, "tolist") else result  # also torch's
            scores = np.array(listed, dtype=np.float64)
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

    def score(texts: Sequence[str]) -> list[float]:
        return [_number(function(text), name, text) for text in texts]

    return Judge(name, score, version)


def _number(value: Any, name: str, text: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SteerlensError(
            f"the judge {name!r} returned {short_repr(value)} for {short_repr(text)}; expected a "
            "number, NaN where it has none"
        ) from error


def require_texts(texts: Any) -> list[str]:
    """The list of texts to judge; refuses what is no list of texts.

    >>> require_texts(("Hi.", "Ho."))
    ['Hi.', 'Ho.']
    """
    listed = as_texts(texts, "texts to judge")
    wrong = [index for index, text in enumerate(listed) if not isinstance(text, str)]
    if wrong:
        raise SteerlensError(
            f"got {len(wrong)} of {len(listed)} texts to judge that are no text, such as "
            f"{short_repr(listed[wrong[0]])} at {wrong[0]}; expected strings: leave such rows out"
        )
    return listed


def require_judges(judges: Any) -> list[Judge]:
    """The list of judges, of different names; refuses names and plain functions.

    >>> [judge.name for judge in require_judges([judges.refusal])]
    ['refusal']
    """
    listed = list(judges) if isinstance(judges, Iterable) and not isinstance(judges, str) else []
    wrong = [one for one in listed if not isinstance(one, Judge)]
    if wrong or (not listed and judges not in ([], ())):
        raise SteerlensError(
            f"got the judges {short_repr(judges)}; expected a list such as [judges.refusal]: "
            "judge(name, function) makes a judge of a function of one text"
        )
    names = [judge.name for judge in listed]
    if len(set(names)) < len(names):
        raise SteerlensError(f"got judges named {names}; expected a name of its own for each")
    return listed


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
    texts, judges = require_texts(texts), require_judges(judges)
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
