"""Steered replies to a batch of prompts: one decoding loop for `generate`, `stream` and `sweep`."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.activations.batching import by_length
from steerlens.errors import SteerlensError
from steerlens.models.engine import LOCAL, Engine, halving
from steerlens.models.fast_forward import ForwardPasses, decoding_cache, is_on, select_rows
from steerlens.models.hooking import PlacedHook, placed
from steerlens.models.host import Cache, Model, next_logits, require_kept
from steerlens.models.progress import progress_bar
from steerlens.models.token_text import decoded
from steerlens.models.tokenizing import (
    Readable,
    TokenRow,
    as_prompts,
    end_tokens,
    left_padded,
    pad_token,
    tokenize,
)
from steerlens.numerics import require_count
from steerlens.shapes import TokenIds, TokenMask
from steerlens.steering.batch_plans import (
    BatchPlan,
    Plan,
    Plans,
    as_plans,
    decoding_run,
    for_rows,
)
from steerlens.steering.beginnings import run_beginning
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.degenerate_replies import warn_if_degenerate
from steerlens.steering.fitting import require_fit
from steerlens.steering.sampling import Sampling, TokenChooser
from steerlens.steering.steering import Run
from steerlens.steering.transcripts import GrowingText, Replies, Transcript

Begin = Callable[[Model, Sequence[TokenRow], Sequence[Plan], TokenMask, Cache | None], int]
"""Fills an empty KV cache with tokens that the rows begin with, and says with how many columns; see
`run_beginning`."""

WORTH_KEEPING = 7 / 8
"""A batch drops finished rows once at most this share is unfinished: that copies the KV cache."""


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
    """Reply to each prompt, steered where the steerings' conditions fire.

    A reply does not depend on the batch that its prompt is in, sampled or not. Equal prompts with
    equal settings are decoded once, unless they are sampled. Batches are halved where memory runs
    out. A `DegenerateWarning` tells where more than a tenth of at least ten steered replies (of at
    least 16 tokens allowed) are empty or repeat themselves.

    Args:
        model: The model that replies.
        prompts: Texts, chats (lists of messages) or token ids.
        steering: One steering, several at once, or a `BatchPlan` with settings for each row; None:
            unsteered.
        max_new_tokens: Most tokens of a reply.
        sampling: How tokens are chosen; greedy by default.
        draws: Which stream of random numbers each prompt samples with; None: its index.
        chat: Whether prompts are put into the chat template; None: if the model has one.
        use_cache: Whether decoding keeps keys and values; False runs the whole text for every
            token.
        batch_size: Most prompts of a batch.
        progress: Show a progress bar.
        engine: Where the model runs: here, or on other machines by `Ray`.

    Raises:
        SteerlensError: Before anything runs, if a prompt and its reply do not fit into the
            context, or a steering does not fit the model, or would touch no token.

    >>> list(generate(load_model(), ["How do I bake bread?"], max_new_tokens=5))
    ['Here is what I know']
    """
    prompts = as_prompts(prompts)
    writing = Writing(max_new_tokens, sampling, use_cache)
    task = _prepare(model, prompts, steering, writing, draws, chat)
    require_count("batch_size", batch_size)
    transcript = Transcript.empty(task.rows, task.plans)
    work = partial(_write_batch, writing=task.writing)
    with progress_bar(len(prompts), "reply", progress) as bar:
        for groups, parts in engine.run(model, work, _batches(task, batch_size)):
            transcript.scatter(groups, parts)
            bar.update(sum(map(len, groups)))
    texts = [
        decoded(model.tokenizer, tokens, skip_special_tokens=True) for tokens in transcript.tokens
    ]
    replies = transcript.replies(prompts, texts, model.tokenizer)
    warn_if_degenerate(replies, task.plans, max_new_tokens)
    return replies


def stream(
    model: Model,
    prompts: Sequence[Readable],
    steering: Plans = None,
    *,
    max_new_tokens: int = 50,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    chat: bool | None = None,
) -> Generator[Replies, None, None]:
    """`generate`, yielding the unfinished replies after every decoding step.

    All prompts are one batch. No hooks are left on the model between two steps: other runs may use
    it, and the iterator may be dropped at any time, or continued in another thread.

    Args:
        model: The model that replies.
        prompts: Texts, chats or token ids.
        steering: As in `generate`.
        max_new_tokens: Most tokens of a reply.
        sampling: How tokens are chosen; greedy by default.
        chat: As in `generate`.

    Raises:
        SteerlensError: As in `generate`, at the first step.

    >>> [str(reply) for (reply,) in stream(load_model(), ["How do I bake bread?"],
    ...                                    max_new_tokens=3)]
    ['Here', 'Here is', 'Here is what']
    """
    prompts = as_prompts(prompts)
    task = _prepare(model, prompts, steering, Writing(max_new_tokens, sampling), None, chat)
    [(groups, batch)] = _batches(task, max(1, len(prompts)))
    whole, part = Transcript.empty(task.rows, task.plans), Transcript.empty(batch.rows, batch.plans)
    texts = [GrowingText(model.tokenizer) for _ in batch.rows]
    with closing(_decode(model, batch, task.writing, part)) as steps:
        for _ in steps:
            whole.scatter(groups, [part])
            replies = [""] * len(prompts)
            for place, group in enumerate(groups):
                tokens = part.tokens[place]
                ended = part.finished[place] or len(tokens) == max_new_tokens
                so_far = texts[place].of(tokens, ended)
                for row in group:
                    replies[row] = so_far
            yield whole.replies(prompts, replies, model.tokenizer)


class Writing(NamedTuple):
    """The settings of decoding that all rows share."""

    max_new_tokens: int
    sampling: Sampling
    use_cache: bool = True


class _Batch(NamedTuple):
    """Rows that are decoded together."""

    rows: Sequence[TokenRow]
    plans: Sequence[Plan]
    draws: Sequence[int]
    """The number of each row's stream of random numbers."""

    def part(self, rows: Sequence[int]) -> "_Batch":
        """The batch of these rows only."""
        return _Batch(
            [self.rows[row] for row in rows],
            [for_rows(plan, rows) for plan in self.plans],
            [self.draws[row] for row in rows],
        )


