"""Fluency without a model: how much a text repeats itself, and how varied its words are."""

import math
import re
from itertools import groupby

from steerlens.judges.words import is_unspaced, words_in

TOO_MANY_DEGENERATE = 0.1
"""Share of degenerate replies beyond which results, warnings and calibrations say so."""


def distinct_words(text: str) -> float:
    """The share of a text's words that are not repeats of earlier ones; NaN if it has none.

    >>> distinct_words("the sea, the sea, the wide sea")
    0.42857142857142855
    """
    words = words_in(text)
    return len(set(words)) / len(words) if words else math.nan


def longest_echo(text: str) -> float:
    """The share of a text's words in the longest run that repeats the words just before it.

    The repeated phrase may be one to eight words long (24 characters in scripts without spaces);
    NaN if the text has no words.

    >>> longest_echo("no no no no"), longest_echo("I would rather not.")
    (0.75, 0.0)
    """
    words = words_in(text)
    return max(_echoes(words, text)) / len(words) if words else math.nan


def degenerate(reply: str) -> bool:
    """Whether a reply is empty, has fewer than half distinct words, or is stuck in a loop.

    A loop is the same phrase, of one to eight words (24 characters in scripts without spaces),
    three times in a row; or, within a word, two to eight letters eight times in a row, or one
    letter sixteen times.

    >>> degenerate("no no no no"), degenerate("agesagesagesagesagesagesagesages")
    (True, True)
    >>> degenerate("I would rather not.")
    False
    """
    words = words_in(reply)
    if len(set(words)) * 2 < len(words) or not words:
        return True
    if any(_STUCK.search(word) for word in words):
        return True
    return any(echo >= 2 * size for size, echo in enumerate(_echoes(words, reply), start=1))


_STUCK = re.compile(r"([^\W\d_]{2,8}?)\1{7}|([^\W\d_])\2{15}")
"""A piece of a word again and again; eight times one letter is a cry ("nooooooooo")."""


def _echoes(words: list[str], text: str) -> list[int]:
    """For each phrase length, the longest run of words that repeat a phrase."""
    longest = 24 if is_unspaced(text) else 8
    return [_longest_run(words, size) for size in range(1, longest + 1)]


def _longest_run(words: list[str], size: int) -> int:
    """The longest run of words that each equal the word `size` positions before."""
    echoes = (now == before for now, before in zip(words[size:], words, strict=False))
    return max((sum(1 for _ in run) for same, run in groupby(echoes) if same), default=0)
