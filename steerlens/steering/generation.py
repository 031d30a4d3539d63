"""Steered replies to a batch of prompts: tokenised once, padded left, one gate per row."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.models.engine import LOCAL, Engine
from steerlens.models.fast_forward import fast_forward, preallocated_cache, select_rows
from steerlens.models.host import Model, next_logits
from steerlens.models.tokenizing import (
    Readable,
    TokenRow,
    left_padded,
    pad_token,
    reply_starts,
    tokenize,
)
from steerlens.steering.batch_plans import for_rows, per_row
from steerlens.steering.conditions import Condition
from steerlens.steering.positions import can_select
from steerlens.steering.sampling import Sampling, TokenChooser
from steerlens.steering.steering import Run, Steering

WORTH_KEEPING = 7 / 8
"""A batch is made smaller when no more than this share of it goes on: that copies its cache."""

Steerings = Steering | Sequence[Steering] | None


@dataclass(frozen=True, eq=False)
class GateReport:
    """What one condition saw of each prompt, and which prompts it fired on."""

    condition: Condition
    similarity: Float[Tensor, "row layer"]
    open: Bool[Tensor, " row"]

    def __repr__(self) -> str:
        rows = self.open.nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:20])) + (", …" if len(rows) > 20 else "")
        return f"{self.condition}: fired on {len(rows)} of {len(self.open)} rows ({shown or '–'})"


@dataclass(frozen=True, eq=False)
class Replies(Sequence[str]):
    """One reply per prompt, in the order of the prompts; a sequence of their texts."""

    prompts: tuple[Readable, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """What was generated, without the end-of-text token."""
    finished: tuple[bool, ...]
    """Whether the reply ended by itself."""
    gates: tuple[GateReport, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: Any) -> Any:
        return self.texts[row]

    def __repr__(self) -> str:
        return f"Replies({len(self)}, {sum(self.finished)} finished, {len(self.gates)} gates)"


def generate(
    model: Model,
    prompts: Sequence[Readable],
    steering: Steerings = None,
    *,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    draws: Sequence[int] | None = None,
    chat: bool | None = None,
    batch_size: int = 64,
    use_cache: bool = True,
    progress: bool = True,
    engine: Engine = LOCAL,
) -> Replies:
    """Reply to each prompt, steered where its conditions hold; greedy unless told otherwise.

    Prompts are text, chats or tokens; `chat=None` applies the chat template if there is one.
    A row's reply does not depend on the batch it is in, sampled or not: row i samples with the
    i-th stream of random numbers of `seed`, or with number `draws[i]`. Rows that are alike and
    steered alike are written once, unless they are sampled. Raises before any work if
    a prompt and its reply do not fit into the context, or the plan does not fit the model.
    Threads that use one model take turns, batch by batch.

    >>> list(generate(load_model(), ["How do I bake bread?"], max_new_tokens=5))
    ['Sure, here is a']
    """
    plan = _Plan(max_new_tokens, Sampling(temperature, top_k, top_p, repetition_penalty, seed))
    whole, batches = _batches(model, prompts, steering, plan, draws, chat, batch_size)
    work = partial(_written, plan=plan, use_cache=use_cache)
    with tqdm(total=len(prompts), unit="reply", disable=None if progress else True) as bar:
        for lines, written in engine.run(model, work, batches):
            whole.place(lines, written)
            bar.update(sum(map(len, lines)))
    return whole.replies(model, prompts)


def stream(
    model: Model,
    prompts: Sequence[Readable],
    steering: Steerings = None,
    *,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
) -> Generator[Replies, None, None]:
    """`generate`, showing the replies as far as they have come after every token.

    All prompts are one batch. The model stays steered, and other threads wait for it, until the
    iterator ends or is closed, which its own thread has to do.

    >>> [str(reply) for (reply,) in stream(load_model(), ["How do I bake bread?"],
    ...                                    max_new_tokens=3)]
    ['Sure', 'Sure,', 'Sure, here']
    """
    plan = _Plan(max_new_tokens, Sampling(temperature, top_k, top_p, repetition_penalty, seed))
    batch_size = max(1, len(prompts))
    whole, [(lines, batch)] = _batches(model, prompts, steering, plan, None, chat, batch_size)
    with closing(_write(model, batch, plan)) as steps:
        for written in steps:
            whole.place(lines, written)
            yield whole.replies(model, prompts)


class _Plan(NamedTuple):
    """What is asked of every row."""

    max_new_tokens: int
    sampling: Sampling


_Line = list[int]
"""Which of the prompts, all alike and steered alike, one row of a batch replies to."""


class _Batch(NamedTuple):
    """Rows that are written together."""

    rows: Sequence[TokenRow]
    steerings: Sequence[Steering]
    draws: Sequence[int]
    """Which streams of random numbers are theirs."""


@dataclass
class _Written:
    """Replies as far as they have come."""

    tokens: list[list[int]]
    finished: list[bool]
    similarities: dict[Condition, Tensor]

    @classmethod
    def nothing(cls, batch: _Batch) -> "_Written":
        n = len(batch.rows)
        conditions = [condition for one in batch.steerings for condition in one.conditions]
        unseen = {c: torch.full((n, len(c.layers_read)), torch.nan) for c in conditions}
        return cls([[] for _ in range(n)], [False] * n, unseen)

    def take(self, rows: Sequence[int], chosen: Sequence[int], eos: frozenset[int]) -> None:
        for row, token in zip(rows, chosen, strict=True):
            if token in eos:
                self.finished[row] = True
            else:
                self.tokens[row].append(token)

    def place(self, lines: Sequence[_Line], batch: "_Written") -> None:
        """Put the replies of a batch where they belong among all."""
        rows, places = zip(
            *((row, place) for place, line in enumerate(lines) for row in line), strict=True
        )
        for row, place in zip(rows, places, strict=True):
            self.tokens[row], self.finished[row] = batch.tokens[place], batch.finished[place]
        # By order: a batch that was written elsewhere has copies of the conditions.
        for whole, seen in zip(
            self.similarities.values(), batch.similarities.values(), strict=True
        ):
            whole[list(rows)] = seen[list(places)]

    def replies(self, model: Model, prompts: Sequence[Readable]) -> Replies:
        return Replies(
            tuple(prompts),
            tuple(model.tokenizer.batch_decode(self.tokens, skip_special_tokens=True)),
            tuple(map(tuple, self.tokens)),
            tuple(self.finished),
            tuple(
                GateReport(condition, seen.clone(), condition.fires(seen))
                for condition, seen in self.similarities.items()
            ),
        )


def _batches(
    model: Model,
    prompts: Sequence[Readable],
    steering: Steerings,
    plan: _Plan,
    draws: Sequence[int] | None,
    chat: bool | None,
    batch_size: int,
) -> tuple[_Written, Iterator[tuple[list[_Line], _Batch]]]:
    """Room for all replies, and the batches to write, neighbours in length together."""
    if plan.max_new_tokens < 1 or batch_size < 1:
        raise SteerlensError(
            f"max_new_tokens={plan.max_new_tokens}, batch_size={batch_size}: both must be at "
            "least 1"
        )
    rows = tokenize(model, prompts, chat=chat)
    numbers = range(len(rows)) if draws is None else draws
    if len(numbers) != len(rows):
        raise SteerlensError(
            f"{len(numbers)} draws came for {len(rows)} prompts; give one for each"
        )
    steerings = _require_fitting(model, steering, rows, plan.max_new_tokens)
    lines = sorted(
        _alike(rows, steerings, numbers if plan.sampling.temperature else None),
        key=lambda line: len(rows[line[0]].ids),
    )

    def batch(cut: Sequence[_Line]) -> _Batch:
        of = [line[0] for line in cut]
        steered = [for_rows(one, of) for one in steerings]
        return _Batch([rows[row] for row in of], steered, [numbers[row] for row in of])

    cuts = [lines[start : start + batch_size] for start in range(0, len(lines), batch_size)]
    return _Written.nothing(_Batch(rows, steerings, numbers)), ((cut, batch(cut)) for cut in cuts)


def _alike(
    rows: Sequence[TokenRow], steerings: Sequence[Steering], draws: Sequence[int] | None
) -> Iterable[_Line]:
    """Rows that would get the same reply, being the same in all that decides on it."""
    settings = [of.tolist() for steering in steerings for of in per_row(steering).values()]
    lines: dict[Any, _Line] = {}
    for index, row in enumerate(rows):
        own = tuple(tuple(of[index]) for of in settings)
        lines.setdefault((row, own, draws and draws[index]), []).append(index)
    return lines.values()


def _written(model: Model, batch: _Batch, plan: _Plan, use_cache: bool) -> _Written:
    *_, written = _write(model, batch, plan, use_cache)
    return written


def _write(
    model: Model, batch: _Batch, plan: _Plan, use_cache: bool = True
) -> Generator[_Written, None, None]:
    """The replies of a batch; the same object, after every token."""
    written, eos = _Written.nothing(batch), _end_of_text(model)
    tokens, mask = left_padded([row.ids for row in batch.rows], pad_token(model))
    run = Run(batch.steerings, mask, model, reply_starts(batch.rows))
    choose = TokenChooser(plan.sampling, batch.draws)
    steps = _decode(model, tokens, run, plan.max_new_tokens, choose, eos, use_cache)
    with closing(steps):
        for step, (rows, chosen) in enumerate(steps):
            written.take(rows.tolist(), chosen.tolist(), eos)
            if step == 0:
                for condition, gate in run.gates.items():
                    written.similarities[condition] = gate.similarity.float().cpu()
            yield written


@torch.inference_mode()
def _decode(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    run: Run,
    max_new_tokens: int,
    choose: "TokenChooser",
    eos: frozenset[int],
    use_cache: bool,
) -> Generator[tuple[Int[Tensor, " alive"], Int[Tensor, " alive"]], None, None]:
    """Yield the rows that go on and their next tokens; finished rows leave the batch in groups."""
    assert run.prompt_mask is not None
    device = model.cfg.device
    rows = torch.arange(len(tokens))  # of the batch, that are still computed
    going = torch.ones(len(tokens), dtype=torch.bool)  # of these, that have not finished
    text, mask = tokens.to(device), run.prompt_mask.to(device)
    room = tokens.shape[1] + max_new_tokens
    cache = preallocated_cache(model, len(tokens), room) if use_cache else None
    ends = torch.tensor(sorted(eos), device=device)
    with fast_forward(model), model.hooks(fwd_hooks=run.hooks()):
        for step in range(max_new_tokens):
            first = 0 if step == 0 or cache is None else -1
            logits = next_logits(model, text[:, first:], mask.int(), cache)
            chosen = choose(logits, text, mask, step, rows)
            yield rows[going], chosen.cpu()[going]
            going &= ~torch.isin(chosen, ends).cpu()
            if not going.any():
                return
            text = torch.cat([text, chosen[:, None]], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if going.float().mean() <= WORTH_KEEPING:
                kept = going.nonzero().flatten()
                rows, going = rows[kept], going[kept]
                run.keep_rows(kept)
                kept = kept.to(device)
                text, mask = text[kept], mask[kept]
                if cache is not None:
                    select_rows(cache, kept)


def _require_fitting(
    model: Model, steering: Steerings, rows: Sequence[TokenRow], max_new_tokens: int
) -> list[Steering]:
    """Refuse, before any work, what could not run to its end or would do nothing."""
    steerings = [steering] if isinstance(steering, Steering) else list(steering or ())
    for index, row in enumerate(rows):
        if len(row.ids) + max_new_tokens > model.cfg.n_ctx:
            raise SteerlensError(
                f"prompt {index} has {len(row.ids)} tokens and {max_new_tokens} new ones were "
                f"asked for, but {model.cfg.model_name}'s context holds {model.cfg.n_ctx}"
            )
    for one in steerings:
        uses = [(one.vector, one.site_written, one.layers_steered)]
        uses += [(c.vector, c.site_read, c.layers_read) for c in one.conditions]
        for vector, site, layers in uses:
            check_provenance(model, vector, site, layers)
        for what, values in per_row(one).items():
            if len(values) != len(rows):
                raise SteerlensError(
                    f"the {what} of {one} has {len(values)} rows for {len(rows)} prompts; "
                    "it needs one row for each prompt"
                )
        longest = max(rows, key=lambda row: len(row.ids))
        each = [for_rows(one, [index]) for index in range(len(rows))]
        if not any(_touches(own, row, max_new_tokens) for own, row in zip(each, rows, strict=True)):
            raise SteerlensError(
                f"{one} would touch no token of these prompts (of {len(longest.ids)} tokens at "
                f"most) and {max_new_tokens} new ones; change positions="
            )
    return steerings


def _touches(steering: Steering, row: TokenRow, max_new_tokens: int) -> bool:
    return can_select(
        steering.positions, steering.skip_bos, len(row.ids), max_new_tokens, row.reply_start
    )


def _end_of_text(model: Model) -> frozenset[int]:
    eos = model.tokenizer.eos_token_id
    return frozenset() if eos is None else frozenset([int(eos)])
