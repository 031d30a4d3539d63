"""Prompts: texts and chats, and lists of them from other libraries."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steerlens.errors import SteerlensError, short_repr

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
"""A user's words, or a chat as a list of `{"role": …, "content": …}` messages."""


class Passage(NamedTuple):
    """One side of a contrast, before the chat template is applied.

    >>> Passage("Hi.", suffix="Sure, I")
    Passage(prompt='Hi.', suffix='Sure, I', system=None)
    """

    prompt: Prompt
    suffix: str = ""
    """The beginning of a reply, in the assistant's turn of a chat."""
    system: str | None = None
    """A system message."""


def require_prompt(prompt: Any, where: str) -> None:
    """Refuse a prompt that is neither text nor a chat, or without any text.

    Args:
        prompt: The prompt.
        where: Which prompt it is, for the message.

    >>> require_prompt("Hi.", "prompt 0")
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise SteerlensError(f"{where} has an empty prompt; every prompt needs some text")
        return
    is_chat = (
        isinstance(prompt, Sequence)
        and bool(prompt)
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in prompt
        )
    )
    if not is_chat:
        raise SteerlensError(
            f"{where} has the prompt {short_repr(prompt)}; a prompt is text, or a chat as a list "
            'of {"role": ..., "content": ...} messages'
        )


def as_texts(texts: Any, what: str = "prompts") -> list[Any]:
    """A list of the texts in a list, tuple, Series, array or dataset column.

    A single text, a table and a mapping are refused, as iterating
    would give letters, columns and keys; so is a set, which has no order.

    Args:
        texts: What the user passed.
        what: The argument's name, for the message.

    >>> as_texts(("Hi.", "Ho."))
    ['Hi.', 'Ho.']
    """
    form = _form_of(texts)
    if form in _MISTAKEN:
        given = short_repr(texts) if form == "one text" else type(texts).__name__
        raise SteerlensError(
            f"{what}: got {form} ({given}); expected a list of texts: {_MISTAKEN[form]}"
        )
    if hasattr(texts, "to_pylist"):  # Arrow's arrays hold scalars of their own
        return list(texts.to_pylist())
    try:
        return list(texts)
    except TypeError as error:
        raise SteerlensError(
            f"{what}: got {short_repr(texts)} ({type(texts).__name__}); expected a list of texts"
        ) from error


_MISTAKEN = {
    "one text": "put it in a list, as in [text]",
    "a mapping": "give the list in it, such as list(table.values())",
    "a table": 'give one column of it, such as table["prompt"]',
    "a set": "sort it, as a set has no order",
}


def _form_of(texts: Any) -> str:
    if isinstance(texts, str | bytes):
        return "one text"
    if isinstance(texts, Mapping):
        return "a mapping"
    if hasattr(texts, "columns") or hasattr(texts, "column_names"):
        return "a table"
    return "a set" if isinstance(texts, set | frozenset) else "a list"
