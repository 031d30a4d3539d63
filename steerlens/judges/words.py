"""Words and plain spelling of texts in any script."""

import re
import unicodedata
from functools import cache
from itertools import pairwise

_APOSTROPHES = str.maketrans(dict.fromkeys("‘’‛ʹʼˈ՚′＇´", "'"))
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Soft hyphens, zero-width spaces and the like: they stand within words, and nobody sees them."""
_JOINERS = "\u200c\u200d"
"""They choose the shape of letters within words, as in Hindi and Persian."""
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Khmer, Tai Le, New Tai Lue, Tai Tham
    "\u3005-\u3007\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # Japanese syllables, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
    "\ua000-\ua48f"  # Yi
)
"""Letters of scripts that put no spaces between words."""


def plain_spelling(text: str) -> str:
    """A text with straight apostrophes, without ligatures, wide letters and invisible characters.

    >>> plain_spelling("I’m ﬁne")
    "I'm fine"
    """
    visible = _INVISIBLE.sub("", text.translate(_APOSTROPHES))
    return unicodedata.normalize("NFKC", visible)


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case and plain spelling.

    In scripts without spaces between words, such as Chinese and Thai, each pair of neighbouring
    characters counts as a word: single characters come back in any text.

    >>> words_in("I’d rather not."), words_in("好的好")
    (["i'd", 'rather', 'not'], ['好的', '的好'])
    """
    spaced, unspaced, character = _patterns()
    words = []
    for run in spaced.findall(plain_spelling(text).lower()):
        if not unspaced.match(run):
            words.append(run)
            continue
        characters = character.findall(run)
        words += map("".join, pairwise(characters))
        words += characters if len(characters) == 1 else []
    return words


def is_unspaced(text: str) -> bool:
    """Whether a text has letters of a script without spaces between words.

    >>> is_unspaced("好"), is_unspaced("good")
    (True, False)
    """
    return bool(_patterns()[1].search(plain_spelling(text)))


def is_latin(text: str) -> bool:
    """Whether at least half of a text's letters are Latin; True for a text without letters.

    >>> is_latin("¿Qué tal?"), is_latin("Как дела?")
    (True, False)
    """
    letters = [character for character in plain_spelling(text) if character.isalpha()]
    return 2 * sum("LATIN" in unicodedata.name(letter, "") for letter in letters) >= len(letters)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Words or runs without spaces; a letter of such a run; one such letter with its marks."""
    # `\w` leaves out vowel signs and other marks, without which half the world's words fall apart.
    planes = (*range(0x20000), *range(0xE0100, 0xE01F0))  # no marks are elsewhere
    marks = "".join(chr(code) for code in planes if unicodedata.category(chr(code))[0] == "M")
    letter = f"(?![{_UNSPACED}])\\w"
    word = f"{letter}(?:{letter}|[{marks}{_JOINERS}]|'(?={letter}))*"
    run = f"[{_UNSPACED}][{_UNSPACED}{marks}{_JOINERS}]*"
    return (
        re.compile(f"{run}|{word}"),
        re.compile(f"[{_UNSPACED}]"),
        re.compile(f".[{marks}{_JOINERS}]*", re.DOTALL),
    )
