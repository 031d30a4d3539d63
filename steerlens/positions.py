"""Which tokens are read, and which are steered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.errors import SteerlensError

Tokens = str | int | slice | Callable[[list[str]], Sequence[int]]
"""What is read of a prompt: "last", "all", "suffix", its last k, a slice, or a choice of one's own
from the string tokens. Padding is never part of it."""

Positions = str | slice
"""What is steered: "all", "prompt", "generated", "last" (of the prompt, and what follows), or a
slice; negative indices count from the prompt's end, and an open end takes in what is generated."""


def read_positions(
    tokens: Tokens, n_tokens: int, suffix_start: int | None, str_tokens: Callable[[], list[str]]
) -> list[int]:
    """The positions that `tokens` selects in a prompt of `n_tokens`; never none of them."""
    every = range(n_tokens)
    if tokens == "all":
        chosen = list(every)
    elif tokens == "last":
        chosen = [n_tokens - 1]
    elif tokens == "suffix":
        if suffix_start is None:
            raise SteerlensError(
                'tokens="suffix" was asked for a prompt without suffix; '
                'give the dataset suffixes, or read "last" or "all"'
            )
        chosen = list(every[suffix_start:])
    elif isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
        chosen = list(every[-tokens:])
    elif isinstance(tokens, slice):
        chosen = list(every[tokens])
    elif callable(tokens):
        chosen = [every[int(position)] for position in tokens(str_tokens())]
    else:
        raise SteerlensError(
            f'tokens={tokens!r} is not a token selection; use "last", "all", "suffix", '
            "a positive int (the last k), a slice, or a function of the string tokens"
        )
    if not chosen:
        raise SteerlensError(f"tokens={tokens!r} selects nothing in a prompt of {n_tokens} tokens")
    return chosen


def require_positions(positions: Positions) -> None:
    """Refuse position selections that are unknown, or empty whatever the prompt."""
    if isinstance(positions, slice):
        start, stop = positions.start, positions.stop
        if (positions.step or 1) < 1:
            raise SteerlensError(f"positions={positions!r} needs a positive step")
        alike = start is not None and stop is not None and (start < 0) == (stop < 0)
        if alike and start >= stop:
            raise SteerlensError(f"positions={positions!r} can never select a token")
    elif positions not in ("all", "prompt", "generated", "last"):
        raise SteerlensError(
            f"positions={positions!r} is unknown; "
            'use "all", "prompt", "generated", "last" or a slice'
        )


def can_select(positions: Positions, skip_bos: bool, n_prompt: int, n_new: int) -> bool:
    """Whether any token that a model reads is selected; the last new one is never read."""
    place = torch.arange(n_prompt + n_new - 1)[None]
    chosen = _selected(positions, place, torch.tensor([[n_prompt]]))
    return bool((chosen & (place > 0) if skip_bos else chosen).any())


@dataclass
class Clock:
    """Where a run stands: which tokens of which rows the pass at hand shows to the hooks.

    A run is a prompt pass and the passes that continue it: one token at a time (with a cache), or
    the whole grown text again. The clock tells by itself when a new prompt begins.
    """

    prompt_mask: Bool[Tensor, "row pos"] | None = None
    """True at real tokens; None means that nobody said where the padding is."""
    on_prompt: Callable[[], None] = lambda: None
    """Called when a new prompt begins."""
    n_rows: int = 0
    n_prompt: int = 0
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

    @property
    def at_prompt(self) -> bool:
        """Whether the current pass shows the prompt and nothing else."""
        return self.offset == 0 and self.width == self.n_prompt

    def steered(
        self, positions: Positions, skip_bos: bool
    ) -> Bool[Tensor, "row pos"] | Bool[Tensor, "1 pos"] | None:
        """Where in the current pass `positions` lie; None stands for everywhere."""
        if positions == "all" and not skip_bos:
            return None  # padding too: no edit at a pad ever reaches a real token
        index = torch.arange(self.offset, self.offset + self.width)[None]
        if positions in ("prompt", "generated") and not skip_bos and self.prompt_mask is None:
            return index < self.n_prompt if positions == "prompt" else index >= self.n_prompt
        mask = self.require_mask(f"steering positions={positions!r}, skip_bos={skip_bos}").cpu()
        length = mask.sum(dim=1, keepdim=True)
        first = mask.int().argmax(dim=1, keepdim=True)
        place = torch.where(index < self.n_prompt, index - first, index - self.n_prompt + length)
        real = torch.ones(self.n_rows, self.width, dtype=torch.bool)
        shown = mask[:, self.offset : self.offset + self.width]
        real[:, : shown.shape[1]] = shown
        if skip_bos:
            real &= place > 0
        return real & _selected(positions, place, length)

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


def _selected(
    positions: Positions, place: Int[Tensor, "row pos"], length: Int[Tensor, "row 1"]
) -> Bool[Tensor, "row pos"]:
    """Which places of each row are selected; `length` is that of the row's prompt."""
    if positions == "all":
        return place >= 0
    if positions == "prompt":
        return place < length
    if positions == "generated":
        return place >= length
    window = slice(-1, None) if positions == "last" else positions
    assert isinstance(window, slice)
    start = 0 if window.start is None else window.start
    low = torch.full_like(length, start) if start >= 0 else (length + start).clamp_min(0)
    chosen = (place >= low) & ((place - low) % (window.step or 1) == 0)
    if window.stop is not None:
        chosen &= place < (window.stop if window.stop >= 0 else length + window.stop)
    return chosen
