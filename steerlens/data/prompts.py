"""Prompts and where they come from: text, chats, files of lists."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from steerlens.errors import SteerlensError, short_repr
from steerlens.files import PathLike, read_json

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
"""A user's words, or a chat as a list of `{"role": …, "content": …}` messages."""


class Passage(NamedTuple):
    """One side of a contrast, before the chat template is applied."""

    prompt: Prompt
    suffix: str = ""
    system: str | None = None


def require_prompt(prompt: Any, where: str) -> None:
    """Refuse what is neither text nor a chat, and prompts without any text."""
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


def load_prompts(path: PathLike) -> dict[str, Any]:
    """The parts of a `steerlens.prompts/1` or `steerlens.topics/1` file, as written there."""
    content = read_json(path)
    known = ("steerlens.prompts/1", "steerlens.topics/1")
    if not isinstance(content, dict) or content.get("format") not in known:
        raise SteerlensError(
            f'{str(path)!r} is not a list of prompts: its "format" must be one of {list(known)}'
        )
    parts = content.get("parts")
    if not isinstance(parts, dict) or not parts:
        raise SteerlensError(f'{str(path)!r} has no "parts" with prompts in them')
    by_topic = content["format"] == "steerlens.topics/1"
    for name, part in parts.items():
        groups = list(part.values()) if by_topic and isinstance(part, dict) else [part]
        if isinstance(part, dict) != by_topic or not all(map(_are_prompts, groups)):
            raise SteerlensError(
                f"the part {short_repr(name)} of {str(path)!r} holds {short_repr(part)}; needed is "
                + ("a table: topic → list of prompts" if by_topic else "a list of prompts")
            )
    return parts


def _are_prompts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)
