"""Replies: a growing transcript, and the finished `Replies` with their gates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.display import MOST_ROWS, Marked, Rows, card, prompt_text, shortened
from steerlens.judges.fluency import degenerate
from steerlens.models.token_text import decoded, text_pieces
from steerlens.models.tokenizing import Readable, TokenRow
from steerlens.steering.batch_plans import Plan, steering_of
from steerlens.steering.conditions import Condition
from steerlens.steering.steering import Run


@dataclass(frozen=True, eq=False)
class GateReport:
    """What one condition saw of each prompt, and which prompts it fired on."""

    condition: Condition
    similarity: Float[Tensor, "prompt layer ..."]
    """One column for each layer that the condition reads."""
    open: Bool[Tensor, " prompt"]
    """Which prompts the condition fired on."""

    @property
    def compared(self) -> Float[Tensor, "row column"]:
        """What was compared with the threshold: each layer's similarity, or their mean."""
        return self.condition.compared(self.similarity)

    def seen_of(self, row: int) -> str:
        """In words: whether the condition fired on a row, and what it compared there."""
        seen = ", ".join(f"{value:.4g}" for value in self.compared[row].tolist())
        return f"{'fired' if self.open[row] else 'did not fire'} ({seen})"

    def __repr__(self) -> str:
        rows = self.open.nonzero().flatten().tolist()
        listed = ", ".join(map(str, rows[:20])) + (", …" if len(rows) > 20 else "")
        return (
            f"{self.condition}: fired on {len(rows)} of {len(self.open)} rows"
            f"{f' (counted from 0: {listed})' if rows else ''}"
        )


class GateTimeline(NamedTuple):
    """A condition's similarity along a text, and where it fires."""

    tokens: tuple[str, ...]
    condition: Condition
    similarity: Float[Tensor, "pos layer ..."]
    """NaN where nothing was measured."""
    open: Bool[Tensor, " pos"]
    n_prompt: int
    """How many tokens are the prompt's."""


@dataclass(frozen=True, eq=False)
class TokenGateReport:
    """What one condition saw of each token that the model read, in the prompts and the replies."""

    condition: Condition
    timelines: tuple[GateTimeline, ...]
    """One for each prompt. The last token of a reply is not among them: the model never reads it.
    Attention sinks have no similarity, and never fire."""

    @property
    def share(self) -> tuple[float, ...]:
        """The share of each text's tokens that the condition fired on."""
        return tuple(line.open.float().mean().item() for line in self.timelines)

    def seen_of(self, row: int) -> str:
        """In words: on how many tokens of a row's prompt and reply the condition fired."""
        line = self.timelines[row]
        parts = {"prompt": line.open[: line.n_prompt], "reply": line.open[line.n_prompt :]}
        return ", ".join(f"{part}: {int(on.sum())} of {len(on)}" for part, on in parts.items())

    def __repr__(self) -> str:
        fired = sum(int(line.open.sum()) for line in self.timelines)
        n = sum(len(line.open) for line in self.timelines)
        return f"{self.condition}: fired on {fired} of {n} tokens"


@dataclass(frozen=True, eq=False)
class Replies(Sequence[str]):
    """One reply per prompt, in the order of the prompts; a sequence of texts.

    >>> replies = generate(model, ["How do I bake bread?"], max_new_tokens=5)
    >>> replies[0], replies.finished
    ('Here is what I know', (False,))
    """

    prompts: tuple[Readable, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """What was generated, without the end-of-text token."""
    finished: tuple[bool, ...]
    """Whether a reply ended by itself, not at `max_new_tokens`."""
    gates: tuple[GateReport, ...] = ()
    token_gates: tuple[TokenGateReport, ...] = ()
    """What `when_token` conditions saw, token by token."""

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: Any) -> Any:
        return self.texts[row]

    @cached_property
    def degenerate(self) -> tuple[bool, ...]:
        """Which replies are empty or repeat themselves, by `judges.degenerate`."""
        return tuple(map(degenerate, self.texts))

    def __repr__(self) -> str:
        """The first texts, shortened, and on how many rows each condition fired."""
        texts = [f"  {row}: {shortened(text, 200)!r}" for row, text in enumerate(self.texts[:10])]
        left = len(self) - len(texts)
        lines = [f"Replies({self._summary})", *texts, *([f"  … {left} more"] if left > 0 else [])]
        return "\n".join([*lines, *(f"  {gate!r}" for gate in (*self.gates, *self.token_gates))])

    def _repr_html_(self) -> str:
        """For notebooks: prompt and reply side by side, and what each condition saw."""
        reports: list[GateReport | TokenGateReport] = [*self.gates, *self.token_gates]
        gates = [gate.condition.name or "condition" for gate in reports]
        rows = (
            (
                prompt_text(prompt),
                text,
                *(gate.seen_of(row) for gate in reports),
                "by itself" if self.finished[row] else "cut off",
                *(["degenerate" if self.degenerate[row] else ""] if any(self.degenerate) else []),
            )
            for row, (prompt, text) in enumerate(zip(self.prompts, self.texts, strict=True))
        )
        fluency = ["fluency"] if any(self.degenerate) else []
        columns = ["prompt", "reply", *gates, "ended", *fluency]
        table = Rows(columns, rows, len(self))
        return card(f"Replies: {self._summary}", {}, table, *map(_coloured, self.token_gates))

    @property
    def _summary(self) -> str:
        broken = sum(self.degenerate)
        return (
            f"{len(self)}, {sum(self.finished)} ended by themselves"
            f"{f', {broken} degenerate (empty or repeating themselves)' if broken else ''}"
        )


