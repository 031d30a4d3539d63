"""Token ids that a user passes as prompts: lists, arrays, tensors and padded batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr


def ids_of(prompt: Any, where: str) -> tuple[int, ...] | None:
    """The ids of a prompt given as token ids; None if it is not.

    Args:
        prompt: Any prompt.
        where: Which prompt it is, for messages.

    >>> ids_of([5, 6], "prompt 0"), ids_of("Hi.", "prompt 0")
    ((5, 6), None)
    """
    if isinstance(prompt, Tensor | np.ndarray):
        if prompt.ndim != 1 or not _holds_integers(prompt):
            raise SteerlensError(
                f"{where} is {short_repr(prompt)} (shape {tuple(prompt.shape)}, {prompt.dtype}); "
                "expected text, a chat, or a row of token ids, which are integers"
            )
        return tuple(map(int, prompt.tolist()))
    if isinstance(prompt, int | np.integer):
        raise SteerlensError(
            f"{where} is the number {prompt!r}; expected a row of token ids for each prompt: put "
            "the row in a list, as in [ids]"
        )
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Sequence) or not prompt:
        return None
    numbers = [isinstance(token, int | np.integer) for token in prompt]
    if any(numbers) and (not all(numbers) or any(isinstance(token, bool) for token in prompt)):
        raise SteerlensError(
            f"{where} is {short_repr(prompt)}; expected token ids, all of them integers"
        )
    return tuple(map(int, prompt)) if all(numbers) else None


def rows_of(table: Tensor | np.ndarray) -> list[Any]:
    """The prompts in an array or a tensor: a row of ids each, or a text each.

    >>> rows_of(np.array(["Hi.", "Ho."]))
    ['Hi.', 'Ho.']
    """
    if isinstance(table, np.ndarray) and table.ndim == 1 and table.dtype.kind in "OUT":
        return list(table.tolist())
    if table.ndim != 2 or not _holds_integers(table):
        raise SteerlensError(
            f"got prompts of shape {tuple(table.shape)} ({table.dtype}); expected a list of texts, "
            "or integer token ids [prompt, pos]: put a single row in a list, as in [ids]"
        )
    return list(table)


def unpadded(batch: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The rows of a tokenizer's batch without padding, by its attention mask.

    >>> unpadded({"input_ids": [[5, 6, 0]], "attention_mask": [[1, 1, 0]]})
    [(5, 6)]
    """
    if not {"input_ids", "attention_mask"} <= set(batch):
        raise SteerlensError(
            f"got a table with {sorted(map(str, batch))} as prompts; expected a list of prompts, "
            "or a tokenizer's batch with input_ids and attention_mask"
        )
    rows, masks = (_listed(batch[key], key) for key in ("input_ids", "attention_mask"))
    lengths = [[len(row) for row in table] for table in (rows, masks)]
    if lengths[0] != lengths[1]:
        raise SteerlensError(
            f"got input_ids with rows of the lengths {lengths[0][:20]} and an attention_mask with "
            f"{lengths[1][:20]}; expected two tables of one shape, [batch, pos]"
        )
    return [
        tuple(token for token, kept in zip(row, mask, strict=True) if kept)
        for row, mask in zip(rows, masks, strict=True)
    ]


def require_no_padding(rows: Sequence[tuple[int, ...]], pad: int) -> None:
    """Refuse token ids that a tokenizer may have padded: only its mask shows which are text."""
    edges = [max(_run(row, pad), _run(row[::-1], pad)) for row in rows]
    same_length = len(rows) > 1 and len({len(row) for row in rows}) == 1
    if any(edge > 1 for edge in edges) or (same_length and len(set(map(bool, edges))) > 1):
        raise SteerlensError(
            f"got token ids that begin or end with the padding token {pad}; expected rows without "
            "padding, which would be read as text: pass the tokenizer's batch with its "
            "attention_mask, or TokenRow(ids) if these tokens are text"
        )


def _run(row: Sequence[int], token: int) -> int:
    """How often a row begins with a token; 0 for a row of nothing else."""
    return next((index for index, other in enumerate(row) if other != token), 0)


def _holds_integers(table: Tensor | np.ndarray) -> bool:
    if isinstance(table, np.ndarray):
        return table.dtype.kind in "iu"
    return not (table.is_floating_point() or table.is_complex() or table.dtype == torch.bool)


def _listed(table: Any, key: str) -> list[list[int]]:
    """A table as lists of integers; rows may differ in length, as without padding."""
    content = table.tolist() if isinstance(table, Tensor | np.ndarray) else table
    is_table = isinstance(content, Sequence) and all(isinstance(row, Sequence) for row in content)
    rows = [list(row) for row in content] if is_table else []
    if not rows or not all(isinstance(token, int | np.integer) for row in rows for token in row):
        raise SteerlensError(
            f"got {key} {short_repr(content)}; expected integers of shape [batch, pos]"
        )
    return [[int(token) for token in row] for row in rows]
