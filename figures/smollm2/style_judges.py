"""Judges of style: is a reply French, is it formal?"""

import re

from steerlens.judges.judging import judge
from steerlens.judges.words import plain_spelling, words_in

FRENCH = frozenset(
    words_in("""
    au aux avec c'est car ce ces cet cette comme dans de des dont du elle elles en est et être eux
    il ils je la le les leur leurs lui ma mais mes mon ne nos notre nous ont ou où par pas peu peut
    peuvent plus pour que quel quelle qui sa sans se ses si sont sous suis sur ta te tes toi ton
    tous tout toute toutes très tu un une vos votre vous été à
""")
)
"""Function words; those that are English as well, such as "on" and "me", are left out."""
OTHERS = frozenset(
    words_in("""
    about after all also an and are at be because been before but by can could do for from get has
    have he her his how i i'm if in into is it it's its just more my no not of one or our she should
    so some than that the their them then there these they this to up use was we were what when
    which who will with would you your
    como con del di e el ella es esta está este gli i lo los las mi muy más para per perché pero por
    questa questo sono sus una uno y è
""")
)
"""Those of English, Spanish and Italian that are not French."""
ELIDED = re.compile(r"(?:[cdjlmnst]|qu)'(?=\w{2})")
"""The French article and others before a vowel, as in "l'eau"; "I'd" and "it's" are none."""
FRENCH_SHARE = 0.2
"""Of a French text's words, at least so many are of the list; of written ones, a third or more."""

FORMAL = re.compile(
    r"""
    \b(?:it\s(?:is|was|may\sbe|would\sbe|should\sbe)\s(?:\w+ly\s)?
        (?:advis|recommend|suggest|customary|considered|regarded|believed|noted|said|understood
        |necessary|essential|preferable|appropriate|possible)\w*
    |one\s(?:should|may|must|might|would|can|could|ought|is|has)
    |furthermore|moreover|therefore|thus|hence|consequently|nevertheless|nonetheless|accordingly
    |thereby|whereas|whilst|upon|shall|regarding|concerning|prior\sto|in\sorder\sto|in\saddition
    |advisable|suitable|sufficient|appropriate|obtain\w*|purchas\w+|requir\w+|permit\w*|assist\w*
    |ascertain\w*|utili[sz]\w+|commenc\w+|endeavou?r\w*|regarded|kindly|obliged|respective(?:ly)?)\b
    """,
    re.VERBOSE,
)
INFORMAL = re.compile(
    r"""
    \b\w+(?:n't|'(?:ll|re|ve|m|d))\b | \b(?:it|that|there|here|what|let|he|she|who)'s\b | !
    | \b(?:okay|ok|hey|hi|yeah|yep|nope|wow|gonna|wanna|gotta|stuff|kids?|guys?|cool|awesome
    |amazing|super|fun|funny|pretty|really|totally|great|sure|alright|a\slot|lots|got)\b
    """,
    re.VERBOSE,
)


def is_french(text: str) -> bool:
    """Whether at least a fifth of a text's words are French function words, and fewer are foreign.

    >>> is_french("L'eau est froide, mais je nage."), is_french("The water is cold, but I swim.")
    (True, False)
    """
    words = words_in(text)
    french = sum(word in FRENCH or bool(ELIDED.match(word)) for word in words)
    others = sum(word in OTHERS for word in words)
    return french >= max(FRENCH_SHARE * len(words), others + 1)


def formality(text: str) -> int:
    """Formal turns of phrase, less contractions, exclamation marks and colloquial words.

    >>> formality("It is advisable to wait."), formality("You'll want to wait!")
    (1, -2)
    """
    plain = plain_spelling(text).lower()
    return len(FORMAL.findall(plain)) - len(INFORMAL.findall(plain))


french = judge("french", lambda text: float(is_french(text)))
formal = judge("formal", lambda text: float(formality(text) > 0))
