"""The one exception that steerlens raises for input it cannot use."""

from reprlib import Repr


class SteerlensError(ValueError):
    """Says what came, what was needed and what to do about it."""


def short_repr(value: object) -> str:
    """Any value as a message can hold it: never long, however large or deep it is.

    >>> shown(["x" * 1000] * 1000)[:9]
    "['xxxxxxx"
    """
    return _SHORT.repr(value)


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120
