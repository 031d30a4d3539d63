"""The one exception that steerlens raises for input it cannot use, and its warning."""

from importlib import import_module
from reprlib import Repr
from typing import Any


class SteerlensError(ValueError):
    """Invalid input; the message says what was given, what was expected and what to do."""


class DegenerateWarning(UserWarning):
    """More than a tenth of a steering's replies are empty or repeat themselves."""


def short_repr(value: object) -> str:
    """A value for a message: short, however large or deeply nested it is.

    >>> short_repr(["x" * 1000] * 1000)[:9]
    "['xxxxxxx"
    """
    return _SHORT.repr(value)


_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import an optional dependency; if it is missing, the error says how to install it.

    Args:
        module: The module to import.
        extra: The extra of steerlens that installs it.
        what: What needs it, for the message.

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
