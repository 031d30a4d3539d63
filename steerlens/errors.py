"""The one exception that steerlens raises for input it cannot use."""

from importlib import import_module
from reprlib import Repr
from typing import Any


class SteerlensError(ValueError):
    """Says what came, what was needed and what to do about it."""


def short_repr(value: object) -> str:
    """Any value as a message can hold it: never long, however large or deep it is.

    >>> short_repr(["x" * 1000] * 1000)[:9]
    "['xxxxxxx"
    """
    return _SHORT.repr(value)


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def import_extra(module: str, extra: str, what: str) -> Any:
    """A module that only some of the work needs; without it, `what` is named and how to install it.

    `extra` is the name of the group of packages in pyproject.toml that holds it.

    >>> import_extra("json", "judges", "reading JSON").dumps([1])
    '[1]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise SteerlensError(
            f"{what} needs the package {package}, which is not installed; "
            f"run: pip install 'steerlens[{extra}]'"
        ) from error
