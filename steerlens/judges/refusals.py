"""Whether a text refuses, by its phrases."""

import re
import tomllib
from pathlib import Path

from steerlens.files import digest

_FILE = Path(__file__).with_name("refusal_phrases.toml")
_PHRASES: dict[str, list[str]] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
VERSION = digest(_FILE.read_bytes())
"""Changes with every phrase."""

_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
REFUSAL_PHRASES = {
    reason: re.compile("|".join(patterns), re.IGNORECASE) for reason, patterns in _PHRASES.items()
}
"""Why a reply counts as a refusal, and what shows it."""


def refusal_reasons(reply: str) -> list[str]:
    """The kinds of refusing phrase found in a reply; none of them in a helpful one.

    >>> refusal_reasons("I'm sorry, but I can't help with that.")
    ['cannot', 'apologises']
    """
    own = _QUOTED.sub(" ", reply)  # what somebody else says in it refuses nothing
    plain = (own if own.strip() else reply).replace("’", "'")
    return [reason for reason, phrase in REFUSAL_PHRASES.items() if phrase.search(plain)]


def refused(reply: str) -> bool:
    """Whether a reply refuses, by its phrases."""
    return bool(refusal_reasons(reply))
