"""Which tokens of which rows a forward pass shows to the hooks: told by who runs it, or guessed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import get_ident

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.steering.positions import Positions, describe, selected


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The prompts of a batch: their number and width, and what is known of padding and replies."""

    count: int
    width: int
    """Tokens of each row, padding included."""
    mask: Bool[Tensor, "row pos"] | None = None
    """True at real tokens; None: it is not known where the padding is."""
    reply_start: Int[Tensor, " row"] | None = None
    """Where each row's reply begins, if that is known."""
    kept: Int[Tensor, " row"] | None = None
    """The rows that are left of those that the run began with; None: all."""

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        expected = (self.count, self.width)
        if tuple(self.mask.shape) != expected:
            raise SteerlensError(
                f"the prompt mask has shape {tuple(self.mask.shape)}, but the model runs a prompt "
                f"of shape {expected}; make hooks for each batch with its own mask"
            )
        if not self.mask.any(dim=1).all():
            raise SteerlensError("a row of the prompt mask has no real token; leave such rows out")

    def keep(self, rows: Int[Tensor, " row"]) -> "PromptRows":
        """These rows only, in this order."""
        return replace(
            self,
            count=len(rows),
            mask=None if self.mask is None else self.mask[rows],
            reply_start=None if self.reply_start is None else self.reply_start[rows],
            kept=rows if self.kept is None else self.kept[rows],
        )

    def require_mask(self, purpose: str) -> Bool[Tensor, "row pos"]:
        """The mask; a single row needs none, a batch must not be guessed at."""
        if self.mask is not None:
            return self.mask
        if self.count == 1:
            return torch.ones(1, self.width, dtype=torch.bool)
        raise SteerlensError(
            f"{purpose} needs to know where the padding of this batch of {self.count} prompts is; "
            "use steerlens.generate, or pass hooks(prompt_mask=...), True at real tokens"
        )

    def of_rows(self, values: Shaped[Tensor, "row ..."], what: str) -> Shaped[Tensor, "left ..."]:
        """What belongs to the rows that are left, of values given for all rows."""
        left = values if self.kept is None else values[self.kept]
        if len(left) != self.count:
            raise SteerlensError(
                f"the {what} has {len(values)} rows, but the batch {self.count}; "
                "it needs one row for each prompt"
            )
        return left


@dataclass(frozen=True, eq=False)
class Shown:
    """The tokens that one forward pass shows to the hooks."""

    rows: PromptRows
    offset: int
    """Text position of the first token shown, padding counted."""
    width: int
    """How many tokens are shown."""
    doubt: str | None = None
    """Why it is not known where in the text they are."""

    @property
    def end(self) -> int:
        """Text position after the last token shown."""
        return self.offset + self.width

    @property
    def at_prompt(self) -> bool:
        """Whether the pass shows the prompt and nothing else."""
        self._require_certain("a condition")
        return self.offset == 0 and self.width == self.rows.width

    def steered(
        self,
        positions: Positions,
        skip_bos: bool,
        row_mask: Bool[Tensor, "prompt place"] | None = None,
    ) -> Bool[Tensor, "row pos"] | Bool[Tensor, "1 pos"] | None:
        """Where `positions` lie, or each row's own mask does; None stands for everywhere."""
        by_name = isinstance(positions, str) and row_mask is None
        if by_name and positions == "all" and not skip_bos:
            return None  # padding too: no edit at a pad ever reaches a real token
        what = f"steering {describe(positions)}, skip_bos={skip_bos}"
        self._require_certain(what)
        index = torch.arange(self.offset, self.end)[None]
        n_prompt = self.rows.width
        by_pass = by_name and positions in ("prompt", "generated")
        if by_pass and not skip_bos and self.rows.mask is None:
            return index < n_prompt if positions == "prompt" else index >= n_prompt
        mask = self.rows.require_mask(what).cpu()
        length = mask.sum(dim=1, keepdim=True)
        first = mask.int().argmax(dim=1, keepdim=True)
        place = torch.where(index < n_prompt, index - first, index - n_prompt + length)
        real = torch.ones(self.rows.count, self.width, dtype=torch.bool)
        shown = mask[:, self.offset : self.end]
        real[:, : shown.shape[1]] = shown
        if skip_bos:
            real &= place > 0
        if row_mask is not None:
            return real & selected(self.rows.of_rows(row_mask, "positions mask"), place, length)
        start = self.rows.reply_start
        return real & selected(positions, place, length, None if start is None else start[:, None])

    def _require_certain(self, purpose: str) -> None:
        if self.doubt is not None:
            raise SteerlensError(f"{purpose}: {self.doubt}")


