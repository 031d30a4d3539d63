"""Which tokens of a prompt are read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.host import Model
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import TokenRow

Tokens = str | int | slice | Callable[[list[str]], Sequence[int]]
"""Which tokens of a prompt are read: "last", "all", "user" (the user's own words, without the
template), "suffix", "reply" (everything after the user's words, template included), a positive int
k (the last k), a slice, or a function from the string tokens to positions, such as `answer_letter`.
Padding is never read."""

PARTS = {
    "user": "give text or chats instead of token ids",
    "suffix": "give the dataset suffixes",
    "reply": "use a model with a chat template",
}
"""The parts of a prompt that may be read by name, and what to do where a prompt lacks one."""


def read_positions(
    tokens: Tokens,
    n_tokens: int,
    parts: Mapping[str, slice | None],
    str_tokens: Callable[[], list[str]],
) -> list[int]:
    """The positions that `tokens` selects in a prompt; at least one.

    Args:
        tokens: The selection.
        n_tokens: Tokens in the prompt.
        parts: Where the prompt's "user", "suffix" and "reply" are, if it has them.
        str_tokens: Gives the string tokens; called only for a selection that is a function.

    >>> read_positions("suffix", 5, {"suffix": slice(3, None)}, list)
    [3, 4]
    """
    require_tokens(tokens)
    every = range(n_tokens)
    if isinstance(tokens, str) and tokens in PARTS:
        part = parts.get(tokens)
        if part is None:
            raise SteerlensError(
                f"tokens={tokens!r} was asked for a prompt without {tokens}; "
                f'{PARTS[tokens]}, or read "last" or "all"'
            )
        chosen = list(every[part])
    elif isinstance(tokens, str):
        chosen = list(every) if tokens == "all" else [n_tokens - 1]
    elif isinstance(tokens, int):
        chosen = list(every[-tokens:])
    elif isinstance(tokens, slice):
        chosen = list(every[tokens])
    else:
        chosen = _by_function(tokens, every, str_tokens())
    if not chosen:
        raise SteerlensError(f"tokens={tokens!r} selects nothing in a prompt of {n_tokens} tokens")
    return chosen


def require_tokens(tokens: Tokens) -> None:
    """Refuse a value that does not select tokens to read."""
    last_k = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0
    named = isinstance(tokens, str) and tokens in ("all", "last", *PARTS)
    if not (named or last_k or isinstance(tokens, slice) or callable(tokens)):
        raise SteerlensError(
            f'tokens={tokens!r} is not a token selection; use "last", "all", "user", "suffix", '
            '"reply", a positive int (the last k), a slice, or a function of the string tokens'
        )


def answer_letter(str_tokens: list[str]) -> list[int]:
    """The position of an A/B question's answer: the last token that is a single capital letter.

    >>> answer_letter(["Answer", ":", " (", "B", ")"])
    [3]
    """
    letters = [
        position
        for position, token in enumerate(str_tokens)
        if len(token.strip(" ()")) == 1 and token.strip(" ()").isupper()
    ]
    if not letters:
        raise SteerlensError(
            f"no answer letter among the tokens {str_tokens[-8:]}; end each prompt with one"
        )
    return letters[-1:]


def _by_function(
    tokens: Callable[[list[str]], Sequence[int]], every: range, str_tokens: list[str]
) -> list[int]:
    """The positions that a user's function chooses: indices, or a Boolean mask over the tokens."""
    returned: Any = tokens(list(str_tokens))
    listed = returned.tolist() if hasattr(returned, "tolist") else returned
    if isinstance(listed, list | tuple | range | set):
        listed = list(listed)
        if all(isinstance(kept, bool) for kept in listed) and len(listed) == len(every):
            return [position for position, kept in zip(every, listed, strict=True) if kept]
        if all(isinstance(at, int | np.integer) and not isinstance(at, bool) for at in listed):
            return [_within(every, int(position), tokens) for position in listed]
    raise SteerlensError(
        f"{getattr(tokens, '__name__', tokens)} returned {short_repr(returned)} for a prompt of "
        f"{len(every)} tokens; expected a list of positions, or of True and False for each token"
    )


def _within(every: range, position: int, tokens: object) -> int:
    if not -len(every) <= position < len(every):
        raise SteerlensError(
            f"{getattr(tokens, '__name__', tokens)} chose position {position} in a prompt of "
            f"{len(every)} tokens; expected {-len(every)} to {len(every) - 1}"
        )
    return every[position]


def positions_of(
    model: Model, rows: Sequence[TokenRow], tokens: Tokens | Sequence[int]
) -> list[tuple[int, ...]]:
    """The positions to read in each row: by one selection for all, or by an index for each."""
    if isinstance(tokens, Sequence) and not isinstance(tokens, str):
        if len(tokens) != len(rows):
            raise SteerlensError(
                f"got {len(tokens)} indices for {len(rows)} prompts; expected one for each"
            )
        each: list[Tokens] = [slice(index, index + 1 or None) for index in tokens]
    else:
        each = [tokens] * len(rows)

    def positions(row: TokenRow, choice: Tokens) -> tuple[int, ...]:
        str_tokens = partial(_str_tokens, model, row)
        return tuple(read_positions(choice, len(row.ids), row.parts, str_tokens))

    return [positions(row, choice) for row, choice in zip(rows, each, strict=True)]


def _str_tokens(model: Model, row: TokenRow) -> list[str]:
    return [decoded(model.tokenizer, [token]) for token in row.ids]
