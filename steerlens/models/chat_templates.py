"""Prompts → text in the model's chat template, with the places of the user's words and the reply.

Places are found by construction: a mark is put into a message, and the template shows where it
comes out. Words are never searched for: they may stand in the template as well, or be rewritten.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple

from steerlens.data.prompts import Message
from steerlens.errors import SteerlensError, short_repr

_MARK = "\ue0f1"
"""A character for private use, that stands in no text."""


class Text(NamedTuple):
    """A prompt as the model reads it, with places counted in characters."""

    text: str
    templated: bool = False
    suffix_start: int | None = None
    words: tuple[int | None, int | None] = (None, None)
    """Where the user's last words begin and end, if a template was applied and shows it."""


class Template:
    """The chat template of one tokenizer, with the options that its model is used with."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any], generation_prompt: bool) -> None:
        self._tokenizer, self._options = tokenizer, dict(options)
        self._generation_prompt = generation_prompt
        self._special = tuple(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and len(token.content) > 1
        )
        # A prompt meets many suffixes, and a suffix many prompts.
        self._chat = lru_cache(maxsize=4096)(self._chat_of_words)
        self._kept = lru_cache(maxsize=4096)(self._keeps)
        self._openings = cache(self._find_openings)

    def apply(self, prompt: str | Sequence[Message], suffix: str, system: str | None) -> Text:
        """The text of a user's words, or of a whole chat; a suffix begins the model's reply."""
        chat = self._chat(prompt, system) if isinstance(prompt, str) else self._said(prompt, system)
        suffix = self._neutral(suffix)
        answered = chat.messages[-1]["role"] == "assistant"
        if not self._generation_prompt or not (suffix or answered):
            start = len(chat.text.text) if suffix else None
            return chat.text._replace(text=chat.text.text + suffix, suffix_start=start)
        if not answered:
            text, start = self._begun(chat, suffix)
            return text._replace(suffix_start=start)
        begun = chat.messages[-1]["content"]  # the reply has begun: it is gone on with
        text, start = self._begun(self._said(chat.messages[:-1], None), begun + suffix)
        return text._replace(suffix_start=start + len(begun) if suffix else None)

    def is_applied_to(self, text: str) -> bool:
        """Whether a text begins as the template begins chats: it is in the template already."""
        return text.lstrip().startswith(self._openings())

    def _chat_of_words(self, words: str, system: str | None) -> "_Chat":
        return self._said([{"role": "user", "content": words}], system)

    def _said(self, messages: Sequence[Message], system: str | None) -> "_Chat":
        first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        asked: list[Message] = [
            dict(one) | {"content": self._neutral(one["content"])} for one in (*first, *messages)
        ]
        text = self._render(asked, self._generation_prompt) if asked else ""
        return _Chat(asked, Text(text, True, words=self._words(asked, text)), {})

    def _begun(self, chat: "_Chat", reply: str) -> tuple[Text, int]:
        """A chat and the beginning of the reply to it, as the template writes a turn."""
        if not self._kept(reply.strip()):
            raise SteerlensError(
                f"the chat template does not write the reply {short_repr(reply)} as it is, so that "
                "none can begin with it; use other words, or render the chat and pass chat=False"
            )
        words = reply.lstrip()
        leading = reply[: len(reply) - len(words)]
        if leading not in chat.joints:
            chat.joints[leading] = self._joint(chat, leading)
        text, start = chat.joints[leading]
        return text._replace(text=text.text + words), start

    def _joint(self, chat: "_Chat", leading: str) -> tuple[Text, int]:
        """Everything before a reply that begins with such white space, and where it begins."""
        reply = {"role": "assistant", "content": f"{leading}{_MARK}a"}
        before, found, _ = self._render([*chat.messages, reply], False).partition(_MARK)
        if not found:
            raise SteerlensError(
                "the chat template does not show what the assistant says, so that no suffix and no "
                "begun reply can be put there; pass chat=False"
            )
        kept = leading if before.endswith(leading) else ""
        text = Text(before, True, words=self._words(chat.messages, before))
        return text, len(before) - len(kept)

    def _keeps(self, words: str) -> bool:
        """Whether the template leaves these words of the assistant as they are."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
        return words in self._render(chat, False)

    def _words(self, chat: Sequence[Message], text: str) -> tuple[int | None, int | None]:
        """Where the last words that are not the assistant's stand in a rendered text."""
        said = [at for at, message in enumerate(chat) if message["role"] != "assistant"]
        if not said:
            return None, None
        last = chat[said[-1]]
        words = last["content"]
        core = words.strip()  # templates may strip
        leading = words[: len(words) - len(words.lstrip())]
        ending = words[len(words.rstrip()) :]
        marked = [*chat]
        marked[said[-1]] = dict(last) | {"content": f"{leading}{_MARK}{core}{_MARK}{ending}"}
        pieces = self._render(marked, self._generation_prompt).split(_MARK)
        *_, inside, _ = ["", *pieces]
        end = sum(map(len, pieces[:-1]))
        if len(pieces) < 2 or not text.startswith("".join(pieces[:-1])):
            return None, None
        return (end - len(inside) if inside == core else None), end

    def _find_openings(self) -> tuple[str, ...]:
        """What stands before all that is said, in chats with and without a system message."""
        asked = {"role": "user", "content": "a"}
        chats: list[list[Message]] = [
            [{"role": "user", "content": _MARK}],
            [{"role": "system", "content": _MARK}, asked],
        ]
        found = []
        for chat in chats:
            with suppress(SteerlensError):  # not every template has system messages
                before, shown, _ = self._render(chat, True).partition(_MARK)
                if shown and any(token in before for token in self._special):
                    found.append(before.lstrip())
        return tuple(found)

    def _neutral(self, text: str) -> str:
        """Special tokens spelt out in a text, broken so that they stay text; that is said."""
        found = [token for token in self._special if token in text]
        if found:
            warnings.warn(
                f"the text {short_repr(text)} spells out the model's special token {found[0]!r}: "
                "it is read as plain text, with a space in it. Pass chats as lists of messages, "
                "and texts that are in the template already with chat=False",
                stacklevel=6,
            )
        for token in found:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _render(self, chat: Sequence[Message], generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(chat),
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    **self._options,
                )
            )
        except Exception as error:  # jinja's and the template's own errors have no common type
            raise SteerlensError(
                f"the chat template refused the roles {[m['role'] for m in chat]}: {error}"
            ) from error


class _Chat(NamedTuple):
    """What was said, and its text; with what stands before a reply, once that was asked for."""

    messages: list[Message]
    text: Text
    joints: dict[str, tuple[Text, int]]