class Task(NamedTuple):
    """All rows and settings, checked against the model."""

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
    """Tokenise, and refuse what is impossible before anything runs."""
    require_count("max_new_tokens", writing.max_new_tokens)
    rows = tokenize(model, prompts, chat=chat)
    if draws is not None and len(draws) != len(rows):
        raise SteerlensError(
            f"got {len(draws)} draws for {len(rows)} prompts; expected one for each"
        )
    checked = as_plans(plans)
    require_fit(model, checked, rows, writing.max_new_tokens)
    return Task(rows, checked, range(len(rows)) if draws is None else draws, writing)


def _batches(task: Task, batch_size: int) -> Iterator[tuple[list[list[int]], _Batch]]:
    """Groups of equal rows, batched by length; a batch has one row for each of its groups."""
    groups = _equal_rows(task)
    all_rows = _Batch(task.rows, task.plans, task.draws)
    for batch in by_length([len(task.rows[group[0]].ids) for group in groups], rows=batch_size):
        batch_groups = [groups[index] for index in batch]
        yield batch_groups, all_rows.part([group[0] for group in batch_groups])


def _equal_rows(task: Task) -> list[list[int]]:
    """Groups of rows that would get the same reply, as all that it depends on is equal."""
    by_row = [plan for plan in task.plans if isinstance(plan, BatchPlan)]
    sampled = task.writing.sampling.temperature > 0
    groups: dict[Any, list[int]] = {}
    for index, row in enumerate(task.rows):
        settings = tuple(plan.row_key(index) for plan in by_row)
        groups.setdefault((row, settings, task.draws[index] if sampled else None), []).append(index)
    return list(groups.values())


def write(model: Model, task: Task) -> Transcript:
    """The replies of a task as one batch, halved where memory runs out."""
    [(groups, batch)] = _batches(task, len(task.rows))
    transcript = Transcript.empty(task.rows, task.plans)
    transcript.scatter(groups, _write_batch(model, batch, task.writing))
    return transcript


def write_by_steps(
    model: Model, task: Task, begin: Begin = run_beginning
) -> Generator[Transcript, None, None]:
    """The unfinished replies of a task as one batch, after every decoding step.

    Args:
        model: The model that replies.
        task: Rows and settings, checked by the caller.
        begin: Puts what the rows begin with into the KV cache before the first step.
    """
    transcript = Transcript.empty(task.rows, task.plans)
    batch = _Batch(task.rows, task.plans, task.draws)
    with closing(_decode(model, batch, task.writing, transcript, begin)) as steps:
        for _ in steps:
            yield transcript


