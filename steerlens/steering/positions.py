"""Which tokens are steered, as far as their positions tell."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.shapes import TokenIds, TokenMask
from steerlens.steering.predicates import Leaf, Predicate

Positions = str | slice | Sequence[int] | Bool[Tensor, " place"] | Predicate
"""What is steered: "all", "prompt", "generated", "last" (the prompt's last token, and what
follows), "reply" (all after the user's message: the template's tokens, and what follows), a slice,
a list of indices, a Boolean mask over a prompt's tokens (a `BatchPlan` has one for each row), or a
combination (`&`, `|`, `~`) of `places`. Negative indices count from the prompt's end; an open slice
includes what is generated."""
UNKNOWN = -1
"""In a text: a token that is not known yet."""
NO_TOKEN = -2
"""In a text: padding."""


class Seen(NamedTuple):
    """The tokens of a pass, as rules about positions see them."""

    place: Int[Tensor, "batch pos"]
    """The index of each token in its row's text, counted without padding."""
    length: Int[Tensor, "batch 1"]
    """Tokens of each row's prompt."""
    reply_start: Int[Tensor, "batch 1"] | None = None
    """Where each row's reply begins, if known."""
    text: TokenIds | None = None
    """The rows' tokens up to the last one of the pass; `UNKNOWN` and `NO_TOKEN` among them."""


class Place(Leaf):
    """A rule about the position of a token, or about the tokens up to it."""

    reads_text = False
    """Whether it needs to know which tokens there are."""

    @abstractmethod
    def chosen(self, seen: Seen) -> TokenMask:
        """Which tokens of the pass it selects, as far as their text is known."""

    def possible(self, seen: Seen) -> "Possible":
        """Which tokens it may select, whatever the unknown ones turn out to be."""
        chosen = self.chosen(seen)
        return Possible(chosen, chosen)

    def as_text(self) -> "Place":
        """The same rule for a text read at once, as though the model had written it."""
        return self


@dataclass(frozen=True)
class Possible:
    """Truth of which only the bounds are known: `may` be true, `must` be true."""

    may: TokenMask
    must: TokenMask

    def __and__(self, other: "Possible") -> "Possible":
        return Possible(self.may & other.may, self.must & other.must)

    def __or__(self, other: "Possible") -> "Possible":
        return Possible(self.may | other.may, self.must | other.must)

    def __invert__(self) -> "Possible":
        return Possible(~self.must, ~self.may)


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
    elif isinstance(positions, Predicate):
        wrong = [leaf for leaf in positions.leaves() if not isinstance(leaf, Place)]
        if wrong:
            raise SteerlensError(
                f"got positions={positions} with {short_repr(wrong[0])}; expected a combination of "
                "places, such as places.generated(stop=5) (a condition belongs into when_token=)"
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
            "slice, a list of indices, a Boolean mask or a combination of places"
        )


def can_select(
    positions: Positions,
    skip_bos: bool,
    prompt: Sequence[int],
    n_new: int,
    reply_start: int | None = None,
) -> bool:
    """Whether positions select any token that the model reads; it never reads the last new one.

    Args:
        positions: What is steered.
        skip_bos: Whether the first token is left out.
        prompt: Token ids of the prompt.
        n_new: Tokens generated after it.
        reply_start: Where the reply begins, needed for "reply".

    >>> can_select(slice(5, None), skip_bos=False, prompt=[5, 6, 7, 8], n_new=1)
    False
    """
    text = torch.tensor([[*prompt, *[UNKNOWN] * (n_new - 1)]])
    place = torch.arange(text.shape[1])[None]
    start = None if reply_start is None else torch.tensor([[reply_start]])
    seen = Seen(place, torch.tensor([[len(prompt)]]), start, text)
    if isinstance(positions, Predicate):
        chosen = positions.truth(lambda leaf: leaf.possible(seen)).may
    else:
        chosen = selected(positions, seen)
    return bool((chosen & (place > 0) if skip_bos else chosen).any())


def describe(positions: Positions) -> str:
    """Positions in words, short enough for a message.

    >>> describe(slice(-3, None))
    'positions -3:'
    """
    if isinstance(positions, Predicate):
        return f"positions {positions}"
    if isinstance(positions, str):
        return f"{positions} positions"
    if isinstance(positions, slice):
        ends = ["" if end is None else str(end) for end in (positions.start, positions.stop)]
        return f"positions {':'.join(ends)}" + (f":{positions.step}" if positions.step else "")
    if isinstance(positions, Tensor):
        return "masked positions"
    some = ", ".join(map(str, positions[:8])) + (", …" if len(positions) > 8 else "")
    return f"positions [{some}]"


def reads_text(positions: Positions | Bool[Tensor, "batch place"]) -> bool:
    """Whether positions depend on which tokens there are."""
    leaves = positions.leaves() if isinstance(positions, Predicate) else ()
    return any(getattr(leaf, "reads_text", False) for leaf in leaves)


def selected(positions: Positions | Bool[Tensor, "batch place"], seen: Seen) -> TokenMask:
    """Which tokens of each row positions select.

    Args:
        positions: What is steered; or a mask for each row.
        seen: The tokens of the pass; `reply_start` is needed for "reply".

    >>> selected("last", Seen(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[3]])))
    tensor([[False, False,  True,  True]])
    """
    place, length, reply_start, _ = seen
    if isinstance(positions, Predicate):
        mask: TokenMask = positions.truth(lambda leaf: leaf.chosen(seen))
        return mask
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
