"""Prefix caching: which token rows share a prefix, so that it needs to be run only once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WORTH_ROWS = 4
"""How many rows must share a prefix for it to be run separately."""
WORTH_SHARE = 0.5
"""How long the prefix must be, as a share of the rows' remaining tokens, on average."""


@dataclass
class _Group:
    """Neighbours in sorted order that share their first `length` tokens."""

    length: int
    start: int
    saved: int = 0
    """Tokens saved by the best groups found within it so far."""
    cuts: list[tuple[int, int, int]] = field(default_factory=list)
    """Those groups: first row, row past the last, tokens shared."""


def shared_prefixes(rows: Sequence[Sequence[int]], widths: Sequence[int]) -> list[int]:
    """How many of its first tokens each row shares with enough others to run them once.

    No row is in two groups; groups are chosen to save the most tokens. They are found on the tree
    of common prefixes of the sorted rows (Abouelhoda, Kurtz and Ohlebusch 2004).

    Args:
        rows: The tokens that may be shared.
        widths: How many tokens each row has in all.

    >>> shared_prefixes([(7, 8, 9)] * 4 + [(7, 1, 1)], [4] * 5)
    [3, 3, 3, 3, 0]
    """
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    common_lengths = [common_length(rows[a], rows[b]) for a, b in pairwise(order)]
    ordered_widths = [widths[row] for row in order]
    open_groups = [_Group(0, 0)]
    for row, length in enumerate([*common_lengths, 0], start=1):
        start, inner = row - 1, _Group(0, row - 1)
        while length < open_groups[-1].length:
            inner = _closed(open_groups.pop(), row, ordered_widths)
            start = inner.start
            if length <= open_groups[-1].length:
                _add(open_groups[-1], inner)
        if length > open_groups[-1].length:
            open_groups.append(_Group(length, start, inner.saved, inner.cuts))
    shared = [0] * len(rows)
    for first, past, length in open_groups[0].cuts:
        for row in order[first:past]:
            shared[row] = length
    return shared


def common_length(row: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first tokens two rows share.

    >>> common_length((7, 8, 9), (7, 8, 1))
    2
    """
    differing = (
        index for index, pair in enumerate(zip(row, other, strict=False)) if len(set(pair)) > 1
    )
    return next(differing, min(len(row), len(other)))


def _add(group: _Group, inner: _Group) -> None:
    group.saved += inner.saved
    group.cuts += inner.cuts


def _closed(group: _Group, past: int, widths: Sequence[int]) -> _Group:
    """A complete group: shared as a whole, if that saves more than sharing within it."""
    n = past - group.start
    rest = sum(widths[group.start : past]) - n * group.length
    saved = (n - 1) * group.length
    if n >= WORTH_ROWS and saved > group.saved and group.length * n >= WORTH_SHARE * rest:
        return _Group(group.length, group.start, saved, [(group.start, past, group.length)])
    return group
