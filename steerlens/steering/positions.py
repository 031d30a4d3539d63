"""Which tokens are read, and which are steered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from steerlens.errors import SteerlensError

Positions = str | slice | Sequence[int] | Bool[Tensor, " place"] | Bool[Tensor, "prompt place"]
"""What is steered: "all", "prompt", "generated", "last" (of the prompt, and what follows), "reply"
(what stands after the user's words, template included, and what follows), a slice, a list of
indices, or a Boolean mask over a prompt's tokens, one for all rows or one a row. Negative indices
count from the prompt's end; an open slice takes in what is generated."""

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
        if positions.dtype != torch.bool or positions.ndim not in (1, 2) or not positions.any():
            raise SteerlensError(
                f"positions came as a {positions.dtype} tensor of shape {tuple(positions.shape)}; "
                "a mask is Boolean, [pos] or [row, pos], and true somewhere"
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
    chosen = _selected(positions, place, torch.tensor([[n_prompt]]), start)
    return bool((chosen & (place > 0) if skip_bos else chosen).any())


@dataclass
class Clock:
    """Where a run stands: which tokens of which rows the pass at hand shows to the hooks.

    A run is a prompt pass and the passes that continue it: one token at a time (with a cache), or
    the whole grown text again. The clock tells by itself when a new prompt begins.
    """

    prompt_mask: Bool[Tensor, "row pos"] | None = None
    """True at real tokens; None means that nobody said where the padding is."""
    reply_start: Int[Tensor, " row"] | None = None
    """Where each row's reply begins, if somebody who has seen the text said so."""
    on_prompt: Callable[[], None] = lambda: None
    """Called when a new prompt begins."""
    n_rows: int = 0
    n_prompt: int = 0
    rows: Int[Tensor, " row"] | None = None
    """The rows that are left, as numbered at the prompt; None: all of them."""
    offset: int = 0
    """Text position of the first token that the current pass shows."""
    width: int = 0
    """How many tokens the current pass shows."""
    passes: int = 0
    """How many passes there were, of all prompts."""
    _text: Tensor | None = field(default=None, repr=False)

    def tick(self, activation: Float[Tensor, "row pos d_model"]) -> None:
        """Take note of a pass, from the first activation that a hook sees of it."""
        n_rows, width = activation.shape[:2]
        if self._continues(activation):
            self.offset = self.offset + self.width if width == 1 else 0
        else:
            self.n_rows, self.n_prompt, self.offset = n_rows, width, 0
            self._require_fitting_mask()
            self.on_prompt()
        self.width = width
        self.passes += 1
        if self.offset == 0:
            self._text = activation.detach()  # recognises the text when it is shown again, grown

    def keep_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows only, in this order."""
        self.n_rows = len(rows)
        self._text = None if self._text is None else self._text[rows]
        if self.prompt_mask is not None:
            self.prompt_mask = self.prompt_mask[rows]
        if self.reply_start is not None:
            self.reply_start = self.reply_start[rows]
        self.rows = rows if self.rows is None else self.rows[rows]

    @property
    def at_prompt(self) -> bool:
        """Whether the current pass shows the prompt and nothing else."""
        return self.offset == 0 and self.width == self.n_prompt

    def steered(
        self, positions: Positions, skip_bos: bool
    ) -> Bool[Tensor, "row pos"] | Bool[Tensor, "1 pos"] | None:
        """Where in the current pass `positions` lie; None stands for everywhere."""
        if isinstance(positions, str) and positions == "all" and not skip_bos:
            return None  # padding too: no edit at a pad ever reaches a real token
        index = torch.arange(self.offset, self.offset + self.width)[None]
        by_pass = isinstance(positions, str) and positions in ("prompt", "generated")
        if by_pass and not skip_bos and self.prompt_mask is None:
            return index < self.n_prompt if positions == "prompt" else index >= self.n_prompt
        mask = self.require_mask(f"steering {describe(positions)}, skip_bos={skip_bos}").cpu()
        length = mask.sum(dim=1, keepdim=True)
        first = mask.int().argmax(dim=1, keepdim=True)
        place = torch.where(index < self.n_prompt, index - first, index - self.n_prompt + length)
        real = torch.ones(self.n_rows, self.width, dtype=torch.bool)
        shown = mask[:, self.offset : self.offset + self.width]
        real[:, : shown.shape[1]] = shown
        if skip_bos:
            real &= place > 0
        if isinstance(positions, Tensor) and positions.ndim == 2:
            positions = self.of_rows(positions, "positions mask")
        start = None if self.reply_start is None else self.reply_start[:, None]
        return real & _selected(positions, place, length, start)

    def of_rows(self, values: Shaped[Tensor, "row ..."], what: str) -> Shaped[Tensor, "left ..."]:
        """What belongs to the rows that are left, of values given for all rows of the prompt."""
        left = values if self.rows is None else values[self.rows]
        if len(left) != self.n_rows:
            raise SteerlensError(
                f"the {what} has {len(values)} rows, but the batch {self.n_rows}; "
                "it needs one row for each prompt"
            )
        return left

    def require_mask(self, purpose: str) -> Bool[Tensor, "row pos"]:
        """The prompt mask; a single row needs none, a batch must not be guessed at."""
        if self.prompt_mask is not None:
            return self.prompt_mask
        if self.n_rows == 1:
            return torch.ones(1, self.n_prompt, dtype=torch.bool)
        raise SteerlensError(
            f"{purpose} needs to know where the padding of this batch of {self.n_rows} prompts is; "
            "use steerlens.generate, or pass hooks(prompt_mask=...), True at real tokens"
        )

    def _continues(self, activation: Tensor) -> bool:
        n_rows, width = activation.shape[:2]
        shown = self.offset + self.width
        if not shown or n_rows != self.n_rows:
            return False
        if width == 1:
            return True
        if self._text is None or self.offset or width != shown + 1:
            return False
        return torch.allclose(activation[:, :shown], self._text, rtol=1e-3, atol=1e-4)

    def _require_fitting_mask(self) -> None:
        mask, needed = self.prompt_mask, (self.n_rows, self.n_prompt)
        if mask is None:
            return
        if tuple(mask.shape) != needed:
            raise SteerlensError(
                f"the prompt mask has shape {tuple(mask.shape)}, but the model runs a prompt of "
                f"shape {needed}; make hooks for each batch with its own mask"
            )
        if not mask.any(dim=1).all():
            raise SteerlensError("a row of the prompt mask has no real token; leave such rows out")


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


def _selected(
    positions: Positions,
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
