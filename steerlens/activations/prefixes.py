"""Which rows of tokens begin alike, so that their beginning needs to be run but once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WORTH_ROWS = 4
"""How many rows must begin alike for their beginning to be run apart."""
WORTH_SHARE = 0.5
"""And how long it must be, as a share of what is left of them, on average."""


@dataclass
class _Run:
    """Neighbours in the sorted order that have their first `length` tokens in common."""

    length: int
    start: int
    saved: int = 0
    """Tokens saved by the best runs within it that are known so far."""
    cuts: list[tuple[int, int, int]] = field(default_factory=list)
    """These runs: first row, row past the last, tokens shared."""


def shared_prefixes(rows: Sequence[Sequence[int]], widths: Sequence[int]) -> list[int]:
    """How many of its first tokens each row shares with enough others to run them once.

    `rows` holds the tokens that may be shared, `widths` how many each row has in all. No row is in
    two groups; groups are chosen to save the most tokens. They are found on the tree of common
    prefixes of the sorted rows (Abouelhoda, Kurtz and Ohlebusch 2004).

    >>> shared_prefixes([(7, 8, 9)] * 4 + [(7, 1, 1)], [4] * 5)
    [3, 3, 3, 3, 0]
    """
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    alike = [_common_length(rows[a], rows[b]) for a, b in pairwise(order)]
    ordered_widths = [widths[row] for row in order]
    open_runs = [_Run(0, 0)]
    for place, length in enumerate([*alike, 0], start=1):
        start, inner = place - 1, _Run(0, place - 1)
        while length < open_runs[-1].length:
            inner = _settled(open_runs.pop(), place, ordered_widths)
            start = inner.start
            if length <= open_runs[-1].length:
                _add(open_runs[-1], inner)
        if length > open_runs[-1].length:
            open_runs.append(_Run(length, start, inner.saved, inner.cuts))
    shared = [0] * len(rows)
    for first, past, length in open_runs[0].cuts:
        for row in order[first:past]:
            shared[row] = length
    return shared


def _common_length(row: Sequence[int], other: Sequence[int]) -> int:
    unlike = (
        place for place, pair in enumerate(zip(row, other, strict=False)) if len(set(pair)) > 1
    )
    return next(unlike, min(len(row), len(other)))


def _add(run: _Run, inner: _Run) -> None:
    run.saved += inner.saved
    run.cuts += inner.cuts


def _settled(run: _Run, past: int, widths: Sequence[int]) -> _Run:
    """A run that is complete: shared as a whole, if that saves more than sharing within it."""
    n = past - run.start
    rest = sum(widths[run.start : past]) - n * run.length
    saved = (n - 1) * run.length
    if n >= WORTH_ROWS and saved > run.saved and run.length * n >= WORTH_SHARE * rest:
        return _Run(run.length, run.start, saved, [(run.start, past, run.length)])
    return run
