"""Token ids → text."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any

from steerlens.errors import SteerlensError, short_repr


def decoded(tokenizer: Any, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of some tokens.

    Ids that the tokenizer does not know are "\ufffd": many embeddings are larger than vocabularies.

    Args:
        tokenizer: The tokenizer.
        ids: The tokens.
        skip_special_tokens: Leave out BOS, end tokens and the like.

    >>> decoded(load_model().tokenizer, [1, 1466, 19], skip_special_tokens=True)
    'Hi.'
    """
    decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
    with suppress(Exception):  # what is raised for unknown ids differs between tokenizers
        return str(decode(list(ids)))
    size = len(tokenizer)
    runs = groupby(ids, key=lambda token: 0 <= token < size)
    try:
        return "".join(
            str(decode(list(run))) if is_known else "\ufffd" * len(list(run))
            for is_known, run in runs
        )
    except Exception as error:
        raise SteerlensError(
            f"the tokenizer ({type(tokenizer).__name__}) cannot turn the token ids "
            f"{short_repr(list(ids))} into text: {type(error).__name__}: {error}"
        ) from error


def text_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's part of the text; a character of several tokens belongs to the last of them.

    >>> tokenizer = load_model().tokenizer
    >>> text_pieces(tokenizer, tokenizer("Hi.")["input_ids"])
    ('<s>', 'Hi', '.')
    """
    pieces: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = decoded(tokenizer, waiting)
        complete = not text.endswith("\ufffd") or len(pieces) + 1 == len(ids)
        pieces.append(text if complete else "")
        if complete:
            waiting = []
    return tuple(pieces)
