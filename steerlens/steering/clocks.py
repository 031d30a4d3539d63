"""Decoding state: which tokens of which rows the current forward pass contains."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import get_ident

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.shapes import Resid, TokenIds, TokenMask
from steerlens.steering.positions import (
    NO_TOKEN,
    Positions,
    Seen,
    describe,
    reads_text,
    selected,
)


@dataclass(frozen=True, eq=False)
class PromptRows:
    """The prompts of a batch: their number and width; padding and reply starts, where known."""

    count: int
    width: int
    """Tokens per row, padding included."""
    mask: TokenMask | None = None
    """True at real tokens; None: padding unknown."""
    reply_start: Int[Tensor, " batch"] | None = None
    """Where each row's reply begins: known only if tokenised here."""
    words: Int[Tensor, "batch 2"] | None = None
    """Where the user's words of each row begin and end: known only if tokenised here."""
    kept: Int[Tensor, " batch"] | None = None
    """Which of the run's first rows these are; None: all of them."""

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        expected = (self.count, self.width)
        if tuple(self.mask.shape) != expected:
            raise SteerlensError(
                f"got a prompt mask of shape {tuple(self.mask.shape)}; expected {expected}, the "
                "shape of the prompts: make hooks for each batch with its own mask"
            )
        if not self.mask.any(dim=1).all():
            raise SteerlensError(
                "got a prompt mask with a row that has no real token; expected at least one in "
                "each row: leave such rows out"
            )

    def keep(self, rows: Int[Tensor, " kept"]) -> "PromptRows":
        """The prompts of these rows only, in this order."""
        return replace(
            self,
            count=len(rows),
            mask=None if self.mask is None else self.mask[rows],
            reply_start=None if self.reply_start is None else self.reply_start[rows],
            words=None if self.words is None else self.words[rows],
            kept=rows if self.kept is None else self.kept[rows],
        )

    def require_mask(self, purpose: str) -> TokenMask:
        """The mask; a single row has no padding, and that of a batch is never guessed.

        Args:
            purpose: What needs the mask, for the message of the refusal.
        """
        if self.mask is not None:
            return self.mask
        if self.count == 1:
            return torch.ones(1, self.width, dtype=torch.bool)
        raise SteerlensError(
            f"{purpose} needs to know where the padding of this batch of {self.count} prompts is; "
            "use steerlens.generate, or pass hooks(prompt_mask=...), True at real tokens"
        )

    def of_rows(self, values: Shaped[Tensor, "row ..."], name: str) -> Shaped[Tensor, "batch ..."]:
        """The values of these rows, out of values for all of the run's first rows.

        Args:
            values: One entry for each row that the run began with.
            name: What the values are, for the message of the refusal.
        """
        remaining = values if self.kept is None else values[self.kept]
        if len(remaining) != self.count:
            raise SteerlensError(
                f"got {len(values)} rows of {name} for a batch of {self.count}; expected one for "
                "each prompt"
            )
        return remaining


