"""Which tokens are steered."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerlens.errors import SteerlensError

Positions = str | slice | Sequence[int] | Bool[Tensor, " place"]
"""What is steered: "all", "prompt", "generated", "last" (of the prompt, and what follows), "reply"
(what stands after the user's words, template included, and what follows), a slice, a list of
indices, or a Boolean mask over a prompt's tokens (a `BatchPlan` has one for each row). Negative
indices count from the prompt's end; an open slice takes in what is generated."""

_NAMED = ("all", "prompt", "generated", "last", "reply")


def require_positions(positions: Positions) -> None:
    """Refuse position selections that are unknown, or empty whatever the prompt."""
    if isinstance(positions, slice):
        start, stop = positions.start, positions.stop
        if (positions.step or 1) < 1:
            raise SteerlensError(f"positions={positions!r} needs a positive step")
        alike = start is not None and stop is not None and (start < 0) == (stop < 0)
        if alike and start >= stop:
            raise SteerlensError(f"positions={positions!r} can never select a token")
    elif isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.ndim != 1 or not positions.any():
            raise SteerlensError(
                f"positions came as a {positions.dtype} tensor of shape {tuple(positions.shape)}; "
                "a mask is Boolean, [pos], and true somewhere (for one mask a row: BatchPlan)"
            )
    elif not isinstance(positions, str):
        listed = isinstance(positions, Sequence) and len(positions) > 0
        if not listed or not all(type(place) is int for place in positions):
            raise SteerlensError(
                f"positions={positions!r} must be a list of at least one index; "
                "a mask is a Boolean tensor"
            )
    elif positions not in _NAMED:
        raise SteerlensError(
            f"positions={positions!r} is unknown; use one of "
            f"{', '.join(map(repr, _NAMED))}, a slice, a list of indices or a Boolean mask"
        )


def can_select(
    positions: Positions, skip_bos: bool, n_prompt: int, n_new: int, reply_start: int | None = None
) -> bool:
    """Whether any token that a model reads is selected; the last new one is never read."""
    place = torch.arange(n_prompt + n_new - 1)[None]
    start = None if reply_start is None else torch.tensor([[reply_start]])
    chosen = selected(positions, place, torch.tensor([[n_prompt]]), start)
    return bool((chosen & (place > 0) if skip_bos else chosen).any())


def describe(positions: Positions) -> str:
    """Positions in words, short enough for a message."""
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
    positions: Positions | Bool[Tensor, "row place"],
    place: Int[Tensor, "row pos"],
    length: Int[Tensor, "row 1"],
    reply_start: Int[Tensor, "row 1"] | None = None,
) -> Bool[Tensor, "row pos"]:
    """Which places of each row are selected; `length` is that of the row's prompt."""
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
    window: slice, place: Int[Tensor, "row pos"], length: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row pos"]:
    start = 0 if window.start is None else window.start
    low = torch.full_like(length, start) if start >= 0 else (length + start).clamp_min(0)
    chosen = (place >= low) & ((place - low) % (window.step or 1) == 0)
    if window.stop is not None:
        chosen &= place < (window.stop if window.stop >= 0 else length + window.stop)
    return chosen
