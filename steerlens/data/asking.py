"""Prompts that ask for what a steering is meant to do: the baseline that costs nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from steerlens.data.prompts import Message, Prompt, require_prompt
from steerlens.errors import SteerlensError, short_repr


@dataclass(frozen=True)
class Asking:
    """A way to ask: a function from a prompt to the same prompt with a request in it.

    >>> Asking("politely", lambda prompt: f"Please: {prompt}")("Sing.")
    'Please: Sing.'
    """

    name: str
    put_into: Callable[[Prompt], Prompt]

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt that asks; raises if it is no text and no chat."""
        require_prompt(prompt, f"asking ({self.name})")
        return self.put_into(prompt)


def system_message(text: str) -> Asking:
    """Asks in a system message, which replaces the prompt's own.

    >>> system_message("Answer in French.")("Hi.")
    [{'role': 'system', 'content': 'Answer in French.'}, {'role': 'user', 'content': 'Hi.'}]
    """
    turn = {"role": "system", "content": _words(text)}
    return Asking("system message", partial(_before, [turn]))


def instruction(text: str) -> Asking:
    """Asks in the user's last turn, before the other words.

    >>> instruction("Answer in French.")("Hi.")
    'Answer in French.\\n\\nHi.'
    """
    return Asking("instruction", partial(_prefixed, _words(text)))


def few_shot(examples: Sequence[tuple[str, str]]) -> Asking:
    """Shows how it is done: turns of the user and the wanted replies, before the prompt.

    Args:
        examples: Prompts and replies; none of them should be among the prompts that are judged.

    >>> [turn["content"] for turn in few_shot([("Good morning.", "Bonjour.")])("Hi.")]
    ['Good morning.', 'Bonjour.', 'Hi.']
    """
    if not examples:
        raise SteerlensError("got no examples; expected at least one (prompt, reply)")
    turns: list[Message] = []
    for asked, reply in examples:
        turns.append({"role": "user", "content": _words(asked)})
        turns.append({"role": "assistant", "content": _words(reply)})
    return Asking("examples", partial(_before, turns))


def _words(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise SteerlensError(f"got {short_repr(text)}; expected the words that ask")
    return text


def _chat(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _before(turns: Sequence[Message], prompt: Prompt) -> Prompt:
    chat = _chat(prompt)
    own = chat[:1] if chat[0]["role"] == "system" else []
    kept = [] if turns[0]["role"] == "system" else own
    return [*kept, *turns, *chat[len(own) :]]


def _prefixed(text: str, prompt: Prompt) -> Prompt:
    if isinstance(prompt, str):
        return f"{text}\n\n{prompt}"
    *before, last = prompt
    return [*before, {**last, "content": f"{text}\n\n{last['content']}"}]
