"""What the commands print. Text of users, models and files is data, never markup."""

import errno
from collections.abc import Callable, Iterable
from functools import wraps
from tempfile import gettempdir
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from steerlens.display import visible
from steerlens.errors import SteerlensError

PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
console = Console(**PLAIN)
INTERRUPTED = 130
"""The usual exit status after Ctrl-C."""


def say(text: object, style: str | None = None) -> None:
    """Print a line without wrapping it, so that file names can be copied."""
    console.print(visible(text), style=style, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error."""
    errors = Console(stderr=True, **PLAIN)
    errors.print("error:", style="bold red", end=" ")
    errors.print(visible(text), soft_wrap=True)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """End on errors that users can correct, and on Ctrl-C, with a message and no traceback."""

    @wraps(command)
    def reported(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except SteerlensError as error:
            complain(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            Console(stderr=True, **PLAIN).print("stopped")
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:  # the reader of a pipe closed it
            raise typer.Exit(1) from error
        except OSError as error:
            complain(_describe(error))
            raise typer.Exit(1) from error

    return reported


def _describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    advice = (
        f"; free some space (temporary files go to {gettempdir()})" if error.errno in _FULL else ""
    )
    return f"{place}{error.strerror or error}{advice}"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Full disk, quota, file size limit."""


def print_rows(columns: Iterable[str], rows: Iterable[Iterable[object]], **options: Any) -> None:
    """Print a table."""
    table = Table(*map(visible, columns), **options)
    for row in rows:
        table.add_row(*map(visible, row))
    console.print(table)


def print_frame(frame: Any, title: str) -> None:
    """Print a data frame; a value and the bounds of its interval share a column."""
    from steerlens.intervals import Interval

    own = {"f1": ("f1_low", "f1_high"), "effect": ("effect_low", "effect_high")}
    for name in {"mean", "refused", *own} & set(frame.columns):
        bounds = own.get(name, ("low", "high"))
        intervals = [str(Interval(*row)) for row in frame[[name, *bounds]].itertuples(index=False)]
        frame = frame.assign(**{name: intervals}).drop(columns=[*bounds])
    rows = (
        [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
        for row in frame.itertuples(index=False)
    )
    print_rows(map(str, frame.columns), rows, title=title)
