"""Token rows → batches within a token budget."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from steerlens.activations.prefixes import shared_prefixes
from steerlens.activations.selection import Tokens, positions_of
from steerlens.errors import SteerlensError
from steerlens.models.engine import LOCAL, Engine
from steerlens.models.fast_forward import cached_numbers
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow

CPU_BATCH_TOKENS = 1024
BATCH_TOKENS = 16_384
"""Tokens, padding included, in one forward pass of a read, on a CPU and elsewhere.

A CPU is fastest while what a layer makes fits into its caches: 8,192 tokens took 1.7 times as long.
"""

CACHE_BYTES = 2**32
"""What keys and values may take of one batch whose rows share their beginnings."""

ReadJob = tuple[TokenRow, tuple[int, ...]]
"""A row and the positions to read of it."""


def by_length(
    lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None
) -> Iterator[list[int]]:
    """Batches of neighbours in length, by index: padded to their longest, they waste least.

    A batch holds at most so many `rows`, and so many `tokens` with their padding; but at least one.

    >>> list(by_length([9, 2, 3, 8], tokens=18))
    [[1, 2], [3, 0]]
    """
    if rows is not None and rows < 1:
        raise SteerlensError(f"got batches of {rows} rows; expected at least 1")
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        n_rows = len(batch) + 1
        too_many = rows is not None and n_rows > rows
        too_long = tokens is not None and lengths[index] * n_rows > tokens
        if batch and (too_many or too_long):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Pass(NamedTuple):
    """One forward pass of a read, or two where rows begin alike."""

    rows: int
    width: int
    """Tokens of the longest row, of what it does not share."""
    prefixes: int
    n_shared: int
    """How many different beginnings are run first, and of how many tokens."""

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.rows * self.width + self.prefixes * self.n_shared


def reading_passes(
    model: Model,
    rows: Sequence[TokenRow],
    tokens: Tokens | Sequence[int] = "last",
    batch_tokens: int | None = None,
) -> list[Pass]:
    """What `read_rows` would run, found without running it."""
    jobs, shared = read_jobs(list(zip(rows, positions_of(model, rows, tokens), strict=True)))
    budget = BatchBudget.of(model, batch_tokens, LOCAL)
    return [_pass(jobs, batch, shared) for batch in read_batches(jobs, shared, budget)]


def _pass(jobs: Sequence[ReadJob], batch: Sequence[int], shared: Sequence[int]) -> Pass:
    n_shared = shared[batch[0]]
    rows = [jobs[index][0].ids for index in batch]
    width = max(map(len, rows)) - n_shared
    return Pass(len(rows), width, len({ids[:n_shared] for ids in rows if n_shared}), n_shared)


def read_jobs(wanted: Sequence[ReadJob]) -> tuple[list[ReadJob], list[int]]:
    """Each row and its positions once, and how many tokens it shares with others."""
    jobs = list(dict.fromkeys(wanted))
    # Cut from the tokens of whole texts: a token across a boundary is never shared.
    shared = shared_prefixes([_shareable(job) for job in jobs], [len(row.ids) for row, _ in jobs])
    return jobs, shared


class BatchBudget(NamedTuple):
    """What one batch may hold, in tokens and rows."""

    forward_tokens: int
    """In a forward pass, padding included: of shared prefixes, and of what follows them."""
    cached_tokens: int
    """Whose keys and values are kept, where rows share prefixes."""
    rows: int | None = None
    """None: as many as fit."""

    @classmethod
    def of(
        cls, model: Model, batch_tokens: int | None, engine: Engine, rows: int | None = None
    ) -> "BatchBudget":
        """Of a model where the engine runs it."""
        of_token = cached_numbers(model) * torch.finfo(model.cfg.dtype).bits // 8
        fast = CPU_BATCH_TOKENS if engine.device(model).type == "cpu" else BATCH_TOKENS
        return cls(batch_tokens or fast, CACHE_BYTES // of_token, rows)


def _shareable(job: ReadJob) -> tuple[int, ...]:
    """All but the last token: something must be left to run, and attention looks back only."""
    row, _ = job
    return row.ids[:-1]


def read_batches(
    jobs: Sequence[ReadJob], shared: Sequence[int], budget: BatchBudget
) -> Iterator[list[int]]:
    """Jobs grouped by shared-prefix length, each group ordered by length or by prefix.

    Whichever order computes fewer tokens.
    """

    def by_length(index: int) -> int:
        return len(jobs[index][0].ids)

    def by_prefix(index: int) -> tuple[tuple[int, ...], int]:
        return jobs[index][0].ids[: shared[index]], by_length(index)

    def n_run(batches: Sequence[Sequence[int]]) -> int:
        return sum(_pass(jobs, batch, shared).tokens for batch in batches)

    for n_shared in sorted(set(shared)):
        alike = [index for index, length in enumerate(shared) if length == n_shared]
        orders = (sorted(alike, key=by_length), sorted(alike, key=by_prefix))
        yield from min((list(_cut(order, n_shared, jobs, budget)) for order in orders), key=n_run)


def _cut(
    order: Sequence[int], n_shared: int, jobs: Sequence[ReadJob], budget: BatchBudget
) -> Iterator[list[int]]:
    """Consecutive jobs that fit the budget."""
    batch: list[int] = []
    width, beginnings = 0, set[tuple[int, ...]]()
    for index in order:
        ids = jobs[index][0].ids
        own, beginning = len(ids) - n_shared, ids[:n_shared]
        rows, wider, more = len(batch) + 1, max(width, own), beginnings | {beginning}
        full = (
            rows * wider > budget.forward_tokens
            or (budget.rows is not None and rows > budget.rows)
            or len(more) * n_shared > budget.forward_tokens
            or (n_shared and rows * (n_shared + wider) > budget.cached_tokens)
        )
        if batch and full:
            yield batch
            batch, wider, more = [], own, {beginning}
        batch.append(index)
        width, beginnings = wider, more
    yield batch