def _coloured(report: TokenGateReport) -> Marked:
    """The texts of a token gate's first rows, with the tokens marked that it fired on."""
    lines = report.timelines[:MOST_ROWS]
    texts = [list(zip(line.tokens, line.open.tolist(), strict=True)) for line in lines]
    return Marked(f"tokens on which {report.condition} fired", texts)


@dataclass
class Transcript:
    """The replies so far, while they are decoded."""

    tokens: list[list[int]]
    finished: list[bool]
    similarities: dict[Condition, Tensor]
    prompts: list[tuple[int, ...]]
    """Token ids."""
    of_tokens: dict[Condition, list[list[Tensor]]]
    """What token gates saw: for each row, one tensor [pos, layer] per forward pass."""

    @classmethod
    def empty(cls, rows: Sequence[TokenRow], plans: Sequence[Plan]) -> "Transcript":
        """The transcript before the first token."""
        n_rows = len(rows)
        conditions = [condition for plan in plans for condition in steering_of(plan).conditions]
        unseen = {condition: condition.unseen(n_rows) for condition in conditions}
        read = [one for plan in plans for one in steering_of(plan).token_conditions]
        of_tokens: dict[Condition, list[list[Tensor]]] = {one: [[] for _ in rows] for one in read}
        prompts = [row.ids for row in rows]
        return cls([[] for _ in rows], [False] * n_rows, unseen, prompts, of_tokens)

    def take(self, rows: Sequence[int], chosen: Sequence[int], eos: frozenset[int]) -> None:
        """Append one token to each of some rows; an end token finishes its row."""
        for row, token in zip(rows, chosen, strict=True):
            if token in eos:
                self.finished[row] = True
            else:
                self.tokens[row].append(token)

    def see(self, run: Run, rows: Sequence[int], going: Bool[Tensor, " batch"], n_new: int) -> None:
        """Keep what gates saw in a pass.

        Args:
            run: The run that the pass was of.
            rows: Which rows of the transcript the batch has.
            going: Which of these have not finished.
            n_new: How many tokens at the pass's end were not read before.
        """
        for condition, gate in run.token_gates.items():
            seen, real = gate.similarity[:, -n_new:].float(), gate.real[:, -n_new:]
            for place, row in enumerate(rows):
                if going[place]:
                    self.of_tokens[condition][row].append(seen[place][real[place]])

    def scatter(self, groups: Sequence[Sequence[int]], parts: Sequence["Transcript"]) -> None:
        """Scatter the replies of a batch into the full result.

        Args:
            groups: For each reply of the batch, the rows of the result that it belongs to.
            parts: The batch's transcripts: one, or several where memory ran out.
        """
        tokens = [row for part in parts for row in part.tokens]
        finished = [row for part in parts for row in part.finished]
        pairs = [(row, index) for index, group in enumerate(groups) for row in group]
        for row, index in pairs:
            self.tokens[row], self.finished[row] = tokens[index], finished[index]
        rows, indices = map(list, zip(*pairs, strict=True))
        # Matched by order: a batch decoded on another machine has copies of the conditions.
        seen = zip(*(part.similarities.values() for part in parts), strict=True)
        for whole, of_parts in zip(self.similarities.values(), seen, strict=True):
            whole[rows] = torch.cat(of_parts)[indices]
        of_tokens = zip(*(part.of_tokens.values() for part in parts), strict=True)
        for all_rows, pieces in zip(self.of_tokens.values(), of_tokens, strict=True):
            of_batch = [row for piece in pieces for row in piece]
            for row, index in pairs:
                all_rows[row] = of_batch[index]

    def replies(self, prompts: Sequence[Readable], texts: Sequence[str], tokenizer: Any) -> Replies:
        """The `Replies` so far, given the prompts and the texts of all tokens."""
        return Replies(
            tuple(prompts),
            tuple(texts),
            tuple(map(tuple, self.tokens)),
            tuple(self.finished),
            tuple(
                GateReport(condition, seen.clone(), condition.fires(seen))
                for condition, seen in self.similarities.items()
            ),
            tuple(
                TokenGateReport(
                    condition,
                    tuple(self._timeline(condition, row, tokenizer) for row in range(len(texts))),
                )
                for condition in self.of_tokens
            ),
        )

    def _timeline(self, condition: Condition, row: int, tokenizer: Any) -> GateTimeline:
        parts = self.of_tokens[condition][row]
        similarity = torch.cat(parts) if parts else condition.unseen(0)
        ids = (*self.prompts[row], *self.tokens[row])[: len(similarity)]
        pieces = text_pieces(tokenizer, ids)
        is_open = condition.fires(similarity)
        return GateTimeline(pieces, condition, similarity, is_open, len(self.prompts[row]))


class GrowingText:
    """The text of a growing reply, without decoding all its tokens at every step."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = partial(decoded, tokenizer, skip_special_tokens=True)
        self._text, self._begin, self._end, self._ended = "", 0, 0, False
        # `_text` is the text of the first `_end` tokens; those from `_begin` on are decoded again
        # with what follows, since a token's text depends on the one before (spaces between words).

    def of(self, tokens: Sequence[int], ended: bool = False) -> str:
        """The text of a reply's tokens so far.

        Args:
            tokens: All tokens; they begin with those of the call before.
            ended: Whether no more will follow.
        """
        if ended and not self._ended:  # decoded once as a whole, as the finished reply is
            self._text, self._ended = self._decode(tokens), True
        if self._ended:
            return self._text
        before = self._decode(tokens[self._begin : self._end])
        grown = self._decode(tokens[self._begin :])
        text = self._text + grown[len(before) :]
        if len(grown) > len(before) and not grown.endswith("\ufffd"):  # half a character
            self._text, self._begin, self._end = text, self._end, len(tokens)
        return text
