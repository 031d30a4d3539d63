"""Which tokens are steered."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.shapes import TokenMask

Positions = str | slice | Sequence[int] | Bool[Tensor, " place"]
"""What is steered: "all", "prompt", "generated", "last" (the prompt's last token, and what
follows), "reply" (all after the user's message: the template's tokens, and what follows), a slice,
a list of indices, or a Boolean mask over a prompt's tokens (a `BatchPlan` has one for each row).
Negative indices count from the prompt's end; an open slice includes what is generated."""

NAMED = ("all", "prompt", "generated", "last", "reply")
"""The positions that have a name."""


def require_positions(positions: Positions) -> None:
    """Refuse positions that are unknown, or select nothing in any prompt."""
    if isinstance(positions, slice):
        start, stop = positions.start, positions.stop
        if (positions.step or 1) < 1:
            raise SteerlensError(f"got positions={positions!r}; expected a positive step")
        comparable = start is not None and stop is not None and (start < 0) == (stop < 0)
        if comparable and start >= stop:
            raise SteerlensError(
                f"got positions={positions!r}, which can never select a token; expected a start "
                "before the stop"
            )
    elif isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.ndim != 1 or not positions.any():
            raise SteerlensError(
                f"got positions as a {positions.dtype} tensor of shape {tuple(positions.shape)}; "
                "expected a Boolean mask [pos] that is true somewhere (for one mask per row, use "
                "a BatchPlan)"
            )
    elif not isinstance(positions, str):
        listed = isinstance(positions, Sequence) and len(positions) > 0
        if not listed or not all(type(place) is int for place in positions):
            raise SteerlensError(
                f"got positions={positions!r}; expected a list of at least one index (a mask is a "
                "Boolean tensor)"
            )
    elif positions not in NAMED:
        raise SteerlensError(
            f"got positions={positions!r}; expected one of {', '.join(map(repr, NAMED))}, a "
            "slice, a list of indices or a Boolean mask"
        )


def can_select(
    positions: Positions, skip_bos: bool, n_prompt: int, n_new: int, reply_start: int | None = None
) -> bool:
    """Whether positions select any token that the model reads; it never reads the last new one.

    Args:
        positions: What is steered.
        skip_bos: Whether the first token is left out.
        n_prompt: Tokens of the prompt.
        n_new: Tokens generated after it.
        reply_start: Where the reply begins, needed for "reply".

    >>> can_select(slice(5, None), skip_bos=False, n_prompt=4, n_new=1)
    False
    """
    place = torch.arange(n_prompt + n_new - 1)[None]
    start = None if reply_start is None else torch.tensor([[reply_start]])
    chosen = selected(positions, place, torch.tensor([[n_prompt]]), start)
    return bool((chosen & (place > 0) if skip_bos else chosen).any())


def describe(positions: Positions) -> str:
    """Positions in words, short enough for a message.

    >>> describe(slice(-3, None))
    'positions -3:'
    """
    if isinstance(positions, str):
        return f"{positions} positions"
    if isinstance(positions, slice):
        ends = ["" if end is None else str(end) for end in (positions.start, positions.stop)]
        return f"positions {':'.join(ends)}" + (f":{positions.step}" if positions.step else "")
    if isinstance(positions, Tensor):
        return "masked positions"
    some = ", ".join(map(str, positions[:8])) + (", …" if len(positions) > 8 else "")
    return f"positions [{some}]"


def selected(
    positions: Positions | Bool[Tensor, "batch place"],
    place: Int[Tensor, "batch pos"],
    length: Int[Tensor, "batch 1"],
    reply_start: Int[Tensor, "batch 1"] | None = None,
) -> TokenMask:
    """Which tokens of each row positions select.

    Args:
        positions: What is steered; or a mask for each row.
        place: The index of each token in its row's text, counted without padding.
        length: Tokens of each row's prompt.
        reply_start: The index at which each row's reply begins, needed for "reply".

    >>> selected("last", torch.tensor([[0, 1, 2, 3]]), torch.tensor([[3]]))
    tensor([[False, False,  True,  True]])
    """
    if isinstance(positions, Tensor):
        known = (place >= 0) & (place < positions.shape[-1])
        mask = positions.expand(len(place), -1)
        return known & mask.gather(1, place.clamp(0, positions.shape[-1] - 1).expand(len(mask), -1))
    if isinstance(positions, slice):
        return _in_window(positions, place, length)
    if not isinstance(positions, str):
        wanted = torch.tensor(positions)
        from_end = torch.isin(place - length, wanted[wanted < 0]) & (place >= 0)
        return torch.isin(place, wanted[wanted >= 0]) | from_end
    if positions == "reply":
        if reply_start is None:
            raise SteerlensError(
                'positions="reply" needs to see the text: use steerlens.generate with a chat '
                "template, or a slice or mask with plain hooks"
            )
        return place >= reply_start
    first = {"generated": length, "last": length - 1}.get(positions, torch.zeros_like(length))
    return (place >= first) & ((place < length) | (positions != "prompt"))


def _in_window(
    window: slice, place: Int[Tensor, "batch pos"], length: Int[Tensor, "batch 1"]
) -> TokenMask:
    start = 0 if window.start is None else window.start
    low = torch.full_like(length, start) if start >= 0 else (length + start).clamp_min(0)
    chosen = (place >= low) & ((place - low) % (window.step or 1) == 0)
    if window.stop is not None:
        chosen &= place < (window.stop if window.stop >= 0 else length + window.stop)
    return chosen
