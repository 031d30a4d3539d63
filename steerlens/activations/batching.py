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
"""Token budgets of one forward pass of a read, padding included: on a CPU, and elsewhere.

A CPU is fastest while one layer's activations fit into its caches: 8,192 tokens took 1.7 times as
long.
"""

CACHE_BYTES = 2**32
"""Memory for the KV cache of one batch whose rows share prefixes."""

ReadJob = tuple[TokenRow, tuple[int, ...]]
"""A row and the positions to read in it."""


def by_length(
    lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None
) -> Iterator[list[int]]:
    """Batches of rows of similar length, as lists of indices: these need the least padding.

    Args:
        lengths: Tokens of each row.
        rows: Most rows in a batch; None for no limit.
        tokens: Most tokens in a batch, padding included; a longer row gets a batch of its own.

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
    """One forward pass of a read, or two where rows share prefixes."""

    rows: int
    width: int
    """Tokens of the longest row, after its prefix."""
    prefixes: int
    """Distinct prefixes, which are run first."""
    n_shared: int
    """Tokens of each prefix."""

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
    """The forward passes that `read_rows` would run, without running them.

    >>> reading_passes(load_model(), [TokenRow((4, 40, 41)), TokenRow((4, 42))])
    [Pass(rows=2, width=3, prefixes=0, n_shared=0)]
    """
    jobs, shared = read_jobs(list(zip(rows, positions_of(model, rows, tokens), strict=True)))
    budget = BatchBudget.of(model, batch_tokens, LOCAL)
    return [_pass(jobs, batch, shared) for batch in read_batches(jobs, shared, budget)]


def _pass(jobs: Sequence[ReadJob], batch: Sequence[int], shared: Sequence[int]) -> Pass:
    n_shared = shared[batch[0]]
    rows = [jobs[index][0].ids for index in batch]
    width = max(map(len, rows)) - n_shared
    return Pass(len(rows), width, len({ids[:n_shared] for ids in rows if n_shared}), n_shared)


def read_jobs(wanted: Sequence[ReadJob]) -> tuple[list[ReadJob], list[int]]:
    """The distinct jobs, and how many first tokens the row of each shares with others."""
    jobs = list(dict.fromkeys(wanted))
    # Compared as tokens of whole texts: a token that straddles a boundary is never split.
    shared = shared_prefixes([_shareable(job) for job in jobs], [len(row.ids) for row, _ in jobs])
    return jobs, shared


class BatchBudget(NamedTuple):
    """Token budgets of one batch."""

    forward_tokens: int
    """Most tokens in a forward pass, padding included; prefixes have a pass of their own."""
    cached_tokens: int
    """Most tokens in the KV cache, where rows share prefixes."""
    rows: int | None = None
    """Most rows; None for as many as fit."""

    @classmethod
    def of(
        cls, model: Model, batch_tokens: int | None, engine: Engine, rows: int | None = None
    ) -> "BatchBudget":
        """The budget for a model on the device where the engine runs it."""
        bytes_per_token = cached_numbers(model) * torch.finfo(model.cfg.dtype).bits // 8
        default = CPU_BATCH_TOKENS if engine.device(model).type == "cpu" else BATCH_TOKENS
        return cls(batch_tokens or default, CACHE_BYTES // bytes_per_token, rows)


def _shareable(job: ReadJob) -> tuple[int, ...]:
    """All but the last token: after the prefix, at least one token must be left to run."""
    row, _ = job
    return row.ids[:-1]


def read_batches(
    jobs: Sequence[ReadJob], shared: Sequence[int], budget: BatchBudget
) -> Iterator[list[int]]:
    """Group jobs by shared-prefix length; order each group by length or by prefix.

    The order that computes fewer tokens is taken. Batches are lists of indices into `jobs`.
    """

    def length_of(index: int) -> int:
        return len(jobs[index][0].ids)

    def prefix_of(index: int) -> tuple[tuple[int, ...], int]:
        return jobs[index][0].ids[: shared[index]], length_of(index)

    def n_tokens(batches: Sequence[Sequence[int]]) -> int:
        return sum(_pass(jobs, batch, shared).tokens for batch in batches)

    for n_shared in sorted(set(shared)):
        group = [index for index, length in enumerate(shared) if length == n_shared]
        orders = (sorted(group, key=length_of), sorted(group, key=prefix_of))
        cuts = (list(_cut(order, n_shared, jobs, budget)) for order in orders)
        yield from min(cuts, key=n_tokens)


def _cut(
    order: Sequence[int], n_shared: int, jobs: Sequence[ReadJob], budget: BatchBudget
) -> Iterator[list[int]]:
    """Consecutive jobs, as many as fit the budget."""
    batch: list[int] = []
    width, prefixes = 0, set[tuple[int, ...]]()
    for index in order:
        ids = jobs[index][0].ids
        n_rest, prefix = len(ids) - n_shared, ids[:n_shared]
        rows, new_width, new_prefixes = len(batch) + 1, max(width, n_rest), prefixes | {prefix}
        full = (
            rows * new_width > budget.forward_tokens
            or (budget.rows is not None and rows > budget.rows)
            or len(new_prefixes) * n_shared > budget.forward_tokens
            or (n_shared and rows * (n_shared + new_width) > budget.cached_tokens)
        )
        if batch and full:
            yield batch
            batch, new_width, new_prefixes = [], n_rest, {prefix}
        batch.append(index)
        width, prefixes = new_width, new_prefixes
    yield batch
