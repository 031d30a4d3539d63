"""What the commands print. Whatever comes from users, models and files is data, never markup."""

import errno
from collections.abc import Callable, Iterable
from functools import wraps
from tempfile import gettempdir
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from steerlens.errors import SteerlensError

PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
console = Console(**PLAIN)
INTERRUPTED = 130
"""The exit status of what Ctrl-C has ended, as shells know it."""


def say(text: object, style: str | None = None) -> None:
    """Print a line whole, so that names of files can be copied."""
    console.print(str(text), style=style, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error."""
    errors = Console(stderr=True, **PLAIN)
    errors.print("error:", style="bold red", end=" ")
    errors.print(text, soft_wrap=True)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """End on what users can mend, and on Ctrl-C, with a message instead of a traceback."""

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
        except BrokenPipeError as error:  # whoever read the output has read enough
            raise typer.Exit(1) from error
        except OSError as error:
            complain(_told(error))
            raise typer.Exit(1) from error

    return reported


def _told(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    advice = f"; make room (temporary files go to {gettempdir()})" if error.errno in _FULL else ""
    return f"{place}{error.strerror or error}{advice}"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota, a largest size of files."""


def print_rows(columns: Iterable[str], rows: Iterable[Iterable[object]], **options: Any) -> None:
    """A table for the terminal."""
    table = Table(*columns, **options)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def print_frame(frame: Any, title: str) -> None:
    """A pandas frame for the terminal; a value and the ends of its interval share a column."""
    from steerlens.intervals import Interval

    for name in {"mean", "refused", "f1"} & set(frame.columns):
        ends = ("f1_low", "f1_high") if name == "f1" else ("low", "high")
        shown = [str(Interval(*row)) for row in frame[[name, *ends]].itertuples(index=False)]
        frame = frame.assign(**{name: shown}).drop(columns=[*ends])
    rows = (
        [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
        for row in frame.itertuples(index=False)
    )
    print_rows(map(str, frame.columns), rows, title=title)
