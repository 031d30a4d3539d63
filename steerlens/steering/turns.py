"""The turns of a conversation: what was said, what conditions saw, and projections on a vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from steerlens.activations.growing_texts import ReadText, read_on
from steerlens.activations.provenance import check_provenance
from steerlens.data.prompts import Message
from steerlens.display import shortened
from steerlens.errors import SteerlensError
from steerlens.judges.fluency import degenerate
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.token_text import text_pieces
from steerlens.models.tokenizing import TokenRow
from steerlens.numerics import unit
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import GateReport
from steerlens.vectors.vector import SteeringVector

DRIFT_COLUMNS = ("turn", "role", "layer", "place", "token", "projection")
"""The columns of `projections_of`."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What the user said and the model replied, with what the conditions saw before the reply.

    >>> turn = Chat(model, max_new_tokens=5).say("How do I bake bread?")
    >>> str(turn), turn.finished
    ('Here is what I know', False)
    """

    words: str
    """The user's message."""
    text: str
    """The whole reply, its prefill included."""
    prompt: TokenRow
    """All tokens before those that were generated."""
    tokens: tuple[int, ...]
    """What was generated, without the end-of-text token."""
    finished: bool
    """Whether the reply ended by itself, not at `max_new_tokens`."""
    acted: tuple[Steering, ...]
    """The steerings without conditions, and those whose conditions held."""
    gates: tuple[GateReport, ...]
    """What each condition saw: reports of one row."""
    n_kept: int
    """How many tokens of the prompt were not run again."""

    @property
    def messages(self) -> list[Message]:
        """The user's message and the reply."""
        roles = ("user", "assistant")
        texts = (self.words, self.text)
        return [{"role": role, "content": said} for role, said in zip(roles, texts, strict=True)]

    @cached_property
    def degenerate(self) -> bool:
        """Whether the reply is empty or repeats itself, by `judges.degenerate`."""
        return degenerate(self.text)

    @property
    def seen(self) -> str:
        """In words: which conditions fired, and what each compared."""
        named = ((gate.condition.name or "condition", gate.seen_of(0)) for gate in self.gates)
        return "; ".join(f"{name} {seen}" for name, seen in named)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        facts = [
            self.seen,
            "degenerate (empty or repeating itself)" if self.degenerate else "",
            "" if self.finished else "cut off",
            f"{self.n_kept} of {len(self.prompt.ids)} tokens kept",
        ]
        said = f"{shortened(self.words, 200)!r} → {shortened(self.text, 200)!r}"
        return f"Turn({said}; {'; '.join(filter(None, facts))})"


def projections_of(
    model: Model,
    turns: Sequence[Turn],
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    site: str | None = None,
) -> pd.DataFrame:
    """The unsteered projection of each token that was said along a vector, turn by turn.

    Each turn is read as its own text up to its reply, which templates may rewrite later.

    Args:
        model: The model that reads.
        turns: The turns of one conversation.
        vector: The vector to project on.
        layers: Which of its layers; None: all.
        site: Where to read; None: where the vector was.

    Returns:
        A row for each turn, layer and token, with the columns `DRIFT_COLUMNS`; `role` is "user" or
        "assistant", and `place` is the token's index in the turn's text.

    >>> turns = [Chat(model, max_new_tokens=5).say("Hi.")]
    >>> projections_of(model, turns, vector, [3]).groupby("role", sort=False).size().to_dict()
    {'user': 2, 'assistant': 5}
    """
    if not turns:
        raise SteerlensError("got a conversation without turns; expected at least one: say()")
    where = site or vector.site
    numbers = vector.layers if layers is None else tuple(resolve_layers(model, layers))
    check_provenance(model, vector, where, numbers)
    read: ReadText | None = None
    rows: list[tuple[object, ...]] = []
    for number, turn in enumerate(turns, start=1):
        ids = (*turn.prompt.ids, *turn.tokens)
        read = read_on(model, ids, [(where, layer) for layer in numbers], read)
        pieces = text_pieces(model.tokenizer, ids)
        said = {"user": turn.prompt.parts["user"], "assistant": slice(len(turn.prompt.ids), None)}
        for layer in numbers:
            along = (read.activations[where, layer] @ unit(vector[layer]).float()).tolist()
            for role, part in said.items():
                for at in range(len(ids))[part] if part is not None else ():
                    rows.append((number, role, layer, at, pieces[at], along[at]))
    return pd.DataFrame(rows, columns=list(DRIFT_COLUMNS))