class DecodingClock:
    """Told by the decode loop which tokens the next forward pass shows."""

    def __init__(
        self, mask: Bool[Tensor, "row pos"], reply_start: Int[Tensor, " row"] | None = None
    ) -> None:
        self._rows = PromptRows(len(mask), mask.shape[1], mask, reply_start)
        self._shown: Shown | None = None

    @property
    def shown(self) -> Shown:
        """What the pass at hand shows."""
        if self._shown is None:
            raise SteerlensError("a hook ran before its clock was told which tokens are shown")
        return self._shown

    def show(self, offset: int, width: int) -> None:
        """The next pass shows `width` tokens from text position `offset` on."""
        self._shown = Shown(self._rows, offset, width)

    def keep_rows(self, rows: Int[Tensor, " row"]) -> None:
        """Go on with these rows only, in this order."""
        self._rows, self._shown = self._rows.keep(rows), None


class PlainHooksClock:
    """Finds out which tokens are shown from what hooks can see, in somebody else's generate.

    A run is a prompt pass and the passes that continue it: one token at a time (with a cache), or
    the whole grown text again. Whether there is a cache shows in the attention scores. A text that
    is the one before and one token more is taken for that text grown, whose gates stay as they are:
    where it is a prompt of its own, make fresh hooks for it, or use `steerlens.generate`.
    """

    def __init__(
        self, mask: Bool[Tensor, "row pos"] | None = None, thread: int | None = None
    ) -> None:
        self.on_prompt: Callable[[], object] = tuple  # called when a new prompt begins
        self._mask = mask
        self._thread = thread  # the one that these hooks are for; None: any
        self._last: Shown | None = None
        self._text: Tensor | None = None  # recognises the text when it is shown again, grown
        self._first: Tensor | None = None  # what the pass at hand began with, until it is placed

    @property
    def shown(self) -> Shown:
        """What the pass at hand shows."""
        if self._first is not None:  # no attention scores so far: guess
            n_rows, width = self._first.shape[:2]
            last = self._last
            decoding = last is not None and width == 1 and n_rows == last.rows.count
            self._place(last.end if last is not None and decoding else 0)
        if self._last is None:
            raise SteerlensError(
                "a hook ran before the first one of its pass; run the model with all of the hooks"
            )
        return self._last

    def tick(self, activation: Float[Tensor, "row pos d_model"]) -> None:
        """Take note of a pass, from the first activation that a hook sees of it."""
        if self._thread not in (None, get_ident()):
            raise SteerlensError(
                "these hooks were made in another thread than the one that runs the model, and "
                "would steer what is not theirs; make hooks where they are used, or use "
                "steerlens.generate, whose runs never meet"
            )
        self._first = activation.detach()

    def count(self, n_keys: int) -> None:
        """How many tokens the text of this pass has so far, cached ones included."""
        if self._first is not None:
            self._place(n_keys - self._first.shape[1])
        elif self._last is not None and self._last.end != n_keys and not self._last.doubt:
            self._last = None
            raise SteerlensError(
                f"a pass of {self._width} tokens was taken for another part of its text than it "
                "is: plain hooks cannot tell at this site; use steerlens.generate, or make fresh "
                "hooks for each prompt"
            )

    def _place(self, offset: int) -> None:
        """The pass at hand shows the text from `offset` on."""
        assert self._first is not None
        activation, last = self._first, self._last
        self._first = None
        n_rows, width = activation.shape[:2]
        self._width = width
        if not offset:
            if last is not None and self._grown(last, activation):
                self._last = Shown(last.rows, 0, width)
            else:
                self._last = Shown(PromptRows(n_rows, width, self._mask), 0, width)
                self.on_prompt()
            self._text = activation
            return
        self._text = None
        if last is not None and (n_rows, offset, width) == (last.rows.count, last.end, 1):
            self._last = Shown(last.rows, offset, 1, last.doubt)
            return
        self._last = Shown(
            PromptRows(n_rows, offset + width),
            offset,
            width,
            f"{width} tokens came that continue {offset} cached ones, and which of them are the "
            "prompt cannot be told; run the whole prompt in one pass, or use steerlens.generate",
        )
        self.on_prompt()

    def _grown(self, last: Shown, activation: Tensor) -> bool:
        """Whether this is the whole text of the pass before, and one token more."""
        if self._text is None or tuple(activation.shape[:2]) != (last.rows.count, last.end + 1):
            return False
        return torch.allclose(activation[:, : last.end], self._text, rtol=1e-3, atol=1e-4)


Clock = DecodingClock | PlainHooksClock
