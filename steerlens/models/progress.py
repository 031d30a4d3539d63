"""Progress bars, and whoever watches them from elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

Watcher = Callable[[str], None]
"""Told in words how far a job is; what it raises ends the job."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def progress_bar(
    total: int, unit: str, progress: bool, *, what: str | None = None, done: int = 0
) -> tqdm:
    """A progress bar, for a `with`; hidden outside terminals and notebooks.

    Args:
        total: Units of work in all.
        unit: What they are called, such as "tok".
        progress: False hides the bar.
        what: What is being done, shown before the bar.
        done: Units already done.

    >>> with progress_bar(2, "row", False) as bar:
    ...     bar.update(2)
    """
    hidden = None if progress else True
    return _WatchedBar(total=total, initial=done, unit=unit, desc=what, disable=hidden)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell a function of every step of the progress bars of this thread, hidden ones included.

    >>> told = []
    >>> with watching(told.append), progress_bar(4, "row", False) as bar:
    ...     bar.update(2)
    >>> told
    ['2 of 4 rows']
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class _WatchedBar(tqdm):
    """A bar that tells its watcher of every update."""

    def __init__(self, *, initial: int, unit: str, desc: str | None, **options: Any) -> None:
        super().__init__(initial=initial, unit=unit, desc=desc, **options)
        self._done, self._words = initial, (f"{desc}: " if desc else "", unit)

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        self._done += int(n or 0)
        watcher = _watcher.get()
        if watcher is not None:
            before, unit = self._words
            watcher(f"{before}{self._done:,} of {self.total:,} {unit}s")
        return shown
