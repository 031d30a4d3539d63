"""Rules about which tokens are steered, combined by `&`, `|` and `~`, for `Steering.positions`.

>>> from steerlens.steering import places
>>> print(places.generated(stop=20) & ~places.tokens([13, 198]))
generated[:20] and not tokens[13, 198]
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.chat_templates import turn_marks
from steerlens.models.host import Model
from steerlens.models.tokenizing import special_ids
from steerlens.numerics import require_count
from steerlens.shapes import TokenIds, TokenMask
from steerlens.steering.positions import (
    NAMED,
    NO_TOKEN,
    UNKNOWN,
    Place,
    Positions,
    Possible,
    Seen,
    describe,
    require_positions,
    selected,
)
from steerlens.steering.predicates import Predicate, parse_predicate


@dataclass(frozen=True, eq=False)
class At(Place):
    """Any of the plain positions: a name, a slice, a list of indices or a mask."""

    positions: Positions

    def __post_init__(self) -> None:
        require_positions(self.positions)

    def chosen(self, seen: Seen) -> TokenMask:
        return selected(self.positions, seen)

    def as_text(self) -> "At":
        return At(positions_as_text(self.positions))

    def __str__(self) -> str:
        if isinstance(self.positions, str):
            return self.positions
        if isinstance(self.positions, slice):
            return f"place[{describe(self.positions).removeprefix('positions ')}]"
        if isinstance(self.positions, Tensor | Predicate):
            return describe(self.positions).removeprefix("positions ")
        return f"place[{', '.join(map(str, self.positions))}]"


@dataclass(frozen=True)
class Generated(Place):
    """Generated tokens from number `start` to before number `stop`, every `step`-th of them."""

    start: int = 0
    stop: int | None = None
    step: int = 1
    whole: bool = False
    """The text counts as generated from its second token on."""

    def __post_init__(self) -> None:
        require_count("step", self.step)
        require_count("start + 1", self.start + 1)
        if self.stop is not None and self.stop <= self.start:
            raise SteerlensError(
                f"got start={self.start} and stop={self.stop} of generated tokens, which can "
                "never select one; expected a start before the stop"
            )

    def chosen(self, seen: Seen) -> TokenMask:
        number = seen.place - (1 if self.whole else seen.length)
        chosen = (number >= self.start) & ((number - self.start) % self.step == 0)
        return chosen if self.stop is None else chosen & (number < self.stop)

    def as_text(self) -> "Generated":
        return replace(self, whole=True)

    def __str__(self) -> str:
        start, stop = self.start or "", "" if self.stop is None else self.stop
        step = f":{self.step}" if self.step > 1 else ""
        return f"generated[{start}:{stop}{step}]"


@dataclass(frozen=True)
class TokenIn(Place):
    """Tokens with one of these ids."""

    ids: tuple[int, ...]
    told: str = field(default="", compare=False)
    reads_text = True

    def chosen(self, seen: Seen) -> TokenMask:
        return torch.isin(_of_pass(seen), torch.tensor(self.ids))

    def possible(self, seen: Seen) -> Possible:
        must = self.chosen(seen)
        return Possible(must | (_of_pass(seen) == UNKNOWN), must)

    def __str__(self) -> str:
        return f"tokens[{self.told or ', '.join(map(str, self.ids))}]"


@dataclass(frozen=True)
class Between(Place):
    """Tokens after an opening mark, up to and with the next closing one."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    told: str = field(default="", compare=False)
    reads_text = True

    def chosen(self, seen: Seen) -> TokenMask:
        assert seen.text is not None
        order = torch.arange(1, seen.text.shape[1] + 1)
        opened, closed = (
            (_ends(seen.text, mark) * order).cummax(dim=1).values
            for mark in (self.opening, self.closing)
        )
        after = torch.nn.functional.pad(opened > closed, (1, 0))[:, :-1]
        return after[:, -seen.place.shape[1] :]

    def possible(self, seen: Seen) -> Possible:
        assert seen.text is not None
        begun = (seen.text == UNKNOWN).cummax(dim=1).values[:, -seen.place.shape[1] :]
        chosen = self.chosen(seen)
        return Possible(chosen | begun, chosen & ~begun)

    def __str__(self) -> str:
        return self.told or f"between[{list(self.opening)}, {list(self.closing)}]"


def at(positions: Positions) -> At:
    """A plain position, to be combined with other rules.

    >>> print(at("last") & ~at([0]))
    last and not place[0]
    """
    return At(positions)


def generated(start: int = 0, stop: int | None = None, step: int = 1) -> Generated:
    """The tokens of the reply, counted from 0: `generated(stop=5)` are the first five.

    Args:
        start: The first that is meant: `generated(5)` are those after the first five.
        stop: The first that is not meant any more; None: to the end.
        step: 3: every third of these.

    >>> print(generated(stop=5))
    generated[:5]
    """
    return Generated(start, stop, step)