@dataclass(frozen=True, eq=False)
class PassTokens:
    """Which tokens of a batch one forward pass contains."""

    rows: PromptRows
    offset: int
    """Position in the text of the pass's first token, padding counted."""
    width: int
    """How many tokens the pass contains."""
    doubt: str | None = None
    """Why their positions in the text are not known; None: they are."""
    ids: TokenIds | None = None
    """The text up to the pass's last token, padding included; None: not known."""

    @property
    def end(self) -> int:
        """Position in the text after the pass's last token."""
        return self.offset + self.width

    @property
    def at_prompt(self) -> bool:
        """Whether the pass contains the prompt and nothing else."""
        self._require_certain("a condition")
        return self.offset == 0 and self.width == self.rows.width

    def steered(
        self,
        positions: Positions,
        skip_bos: bool,
        row_mask: Bool[Tensor, "prompt place"] | None = None,
    ) -> TokenMask | Bool[Tensor, "1 pos"] | None:
        """Which tokens of the pass are steered; None: all of them.

        Args:
            positions: What is steered; see `Positions`.
            skip_bos: Leave each row's first real token out.
            row_mask: A mask for each row, which replaces `positions`.
        """
        by_name = isinstance(positions, str) and row_mask is None
        if by_name and positions == "all" and not skip_bos:
            return None  # padding too: no edit of a padding token reaches a real one
        purpose = f"steering {describe(positions)}, skip_bos={skip_bos}"
        self._require_certain(purpose)
        by_pass = by_name and positions in ("prompt", "generated")
        if by_pass and not skip_bos and self.rows.mask is None:
            index = torch.arange(self.offset, self.end)[None]
            n_prompt = self.rows.width
            return index < n_prompt if positions == "prompt" else index >= n_prompt
        real, seen = self.real(purpose), self.seen(purpose, with_text=reads_text(positions))
        if skip_bos:
            real &= seen.place > 0
        if row_mask is not None:
            return real & selected(self.rows.of_rows(row_mask, "positions mask"), seen)
        return real & selected(positions, seen)

    def real(self, purpose: str) -> TokenMask:
        """Which tokens of the pass are no padding.

        Args:
            purpose: What needs to know, for the message of a refusal.
        """
        of_prompt = self.rows.require_mask(purpose).cpu()[:, self.offset : self.end]
        real = torch.ones(self.rows.count, self.width, dtype=torch.bool)
        real[:, : of_prompt.shape[1]] = of_prompt
        return real

    def place(self, purpose: str) -> Int[Tensor, "batch pos"]:
        """Each token's index in its text, padding not counted: negative at padding.

        Args:
            purpose: What needs to know, for the message of a refusal.
        """
        self._require_certain(purpose)
        mask = self.rows.require_mask(purpose).cpu()
        index = torch.arange(self.offset, self.end)[None]
        first = mask.int().argmax(dim=1, keepdim=True)
        length = mask.sum(dim=1, keepdim=True)
        n_prompt = self.rows.width
        return torch.where(index < n_prompt, index - first, index - n_prompt + length)

    def seen(self, purpose: str, with_text: bool = False) -> Seen:
        """The tokens of the pass, as rules about positions see them.

        Args:
            purpose: What needs to know, for the message of a refusal.
            with_text: Whether the tokens' ids are needed.
        """
        start = self.rows.reply_start
        length = self.rows.require_mask(purpose).cpu().sum(dim=1, keepdim=True)
        text = self._text(purpose) if with_text else None
        return Seen(self.place(purpose), length, None if start is None else start[:, None], text)

    def _text(self, purpose: str) -> TokenIds:
        """The text up to the last token, with padding marked as such."""
        if self.ids is None:
            raise SteerlensError(
                f"{purpose} needs to see which tokens there are, and hooks see activations only; "
                "use steerlens.generate"
            )
        if self.rows.mask is None:
            return self.ids.cpu()
        ids = self.ids.cpu().clone()
        ids[:, : self.rows.width][~self.rows.mask.cpu()[:, : ids.shape[1]]] = NO_TOKEN
        return ids

    def _require_certain(self, purpose: str) -> None:
        if self.doubt is not None:
            raise SteerlensError(f"{purpose}: {self.doubt}")


class DecodingClock:
    """A clock that the decoding loop sets before each forward pass.

    Args:
        mask: Which tokens of the padded prompts are real.
        reply_start: Where each row's reply begins, if known.
        words: Where the user's words of each row begin and end, if known.
    """

    def __init__(
        self,
        mask: TokenMask,
        reply_start: Int[Tensor, " batch"] | None = None,
        words: Int[Tensor, "batch 2"] | None = None,
    ) -> None:
        self._rows = PromptRows(len(mask), mask.shape[1], mask, reply_start, words)
        self._tokens: PassTokens | None = None

    @property
    def current(self) -> PassTokens:
        """The tokens of the current pass."""
        if self._tokens is None:
            raise SteerlensError(
                "a hook ran before its clock had the tokens of the pass; call show() before each "
                "forward pass"
            )
        return self._tokens

    def show(self, offset: int, width: int, ids: TokenIds | None = None) -> None:
        """Set the next pass: `width` tokens from position `offset` of the text on.

        Args:
            offset: Position in the text of the first token.
            width: How many tokens.
            ids: The text up to the last of them, padding included, if positions depend on it.
        """
        self._tokens = PassTokens(self._rows, offset, width, ids=ids)

    def keep_rows(self, rows: Int[Tensor, " kept"]) -> None:
        """Continue with these rows of the batch only, in this order."""
        self._rows, self._tokens = self._rows.keep(rows), None