def _write_batch(model: Model, batch: _Batch, writing: Writing) -> list[Transcript]:
    """The replies of a batch, in several parts where memory runs out."""

    def write(rows: Sequence[int]) -> Transcript:
        part = batch.part(rows)
        transcript = Transcript.empty(part.rows, part.plans)
        for _ in _decode(model, part, writing, transcript):
            pass
        return transcript

    return halving(write, range(len(batch.rows)))


def _decode(
    model: Model,
    batch: _Batch,
    writing: Writing,
    transcript: Transcript,
    begin: Begin = run_beginning,
) -> Generator[None, None, None]:
    """Decode into the transcript, one step at a time; finished rows leave the batch in groups."""
    eos = end_tokens(model)
    tokens, mask = left_padded([row.ids for row in batch.rows], pad_token(model))
    run = decoding_run(batch.plans, batch.rows, mask, model)
    state = _State.begin(model, tokens, mask, writing, placed(model, run.hooks()))
    state.done = begin(model, batch.rows, batch.plans, mask, state.cache)
    choose = TokenChooser(writing.sampling, batch.draws)
    ends = torch.tensor(sorted(eos), device=state.text.device)
    for step in range(writing.max_new_tokens):
        chosen = _next_tokens(model, state, run, choose, step)
        going, rows = state.going, state.rows.tolist()
        transcript.see(run, rows, going, 1 if step else tokens.shape[1])
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
    """The state of decoding: the rows that are still computed, their text and KV cache."""

    rows: Int[Tensor, " batch"]
    """Rows of the first batch that are still computed."""
    going: Bool[Tensor, " batch"]
    """Which of these rows have not finished."""
    text: TokenIds
    mask: TokenMask
    cache: Any
    passes: ForwardPasses
    done: int = 0
    """How many columns of the text the cache holds."""

    @classmethod
    def begin(
        cls,
        model: Model,
        tokens: TokenIds,
        mask: TokenMask,
        writing: Writing,
        hooks: Sequence[PlacedHook],
    ) -> "_State":
        """The state before the prompt is run."""
        device = model.cfg.device
        n_tokens = tokens.shape[1] + writing.max_new_tokens
        fast = is_on(model)
        cache = decoding_cache(model, len(tokens), n_tokens, fast) if writing.use_cache else None
        rows, going = torch.arange(len(tokens)), torch.ones(len(tokens), dtype=torch.bool)
        passes = ForwardPasses(model, hooks, fast)
        return cls(rows, going, tokens.to(device), mask.to(device), cache, passes)

    @torch.inference_mode()
    def append(self, chosen: Int[Tensor, " batch"]) -> None:
        """Append one token to each row."""
        self.text = torch.cat([self.text, chosen[:, None]], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)

    @torch.inference_mode()
    def drop_finished(self) -> Int[Tensor, " kept"]:
        """Keep only the rows that have not finished, and return their indices."""
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
) -> Int[Tensor, " batch"]:
    """The next token of each row, by one forward pass."""
    assert isinstance(run.clock, DecodingClock)
    tokens = state.text[:, state.done :]
    run.clock.show(state.done, tokens.shape[1], state.text)
    logits = state.passes(partial(next_logits, model, tokens, state.mask.int(), state.cache))
    if step == 0:
        require_kept(model, state.cache)
    state.done = 0 if state.cache is None else state.text.shape[1]
    require_finite(model, logits, step, state.going)
    return choose(logits, state.text, state.mask, step, state.rows)


def require_finite(
    model: Model,
    logits: Float[Tensor, "batch d_vocab"],
    step: int,
    going: Bool[Tensor, " batch"] | None = None,
) -> None:
    """Refuse logits from which no token can be chosen.

    Args:
        model: The model that they are of.
        logits: Of the next token of each row.
        step: How many tokens have been written, for the message.
        going: Which rows have not finished; None: none has.
    """
    broken = ~logits.amax(dim=1).isfinite().cpu()
    if going is not None:
        broken &= going
    if broken.any():
        raise SteerlensError(
            f"{model.cfg.model_name}'s logits are not finite numbers in {int(broken.sum())} of "
            f"{len(broken)} rows, at new token {step + 1}: a steering is too strong for "
            f"{logits.dtype}, or the weights hold NaN; lower the strength, or load a wider dtype"
        )
