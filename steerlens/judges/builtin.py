"""Judges that need no model, by name."""

import math
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from steerlens.data.prompts import as_texts
from steerlens.errors import SteerlensError, import_extra
from steerlens.files import digest
from steerlens.judges.fluency import degenerate, distinct_words, longest_echo
from steerlens.judges.judging import Judge, judge
from steerlens.judges.refusals import VERSION as REFUSALS_VERSION
from steerlens.judges.refusals import answer_of, refusal_score
from steerlens.judges.words import is_latin, is_unspaced, words_in


def lexicon(words: Iterable[str], name: str = "lexicon") -> Judge:
    """A judge that scores the share of a text's words that are in a list; NaN for no words.

    Its version is a hash of the list.

    Args:
        words: The list, each entry exactly one word; case and the kind of apostrophe do not
            matter. Scripts without spaces between words are refused, as no word begins there.
        name: The judge's name.

    Raises:
        SteerlensError: An entry that is not one word, or no entries.

    >>> lexicon(["sea", "ship"])(["The sea, the sea!", "Bread."])
    array([0.5, 0. ])
    """
    listed = list(words) if isinstance(words, set | frozenset) else as_texts(words, "a lexicon")
    unspaced = [word for word in listed if isinstance(word, str) and is_unspaced(word)]
    if unspaced:
        raise SteerlensError(
            f"got {unspaced[:5]!r} for a lexicon, in a script without spaces between words; "
            "expected words that spaces delimit: count these by judge(name, function)"
        )
    wrong = [word for word in listed if not isinstance(word, str) or len(words_in(word)) != 1]
    if wrong or not listed:
        raise SteerlensError(
            f"got {len(listed)} entries for a lexicon, of which {wrong[:5]!r} are not single "
            "words; expected at least one entry, each of them one word"
        )
    entries = frozenset(words_in(word)[0] for word in listed)

    def share(text: str) -> float:
        text_words = words_in(text)
        n_listed = sum(word in entries for word in text_words)
        return n_listed / len(text_words) if text_words else math.nan

    return judge(name, share, version=digest("\n".join(sorted(entries)).encode()))


def vader(text: str) -> float:
    """VADER's compound sentiment, from −1 to 1; NaN for a text without words that it may know.

    Its lexicon is English: a text in another script than the Latin is not judged. Of a reasoning
    model's reply only the answer is.

    >>> vader("What a lovely day!") > 0 > vader("This is terrible.")
    True
    """
    answer = answer_of(text)
    if not words_in(answer) or not is_latin(answer):
        return math.nan
    return float(_vader().polarity_scores(answer)["compound"])


@cache
def _vader() -> Any:
    module = import_extra("vaderSentiment.vaderSentiment", "judges", "the judge of sentiment")
    return module.SentimentIntensityAnalyzer()  # reads its lexicon


def _vader_version() -> str:
    try:
        return version("vaderSentiment")
    except PackageNotFoundError:
        return "is not installed"


refusal = judge("refusal", refusal_score, version=f"phrases {REFUSALS_VERSION}")
"""1 where a reply refuses, by its English phrases; NaN for other scripts than the Latin.

`agreement` measures how well it does, on `labelled_replies`."""
degeneration = judge("degeneration", degenerate, version="3")
"""1 where a reply is empty, repeats itself or has few distinct words."""
distinct = judge("distinct", distinct_words, version="2")
"""Share of distinct words; falls as a text grows, so compare texts of similar length."""
repetition = judge("repetition", longest_echo, version="2")
"""Share of words in the longest run that repeats the words before it."""
sentiment = judge("sentiment", vader, version=f"vaderSentiment {_vader_version()}")
"""VADER's compound score, −1 to 1."""

JUDGES = {judge.name: judge for judge in (refusal, degeneration, distinct, repetition, sentiment)}
"""The judges that need only the text, by name."""


def named_judges(names: str) -> list[Judge]:
    """Judges of `JUDGES` by name.

    Args:
        names: Names with commas between them, such as "refusal, sentiment".

    Raises:
        SteerlensError: An unknown name.

    >>> [judge.name for judge in named_judges("refusal, sentiment")]
    ['refusal', 'sentiment']
    """
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in JUDGES]
    if unknown:
        raise SteerlensError(
            f"got the unknown judges {unknown}; expected some of {', '.join(JUDGES)}"
        )
    return [JUDGES[name] for name in wanted]
