"""A prompt's text, with marks on the tokens that are read or steered."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.text import Text

from steerlens.activations.selection import Tokens, positions_of
from steerlens.display import marked_html
from steerlens.models.host import Model
from steerlens.models.token_text import text_pieces
from steerlens.models.tokenizing import Readable, TokenRow, reply_starts, tokenize
from steerlens.steering.clocks import PassTokens, PromptRows
from steerlens.steering.steering import Steering


@dataclass(frozen=True)
class MarkedText:
    """String tokens, some of them marked; displays in terminals and notebooks."""

    tokens: tuple[str, ...]
    marked: tuple[bool, ...]

    def __str__(self) -> str:
        """The text, with marked stretches in ⟦double brackets⟧."""
        return "".join(f"⟦{text}⟧" if on else text for text, on in self._stretches())

    def __rich__(self) -> Text:
        """For `rich.print`: marked stretches have reversed colours."""
        return Text.assemble(*((text, "reverse" if on else "") for text, on in self._stretches()))

    def _repr_html_(self) -> str:
        """For notebooks: marked stretches are `<mark>`ed."""
        return f'<code style="white-space: pre-wrap">{marked_html(self._stretches())}</code>'

    def _stretches(self) -> list[tuple[str, bool]]:
        stretches: list[tuple[str, bool]] = []
        for token, on in zip(self.tokens, self.marked, strict=True):
            if stretches and stretches[-1][1] == on:
                token = stretches.pop()[0] + token
            stretches.append((token, on))
        return stretches


def mark_read(
    model: Model,
    prompt: Readable,
    tokens: Tokens,
    *,
    chat: bool | None = None,
    generation_prompt: bool = True,
) -> MarkedText:
    """The prompt as the model sees it, with the tokens marked that `tokens` reads.

    Args:
        model: The model, for its tokenizer and chat template.
        prompt: Text, chat, passage or token ids.
        tokens: What is read, as in `extract`: "last", "all", "suffix", "reply", an int k (the last
            k), a slice, or a function of the string tokens.
        chat: Whether to apply the chat template; None: if the model has one.
        generation_prompt: Whether the template opens the assistant's turn.

    >>> print(mark_read(load_model(), "Hi there.", "last"))
    <s><|user|>Hi there.<|end|>⟦<|assistant|>⟧
    """
    [row] = tokenize(model, [prompt], chat=chat, generation_prompt=generation_prompt)
    [positions] = positions_of(model, [row], tokens)
    return _marked(model, row, positions)


def mark_steered(
    model: Model, prompt: Readable, steering: Steering, *, chat: bool | None = None
) -> MarkedText:
    """The prompt as the model sees it, with the tokens marked that a steering would edit.

    Args:
        model: The model, for its tokenizer and chat template.
        prompt: Text, chat, passage or token ids.
        steering: The steering; its conditions, if any, are taken to fire.
        chat: Whether to apply the chat template; None: if the model has one.

    >>> v = SteeringVector(torch.ones(1, 192), layers=(3,))
    >>> print(mark_steered(load_model(), "Hi there.", Steering(v, positions="reply")))
    <s><|user|>Hi there.⟦<|end|><|assistant|>⟧
    """
    [row] = tokenize(model, [prompt], chat=chat)
    prompt_rows = PromptRows(1, len(row.ids), reply_start=reply_starts([row]))
    whole = PassTokens(prompt_rows, 0, len(row.ids), ids=torch.tensor([row.ids]))
    chosen = whole.steered(steering.positions, steering.skip_bos)
    positions = range(len(row.ids)) if chosen is None else chosen[0].nonzero().flatten().tolist()
    return _marked(model, row, positions)


def _marked(model: Model, row: TokenRow, positions: Sequence[int]) -> MarkedText:
    chosen = set(positions)
    marked = tuple(position in chosen for position in range(len(row.ids)))
    return MarkedText(text_pieces(model.tokenizer, row.ids), marked)
