"""Judges that need no model, by name."""

import math
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from steerlens.errors import SteerlensError, import_extra
from steerlens.files import digest
from steerlens.judges.fluency import degenerate, distinct_words, longest_echo, words_in
from steerlens.judges.judging import Judge, judge
from steerlens.judges.refusals import VERSION as REFUSALS_VERSION
from steerlens.judges.refusals import refusal_score


def lexicon(words: Iterable[str], name: str = "lexicon") -> Judge:
    """The share of a text's words that are in a list, whatever their case; NaN for no words.

    Its version is a hash of the list. Raises if an entry is not exactly one word.

    >>> lexicon(["sea", "ship"])(["The sea, the sea!", "Bread."])
    array([0.5, 0. ])
    """
    if isinstance(words, str):
        raise SteerlensError(f"one string came ({words!r}); a lexicon is a list of words")
    entries = [word.strip().lower().replace("’", "'") for word in words]
    wrong = [word for word in entries if words_in(word) != [word]]
    if wrong or not entries:
        raise SteerlensError(
            f"{wrong[:5]!r} of {len(entries)} entries are not single words; "
            "a lexicon needs at least one word, and each entry is one"
        )
    listed = frozenset(entries)

    def share(text: str) -> float:
        said = words_in(text.replace("’", "'"))
        return sum(word in listed for word in said) / len(said) if said else math.nan

    return judge(name, share, version=digest("\n".join(sorted(listed)).encode()))


def vader(text: str) -> float:
    """VADER's compound sentiment, from −1 to 1; NaN for a text without words.

    >>> vader("What a lovely day!") > 0 > vader("This is terrible.")
    True
    """
    return float(_vader().polarity_scores(text)["compound"]) if words_in(text) else math.nan


@cache
def _vader() -> Any:
    found = import_extra("vaderSentiment.vaderSentiment", "judges", "the judge of sentiment")
    return found.SentimentIntensityAnalyzer()  # reads its lexicon


def _vader_version() -> str:
    try:
        return version("vaderSentiment")
    except PackageNotFoundError:
        return "is not installed"


refusal = judge("refusal", refusal_score, version=f"phrases {REFUSALS_VERSION}")
"""1 where a reply refuses, by its phrases; `agreement` measures how well, on `labelled_replies`."""
degeneration = judge("degeneration", degenerate)
"""1 where a reply is empty, repeats itself or has few distinct words."""
distinct = judge("distinct", distinct_words)
"""Share of distinct words; falls as a text grows, so compare texts of like length."""
repetition = judge("repetition", longest_echo)
"""Share of words in the longest run of repeats."""
sentiment = judge("sentiment", vader, version=f"vaderSentiment {_vader_version()}")
"""VADER's compound score, −1 to 1."""

JUDGES = {judge.name: judge for judge in (refusal, degeneration, distinct, repetition, sentiment)}
"""The judges that need nothing but text, by name."""


def named_judges(names: str) -> list[Judge]:
    """Judges of `JUDGES` by their names, with commas between; raises if one is unknown.

    >>> [judge.name for judge in named_judges("refusal, sentiment")]
    ['refusal', 'sentiment']
    """
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in JUDGES]
    if unknown:
        raise SteerlensError(f"the judges {unknown} are unknown; choose of {', '.join(JUDGES)}")
    return [JUDGES[name] for name in wanted]
