"""Progress bars."""

from tqdm import tqdm


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
    return tqdm(total=total, initial=done, unit=unit, desc=what, disable=hidden)
