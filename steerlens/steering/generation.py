"""Steered replies to a batch of prompts: tokenised once, padded left, one gate per row."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steerlens.activations.batching import by_length
from steerlens.errors import SteerlensError
from steerlens.models.engine import LOCAL, Engine, halving
from steerlens.models.fast_forward import ForwardPasses, decoding_cache, is_on, select_rows
from steerlens.models.hooking import PlacedHook, placed
from steerlens.models.host import Model, next_logits
from steerlens.models.progress import progress_bar
from steerlens.models.tokenizing import (
    Readable,
    TokenRow,
    end_tokens,
    left_padded,
    pad_token,
    tokenize,
)
from steerlens.steering.batch_plans import (
    BatchPlan,
    Plan,
    Plans,
    as_plans,
    decoding_run,
    for_rows,
)
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.fitting import require_fit
from steerlens.steering.sampling import Sampling, TokenChooser
from steerlens.steering.steering import Run
from steerlens.steering.transcripts import GrowingText, Replies, Transcript

WORTH_KEEPING = 7 / 8
"""A batch is made smaller when no more than this share of it goes on: that copies its cache."""


def generate(
    model: Model,
    prompts: Sequence[Readable],
    steering: Plans = None,
    *,
    max_new_tokens: int = 50,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    draws: Sequence[int] | None = None,
    chat: bool | None = None,
    use_cache: bool = True,
    batch_size: int = 64,
    progress: bool = True,
    engine: Engine = LOCAL,
) -> Replies:
    """Reply to each prompt, steered where its conditions hold; greedy unless `sampling` says else.

    Prompts are text, chats or tokens; `chat=None` applies the chat template if there is one.
    A row's reply does not depend on the batch it is in, sampled or not: row i samples with the
    i-th stream of random numbers of the seed, or with number `draws[i]`. Rows that are alike and
    steered alike are written once, unless they are sampled. A `BatchPlan` steers each row by its
    own strength. Raises before any work if a prompt and its reply do not fit into the context, or
    the plan does not fit the model. Batches halve when memory runs out.

    >>> list(generate(load_model(), ["How do I bake bread?"], max_new_tokens=5))
    ['Here is what I know']
    """
    writing = Writing(max_new_tokens, sampling, use_cache)
    task = _prepare(model, prompts, steering, writing, draws, chat)
    if batch_size < 1:
        raise SteerlensError(f"got batch_size={batch_size}; expected at least 1")
    transcript = Transcript.empty(task.rows, task.plans)
    work = partial(_write_batch, writing=task.writing)
    with progress_bar(len(prompts), "reply", progress) as bar:
        for groups, parts in engine.run(model, work, _batches(task, batch_size)):
            transcript.scatter(groups, parts)
            bar.update(sum(map(len, groups)))
    texts = model.tokenizer.batch_decode(transcript.tokens, skip_special_tokens=True)
    return transcript.replies(prompts, texts)


def stream(
    model: Model,
    prompts: Sequence[Readable],
    steering: Plans = None,
    *,
    max_new_tokens: int = 50,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    chat: bool | None = None,
) -> Generator[Replies, None, None]:
    """`generate`, showing the replies as far as they have come after every token.

    All prompts are one batch. Between two tokens the model is as it was: other runs may use it,
    and the iterator may be left at any time, or go on in another thread.

    >>> [str(reply) for (reply,) in stream(load_model(), ["How do I bake bread?"],
    ...                                    max_new_tokens=3)]
    ['Here', 'Here is', 'Here is what']
    """
    task = _prepare(model, prompts, steering, Writing(max_new_tokens, sampling), None, chat)
    [(groups, batch)] = _batches(task, max(1, len(prompts)))
    whole, part = Transcript.empty(task.rows, task.plans), Transcript.empty(batch.rows, batch.plans)
    texts = [GrowingText(model.tokenizer) for _ in batch.rows]
    with closing(_decode(model, batch, task.writing, part)) as steps:
        for _ in steps:
            whole.scatter(groups, [part])
            shown = [""] * len(prompts)
            for place, group in enumerate(groups):
                tokens = part.tokens[place]
                ended = part.finished[place] or len(tokens) == max_new_tokens
                so_far = texts[place].of(tokens, ended)
                for row in group:
                    shown[row] = so_far
            yield whole.replies(prompts, shown)


class Writing(NamedTuple):
    """How every row is written."""

    max_new_tokens: int
    sampling: Sampling
    use_cache: bool = True


class _Batch(NamedTuple):
    """Rows that are written together."""

    rows: Sequence[TokenRow]
    plans: Sequence[Plan]
    draws: Sequence[int]
    """Which streams of random numbers are theirs."""

    def part(self, rows: Sequence[int]) -> "_Batch":
        """These of its rows."""
        return _Batch(
            [self.rows[row] for row in rows],
            [for_rows(plan, rows) for plan in self.plans],
            [self.draws[row] for row in rows],
        )


class Task(NamedTuple):
    """All rows, and how they are written; found possible."""

    rows: Sequence[TokenRow]
    plans: Sequence[Plan]
    draws: Sequence[int]
    writing: Writing


def _prepare(
    model: Model,
    prompts: Sequence[Readable],
    plans: Plans,
    writing: Writing,
    draws: Sequence[int] | None,
    chat: bool | None,
) -> Task:
    """Tokenise, and refuse before any work what is not possible."""
    if writing.max_new_tokens < 1:
        raise SteerlensError(f"got max_new_tokens={writing.max_new_tokens}; expected at least 1")
    rows = tokenize(model, prompts, chat=chat)
    if draws is not None and len(draws) != len(rows):
        raise SteerlensError(
            f"got {len(draws)} draws for {len(rows)} prompts; expected one for each"
        )
    checked = as_plans(plans)
    require_fit(model, checked, rows, writing.max_new_tokens)
    return Task(rows, checked, range(len(rows)) if draws is None else draws, writing)


def _batches(task: Task, batch_size: int) -> Iterator[tuple[list[list[int]], _Batch]]:
    """Groups of equal rows, neighbours in length together; one row of a batch is for each group."""
    groups = _equal_rows(task)
    whole = _Batch(task.rows, task.plans, task.draws)
    for batch in by_length([len(task.rows[group[0]].ids) for group in groups], rows=batch_size):
        cut = [groups[index] for index in batch]
        yield cut, whole.part([group[0] for group in cut])


def _equal_rows(task: Task) -> list[list[int]]:
    """Rows that would get the same reply, being the same in all that decides on it."""
    by_row = [plan for plan in task.plans if isinstance(plan, BatchPlan)]
    sampled = task.writing.sampling.temperature > 0
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(task.rows):
        own = tuple(plan.row_key(index) for plan in by_row)
        groups.setdefault((row, own, task.draws[index] if sampled else None), []).append(index)
    return list(groups.values())


def write(model: Model, task: Task) -> Transcript:
    """The replies of a task as one batch; in several parts where memory does not hold it."""
    [(groups, batch)] = _batches(task, len(task.rows))
    transcript = Transcript.empty(task.rows, task.plans)
    transcript.scatter(groups, _write_batch(model, batch, task.writing))
    return transcript


def _write_batch(model: Model, batch: _Batch, writing: Writing) -> list[Transcript]:
    """The replies of a batch; in several parts where memory does not hold it at once."""

    def write(rows: Sequence[int]) -> Transcript:
        part = batch.part(rows)
        transcript = Transcript.empty(part.rows, part.plans)
        for _ in _decode(model, part, writing, transcript):
            pass
        return transcript

    return halving(write, range(len(batch.rows)))


def _decode(
    model: Model, batch: _Batch, writing: Writing, transcript: Transcript
) -> Generator[None, None, None]:
    """Write into the transcript, token by token; finished rows leave the batch in groups."""
    eos = end_tokens(model)
    tokens, mask = left_padded([row.ids for row in batch.rows], pad_token(model))
    run = decoding_run(batch.plans, batch.rows, mask, model)
    state = _State.begin(model, tokens, mask, writing, placed(model, run.hooks()))
    choose = TokenChooser(writing.sampling, batch.draws)
    ends = torch.tensor(sorted(eos), device=state.text.device)
    for step in range(writing.max_new_tokens):
        chosen = _next_tokens(model, state, run, choose, step)
        going = state.going
        transcript.take(state.rows[going].tolist(), chosen.cpu()[going].tolist(), eos)
        if step == 0:
            for condition, gate in run.gates.items():
                transcript.similarities[condition] = gate.similarity.float().cpu()
        yield
        state.going = state.going & ~torch.isin(chosen, ends).cpu()
        if not state.going.any():
            return
        state.append(chosen)
        if state.going.float().mean() <= WORTH_KEEPING:
            run.keep_rows(state.drop_finished())


@dataclass
class _State:
    """Where decoding stands: the rows that are still computed, their text and cache."""

    rows: Int[Tensor, " row"]
    """Of the batch, that are still computed."""
    going: Bool[Tensor, " row"]
    """Of these, that have not finished."""
    text: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]
    cache: Any
    passes: ForwardPasses

    @classmethod
    def begin(
        cls,
        model: Model,
        tokens: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos"],
        writing: Writing,
        hooks: Sequence[PlacedHook],
    ) -> "_State":
        """At the prompt."""
        device = model.cfg.device
        room = tokens.shape[1] + writing.max_new_tokens
        fast = is_on(model)
        cache = decoding_cache(model, len(tokens), room, fast) if writing.use_cache else None
        rows, going = torch.arange(len(tokens)), torch.ones(len(tokens), dtype=torch.bool)
        passes = ForwardPasses(model, hooks, fast)
        return cls(rows, going, tokens.to(device), mask.to(device), cache, passes)

    @torch.inference_mode()
    def append(self, chosen: Int[Tensor, " row"]) -> None:
        """One more token of each row."""
        self.text = torch.cat([self.text, chosen[:, None]], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

    @torch.inference_mode()
    def drop_finished(self) -> Int[Tensor, " row"]:
        """Go on with the rows that have not finished: these, of those before."""
        kept = self.going.nonzero().flatten()
        self.rows, self.going = self.rows[kept], self.going[kept]
        on_device = kept.to(self.text.device)
        self.text, self.mask = self.text[on_device], self.mask[on_device]
        if self.cache is not None:
            select_rows(self.cache, on_device)
        return kept


@torch.inference_mode()
def _next_tokens(
    model: Model, state: _State, run: Run, choose: TokenChooser, step: int
) -> Int[Tensor, " row"]:
    """The next token of each row, by one forward pass."""
    assert isinstance(run.clock, DecodingClock)
    first = 0 if step == 0 or state.cache is None else state.text.shape[1] - 1
    shown = state.text[:, first:]
    run.clock.show(first, shown.shape[1])
    logits = state.passes(partial(next_logits, model, shown, state.mask.int(), state.cache))
    broken = ~logits.amax(dim=1).isfinite().cpu() & state.going
    if broken.any():
        raise SteerlensError(
            f"{model.cfg.model_name}'s logits are not finite numbers in {int(broken.sum())} of "
            f"{len(broken)} rows, at new token {step + 1}: a steering is too strong for "
            f"{logits.dtype}, or the weights hold NaN; lower the strength, or load a wider dtype"
        )
    return choose(logits, state.text, state.mask, step, state.rows)