class PlainHooksClock:
    """A clock that infers the tokens of a pass from what hooks see, in any decoding loop.

    A run is a prompt's pass and the passes that continue it: one token at a time (with a KV cache),
    or the whole text again, one token longer. The attention scores' width tells the two apart. A
    text that repeats the one before plus one token counts as its continuation, and gates keep
    their decision: for a new prompt of that kind, make fresh hooks or use `steerlens.generate`.

    Args:
        mask: Which tokens of the padded prompts are real; None: padding unknown.
        thread: The thread that may run the model with these hooks; None: any.
    """

    def __init__(self, mask: TokenMask | None = None, thread: int | None = None) -> None:
        self.on_prompt: Callable[[], object] = tuple  # called when a new prompt begins
        self._mask = mask
        self._thread = thread
        self._last: PassTokens | None = None
        self._text: Tensor | None = (
            None  # recognises the text when it is run again, one token longer
        )
        self._first: Tensor | None = None  # first activation of a pass whose position is still open

    @property
    def current(self) -> PassTokens:
        """The tokens of the current pass."""
        if self._first is not None:  # no attention scores so far: guess
            n_rows, width = self._first.shape[:2]
            last = self._last
            decoding = last is not None and width == 1 and n_rows == last.rows.count
            self._place(last.end if last is not None and decoding else 0)
        if self._last is None:
            raise SteerlensError(
                "a hook ran before the first hook of its pass; run the model with all of the hooks"
            )
        return self._last

    def tick(self, activation: Resid) -> None:
        """Note that a pass begins, from the first activation of it that a hook sees."""
        if self._thread not in (None, get_ident()):
            raise SteerlensError(
                "got hooks made in another thread than the one that runs the model; expected the "
                "same, or they would steer another run: make hooks in the thread that uses them, "
                "or use steerlens.generate"
            )
        self._first = activation.detach()

    def count(self, n_keys: int) -> None:
        """Note how many tokens the text of this pass has so far, cached ones included."""
        if self._first is not None:
            self._place(n_keys - self._first.shape[1])
        elif self._last is not None and self._last.end != n_keys and not self._last.doubt:
            self._last = None
            raise SteerlensError(
                f"a pass of {self._width} tokens was given a wrong position in its text: plain "
                "hooks cannot find it at this site; use steerlens.generate, or make fresh hooks "
                "for each prompt"
            )

    def _place(self, offset: int) -> None:
        """Set the current pass to the text from `offset` on."""
        assert self._first is not None
        activation, last = self._first, self._last
        self._first = None
        n_rows, width = activation.shape[:2]
        self._width = width
        if not offset:
            if last is not None and self._grown(last, activation):
                self._last = PassTokens(last.rows, 0, width)
            else:
                self._last = PassTokens(PromptRows(n_rows, width, self._mask), 0, width)
                self.on_prompt()
            self._text = activation
            return
        self._text = None
        if last is not None and (n_rows, offset, width) == (last.rows.count, last.end, 1):
            self._last = PassTokens(last.rows, offset, 1, last.doubt)
            return
        self._last = PassTokens(
            PromptRows(n_rows, offset + width),
            offset,
            width,
            f"got {width} tokens that continue {offset} cached ones; expected a prompt in one "
            "pass, since it is unknown which of these tokens are the prompt: run it at once, or "
            "use steerlens.generate",
        )
        self.on_prompt()

    def _grown(self, last: PassTokens, activation: Tensor) -> bool:
        """Whether this is the whole text of the previous pass plus one token."""
        if self._text is None or tuple(activation.shape[:2]) != (last.rows.count, last.end + 1):
            return False
        return torch.allclose(activation[:, : last.end], self._text, rtol=1e-3, atol=1e-4)


Clock = DecodingClock | PlainHooksClock
