"""The bar that shows how far a long job has come."""

from tqdm import tqdm


def progress_bar(
    total: int, unit: str, progress: bool, *, what: str | None = None, done: int = 0
) -> tqdm:
    """A bar over `total` units of work, `done` of which are already there, for a `with`.

    Hidden without `progress`, and where nobody looks: outside of terminals and notebooks.

    >>> with progress_bar(2, "row", False) as bar:
    ...     bar.update(2)
    """
    hidden = None if progress else True
    return tqdm(total=total, initial=done, unit=unit, desc=what, disable=hidden)