def tokens(which: Sequence[int] | Sequence[str], model: Model | None = None) -> TokenIn:
    """Certain tokens, wherever they are; `~tokens(…)` is a list of exclusions.

    Args:
        which: Token ids, or, with a model, texts that are one token each.
        model: Whose tokenizer knows the texts.

    Raises:
        SteerlensError: No token, or a text of several tokens.

    >>> print(tokens([" the", "\\n"], load_model()))
    tokens[' the', '\\n']
    """
    listed = [which] if isinstance(which, str) else list(which)
    if not listed:
        raise SteerlensError("got no tokens; expected at least one id or text")
    texts = [token for token in listed if isinstance(token, str)]
    if not texts:
        return TokenIn(tuple(_whole_number(token) for token in listed))
    if model is None:
        raise SteerlensError(
            f"got the token {short_repr(texts[0])} as text; pass the model, whose tokenizer knows "
            "its id"
        )
    ids = [_one_token(model, token) for token in map(str, listed)]
    return TokenIn(tuple(ids), ", ".join(map(repr, listed)))


def between(opening: str, closing: str, model: Model) -> Between:
    """A phase of the text: what follows an opening mark, up to and with the closing one.

    A mark takes effect once it is complete, so the closing mark itself still belongs to the phase.

    Args:
        opening: The mark's text, such as "<think>".
        closing: The other mark's text.
        model: Whose tokenizer knows the marks.

    >>> print(between("<think>", "</think>", load_model()))
    from '<think>' to '</think>'
    """
    marks = [special_ids(model, mark) for mark in (opening, closing)]
    return Between(marks[0], marks[1], f"from {opening!r} to {closing!r}")


def thinking(model: Model, opening: str = "<think>", closing: str = "</think>") -> Between:
    """What a reasoning model thinks before it answers; `generated() & ~thinking(…)` is the answer.

    Args:
        model: Whose tokenizer knows the marks.
        opening: What begins the thoughts.
        closing: What ends them.

    >>> print(generated() & ~thinking(load_model()))
    generated[:] and not thoughts
    """
    return replace(between(opening, closing, model), told="thoughts")


def turns(model: Model, role: str) -> Between:
    """The words of one role of a chat, in all of its turns, as the chat template marks them.

    Args:
        model: Whose chat template it is.
        role: "system", "user" or "assistant".

    Raises:
        SteerlensError: A template whose turns no special tokens begin and end: use `between`.

    >>> print(turns(load_model(), "user"))
    the user's turns
    """
    opening, closing = turn_marks(model.tokenizer, getattr(model, "template_options", {}), role)
    return replace(between(opening, closing, model), told=f"the {role}'s turns")


def parse_positions(text: str) -> Positions:
    """Read positions as they are printed: names, `generated[a:b]`, `place[i, j]`, `tokens[i, j]`.

    Args:
        text: Such as "generated[:5] and not tokens[13]", or "last".

    Raises:
        SteerlensError: Text that is no such combination.

    >>> print(parse_positions("last or not (generated[5:20:2] or place[-3:])"))
    last or not (generated[5:20:2] or place[-3:])
    >>> parse_positions("prompt")
    'prompt'
    """
    leaves = f"{', '.join(NAMED)}, generated[a:b], place[a:b], place[i, j], tokens[i, j]"
    read = parse_predicate(text, _leaf, f"the positions {text!r}", leaves)
    return read.positions if isinstance(read, At) else read


def _leaf(node: ast.expr) -> Place | None:
    match node:
        case ast.Name(id=name) if name in NAMED:
            return At(name)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Slice() as window):
            ends = [_number(end) for end in (window.lower, window.upper, window.step)]
            if name == "generated":
                return Generated(ends[0] or 0, ends[1], 1 if ends[2] is None else ends[2])
            return At(slice(*ends)) if name == "place" else None
        case ast.Subscript(value=ast.Name(id="place" | "tokens" as name), slice=inner):
            listed = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            numbers = [number for one in listed if (number := _number(one)) is not None]
            return At(numbers) if name == "place" else tokens(numbers)
    return None


def _number(node: ast.expr | None) -> int | None:
    """A whole number, negative or not; None for nothing."""
    match node:
        case None:
            return None
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
            return -value
    raise SteerlensError(f"got {ast.unparse(node)!r} in positions; expected a whole number")


def positions_as_text(positions: Positions) -> Positions:
    """Positions for a text read at once, as though the model had written it from token 1 on.

    >>> positions_as_text("generated")
    slice(1, None, None)
    """
    begin = {"generated": slice(1, None), "reply": slice(1, None), "last": slice(0, None)}
    if isinstance(positions, Predicate):
        return positions.bound(lambda leaf: leaf.as_text())
    return begin.get(positions, positions) if isinstance(positions, str) else positions


def _of_pass(seen: Seen) -> Int[Tensor, "batch pos"]:
    """The tokens of the pass itself."""
    assert seen.text is not None
    return seen.text[:, -seen.place.shape[1] :]


def _ends(text: TokenIds, mark: Sequence[int]) -> Bool[Tensor, "batch place"]:
    """Where a mark is complete."""
    found = torch.ones_like(text, dtype=torch.bool)
    for back, token in enumerate(reversed(mark)):
        earlier = torch.nn.functional.pad(text, (back, 0), value=NO_TOKEN)[:, : text.shape[1]]
        found &= earlier == token
    return found


def _whole_number(token: Any) -> int:
    if isinstance(token, bool) or not isinstance(token, int) or token < 0:
        raise SteerlensError(f"got the token {short_repr(token)}; expected an id, or a text")
    return token


def _one_token(model: Model, text: str) -> int:
    ids = special_ids(model, text)
    if len(ids) != 1:
        raise SteerlensError(
            f"got the token {text!r}, which are {len(ids)} tokens of {model.cfg.model_name}; "
            "expected one each (a leading space is part of a token)"
        )
    return ids[0]
