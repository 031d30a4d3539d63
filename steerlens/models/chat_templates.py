"""Prompts → text in the model's chat template, with where the user's words and the reply begin.

Positions are found by construction: a mark is put into a message, and its position in the rendered
text is read off. Words are never searched for, as the template may contain or rewrite them.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple

from steerlens.data.lint import MARKS
from steerlens.data.prompts import Message
from steerlens.errors import SteerlensError, short_repr

_MARK = "\ue0f1"
"""A character for private use, which occurs in no text."""


class Text(NamedTuple):
    """A prompt as the model reads it, with positions in characters."""

    text: str
    templated: bool = False
    suffix_start: int | None = None
    words: tuple[int | None, int | None] = (None, None)
    """Where the user's last words begin and end; None if no template shows it."""


class Template:
    """The chat template of one tokenizer, with the options of its model."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any], generation_prompt: bool) -> None:
        self._tokenizer, self._options = tokenizer, dict(options)
        self._generation_prompt = generation_prompt
        self._special = tuple(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and len(token.content) > 1
        )
        # Cached: datasets cross every prompt with every suffix.
        self._chat = lru_cache(maxsize=4096)(self._chat_of_words)
        self._kept = lru_cache(maxsize=4096)(self._keeps)
        self._openings = cache(self._find_openings)
        self._written = cache(self._find_written)
        self._has_system = cache(self._find_system)

    def apply(self, prompt: str | Sequence[Message], suffix: str, system: str | None) -> Text:
        """The text of a user's words, or of a whole chat.

        Args:
            prompt: The user's words, or the messages of a chat.
            suffix: The beginning of the model's reply.
            system: A system message.
        """
        chat = (
            self._chat(prompt, system)
            if isinstance(prompt, str)
            else self._rendered_chat(prompt, system)
        )
        suffix = self._without_special_tokens(suffix)
        answered = chat.messages[-1]["role"] == "assistant"
        if not self._generation_prompt or not (suffix or answered):
            start = len(chat.text.text) if suffix else None
            return chat.text._replace(text=chat.text.text + suffix, suffix_start=start)
        if not answered:
            text, start = self._with_reply_begun(chat, suffix)
            return text._replace(suffix_start=start)
        begun = chat.messages[-1]["content"]  # the chat ends in a reply, which is continued
        text, start = self._with_reply_begun(
            self._rendered_chat(chat.messages[:-1], None), begun + suffix
        )
        return text._replace(suffix_start=start + len(begun) if suffix else None)

    def applied(self, text: str) -> str | None:
        """A text that is in the template already, with its BOS; None if it is not.

        It begins as the template begins chats, with or without the BOS, which some programs strip.
        """
        begun, bos = text.lstrip(), self._tokenizer.bos_token or ""
        if begun.startswith(self._openings()):
            return text
        for opening in self._openings():
            rest = opening.removeprefix(bos)
            if rest != opening and MARKS.search(rest) and begun.startswith(rest.lstrip()):
                return bos + begun
        return None

    def other_mark(self, text: str) -> str | None:
        """What a text holds of another model's chat template; None if it holds nothing such.

        None as well where it spells out this model's own special tokens, of which `apply` warns.
        """
        marks = [match[0] for match in MARKS.finditer(text)]
        if not marks or any(token in text for token in self._special):
            return None
        own = self._written()
        # "User: " may be the words of a user who quotes a dialogue, and "</s>" is HTML.
        weak = (": ", "<s>", "</s>")
        return next((mark for mark in marks if mark not in own and not mark.endswith(weak)), None)

    def marks_of(self, role: str) -> tuple[str, str]:
        """What the template writes right before, and right after, the words of a role."""
        question: Message = {"role": "user", "content": "a"}
        chats: dict[str, list[Message]] = {
            "system": [{"role": "system", "content": _MARK}, question],
            "user": [{"role": "user", "content": _MARK}, {"role": "assistant", "content": "a"}],
            "assistant": [question, {"role": "assistant", "content": _MARK}, question],
        }
        if role not in chats:
            raise SteerlensError(f"got the role {role!r}; expected one of {', '.join(chats)}")
        before, _, after = self._render(chats[role], False).partition(_MARK)
        special = re.compile("|".join(map(re.escape, self._special)) or "(?!)")
        openings, closing = list(special.finditer(before)), special.search(after)
        if not openings or closing is None or after[: closing.start()].strip():
            raise SteerlensError(
                f"the chat template marks the {role}'s turns by no special tokens; use "
                "places.between with the text that begins and ends them"
            )
        return before[openings[-1].start() :], after[: closing.end()]

    def _chat_of_words(self, words: str, system: str | None) -> "_Chat":
        return self._rendered_chat([{"role": "user", "content": words}], system)

    def _rendered_chat(self, messages: Sequence[Message], system: str | None) -> "_Chat":
        first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        turns: list[Message] = [
            dict(message) | {"content": self._without_special_tokens(message["content"])}
            for message in (*first, *messages)
        ]
        if turns and turns[0]["role"] == "system" and not self._has_system():
            raise SteerlensError(
                "got a system message, and the chat template refuses such messages or leaves them "
                "out; put its words at the beginning of the user's first message"
            )
        text = self._render(turns, self._generation_prompt) if turns else ""
        return _Chat(turns, Text(text, True, words=self._user_span(turns, text)), {})

    def _with_reply_begun(self, chat: "_Chat", reply: str) -> tuple[Text, int]:
        """A chat and the beginning of its reply, as the template writes it; where that begins."""
        if not self._kept(reply.strip()):
            raise SteerlensError(
                f"the chat template rewrites the reply {short_repr(reply)}, so that no reply can "
                "begin with it; use other words, or render the chat and pass chat=False"
            )
        words = reply.lstrip()
        leading = reply[: len(reply) - len(words)]
        if leading not in chat.joints:
            chat.joints[leading] = self._joint(chat, leading)
        text, start = chat.joints[leading]
        return text._replace(text=text.text + words), start

    def _joint(self, chat: "_Chat", leading: str) -> tuple[Text, int]:
        """Everything before a reply with this leading white space, and where the reply begins."""
        reply = {"role": "assistant", "content": f"{leading}{_MARK}a"}
        before, mark, _ = self._render([*chat.messages, reply], False).partition(_MARK)
        if not mark:
            raise SteerlensError(
                "the chat template drops the assistant's words, so that no suffix and no begun "
                "reply can be added; pass chat=False"
            )
        kept = leading if before.endswith(leading) else ""
        text = Text(before, True, words=self._user_span(chat.messages, before))
        if text.words[1] is None and chat.text.words[1] is not None:
            raise SteerlensError(
                "the chat template leaves out or changes the user's words where a reply follows, "
                "so that no suffix and no begun reply can be added; pass chat=False"
            )
        return text, len(before) - len(kept)

    def _keeps(self, words: str) -> bool:
        """Whether the template keeps these words of the assistant unchanged."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
        return words in self._render(chat, False)

    def _user_span(self, chat: Sequence[Message], text: str) -> tuple[int | None, int | None]:
        """Where the last words that are not the assistant's begin and end in a rendered text."""
        user_turns = [index for index, message in enumerate(chat) if message["role"] != "assistant"]
        if not user_turns:
            return None, None
        last = chat[user_turns[-1]]
        words = last["content"]
        core = words.strip()  # templates may strip
        leading = words[: len(words) - len(words.lstrip())]
        ending = words[len(words.rstrip()) :]
        marked = [*chat]
        marked[user_turns[-1]] = dict(last) | {"content": f"{leading}{_MARK}{core}{_MARK}{ending}"}
        pieces = self._render(marked, self._generation_prompt).split(_MARK)
        if core and len(pieces) == 1 and pieces[0] == text:
            raise SteerlensError(
                f"the chat template leaves the user's words {short_repr(words)} out, so that the "
                "model would not see them; pass chat=False, or give the model another template"
            )
        *_, inside, _ = ["", *pieces]
        end = sum(map(len, pieces[:-1]))
        is_cut = len(pieces) < 3 or len(pieces) % 2 == 0  # a mark is lost
        if is_cut or not text.startswith("".join(pieces[:-1])):
            return None, None
        return (end - len(inside) if inside == core else None), end

    def _find_openings(self) -> tuple[str, ...]:
        """The text before all messages, in chats with and without a system message."""
        question = {"role": "user", "content": "a"}
        chats: list[list[Message]] = [
            [{"role": "user", "content": _MARK}],
            [{"role": "system", "content": _MARK}, question],
        ]
        openings = []
        for chat in chats:
            with suppress(SteerlensError):  # not every template has system messages
                before, mark, _ = self._render(chat, True).partition(_MARK)
                if mark and any(token in before for token in self._special):
                    openings.append(before.lstrip())
        return tuple(openings)

    def _find_system(self) -> bool:
        """Whether the template writes system messages."""
        question = {"role": "user", "content": "a"}
        with suppress(SteerlensError):
            return _MARK in self._render([{"role": "system", "content": _MARK}, question], True)
        return False

    def _find_written(self) -> str:
        """The text of a chat of all roles, with all that the template itself writes."""
        roles = ("user", "assistant")
        with suppress(SteerlensError):
            return self._render([{"role": role, "content": "a"} for role in roles], True)
        return ""

    def _without_special_tokens(self, text: str) -> str:
        """Break special tokens that a text spells out, so that they stay text; with a warning."""
        if _MARK in text:
            raise SteerlensError(
                f"the text {short_repr(text)} holds the private character U+E0F1, by which places "
                "in a chat are found; take it out, or render the chat and pass chat=False"
            )
        spelt = [token for token in self._special if token in text]
        if spelt:
            warnings.warn(
                f"the text {short_repr(text)} spells out the model's special token {spelt[0]!r}: "
                "it is read as plain text, with a space in it. Pass chats as lists of messages, "
                "and texts that are already in the template with chat=False",
                stacklevel=6,
            )
        for token in spelt:
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
    """Messages and their text, with the text before a reply by its leading white space."""

    messages: list[Message]
    text: Text
    joints: dict[str, tuple[Text, int]]


def turn_marks(tokenizer: Any, options: Mapping[str, Any], role: str) -> tuple[str, str]:
    """The text that begins, and the one that ends, each turn of a role in the chat template.

    Args:
        tokenizer: Whose template it is.
        options: The template's options.
        role: Of the turns.

    Raises:
        SteerlensError: No template, a role that it does not have, or turns without special tokens.

    >>> turn_marks(load_model().tokenizer, {}, "user")
    ('<|user|>', '<|end|>')
    """
    if tokenizer.chat_template is None:
        raise SteerlensError("the tokenizer has no chat template, so there are no turns")
    template = Template(tokenizer, options, generation_prompt=False)
    return template.marks_of(role)
