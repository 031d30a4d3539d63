"""Token rows → pooled activations, read by `run_with_cache`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from steerlens.directions import at_least_float32
from steerlens.engines import HERE, Engine
from steerlens.errors import SteerlensError
from steerlens.lean import lean, lean_cache, select_rows
from steerlens.models import (
    Cache,
    Frame,
    Model,
    hook_name,
    resolve_layers,
    site_frame,
    unmasked,
)
from steerlens.positions import Tokens, read_positions
from steerlens.prefixes import shared_prefixes
from steerlens.tokens import Readable, TokenRow, pad_token, right_padded, tokenize

CPU_BATCH_TOKENS = 1024
BATCH_TOKENS = 16_384
"""Tokens, padding included, in one forward pass of a read, on a CPU and elsewhere.

A CPU is fastest while what a layer makes fits into its caches: 8,192 tokens took 1.7 times as long.
"""

_Job = tuple[TokenRow, tuple[int, ...]]
"""A row and the positions to read of it."""
_Place = tuple[str, Frame]
"""A hook point, and what lies between it and the site."""


class Reading(NamedTuple):
    """What was read of each prompt."""

    pooled: Float[Tensor, "prompt layer d_model"]
    """Mean activation over the tokens read."""
    norms: Float[Tensor, "prompt layer"]
    """Mean length of these tokens' activations; position 0, an attention sink, is left out."""


def read_residual(
    model: Model,
    prompts: Sequence[Readable],
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens | Sequence[int] = "last",
    site: str = "resid_post",
    chat: bool | None = None,
    generation_prompt: bool = True,
    batch_tokens: int | None = None,
    progress: bool = True,
    engine: Engine = HERE,
) -> Float[Tensor, "prompt layer d_model"]:
    """The residual stream of each prompt at each layer, averaged over the chosen tokens.

    Float32 (or wider) on the CPU, in the order of the prompts. `chat=None` applies the chat
    template if the tokenizer has one; token ids are taken as they are. `tokens` is one selection
    for all prompts, or a list with one index for each.

    >>> read_residual(load_model(), ["Hi there.", "How do I bake bread?"], layers=[2, 3]).shape
    torch.Size([2, 2, 192])
    """
    rows = tokenize(model, prompts, chat=chat, generation_prompt=generation_prompt)
    return read_rows(
        model,
        rows,
        layers,
        tokens=tokens,
        site=site,
        batch_tokens=batch_tokens,
        progress=progress,
        engine=engine,
    ).pooled


def read_rows(
    model: Model,
    rows: Sequence[TokenRow],
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens | Sequence[int] = "last",
    site: str = "resid_post",
    batch_tokens: int | None = None,
    progress: bool = True,
    engine: Engine = HERE,
) -> Reading:
    """`read_residual` for prompts that are tokens already; equal rows are run once."""
    numbers = resolve_layers(model, layers)
    _places(model, site, numbers)  # refuses before any work
    wanted = list(zip(rows, positions_of(model, rows, tokens), strict=True))
    jobs, shared = _jobs(wanted)
    pooled: Tensor | None = None
    norms = torch.zeros(len(jobs), len(numbers))
    total = sum(len(row.ids) for row, _ in jobs)
    shards = (
        (indices, ([jobs[index] for index in indices], shared[indices[0]]))
        for indices in _batches(jobs, shared, batch_tokens or _fast_batch(engine.device(model)))
    )
    work = partial(_read_shard, site=site, layers=numbers)
    hidden = None if progress else True
    with tqdm(total=total, unit="tok", desc="reading", disable=hidden) as bar:
        for indices, read in engine.run(model, work, shards):
            if pooled is None:
                pooled = read.pooled.new_zeros(len(jobs), *read.pooled.shape[1:])
            pooled[indices], norms[indices] = read.pooled, read.norms
            bar.update(sum(len(jobs[index][0].ids) for index in indices))
    if pooled is None:
        raise SteerlensError("there is nothing to read: the list of prompts is empty")
    index_of = {job: index for index, job in enumerate(jobs)}
    place = [index_of[job] for job in wanted]
    return Reading(pooled[place], norms[place])


class Pass(NamedTuple):
    """One forward pass of a read, or two where rows begin alike."""

    rows: int
    width: int
    """Tokens of the longest row, of what it does not share."""
    prefixes: int
    n_shared: int
    """How many different beginnings are run first, and of how many tokens."""

    @property
    def tokens(self) -> int:
        """All that is computed, padding included."""
        return self.rows * self.width + self.prefixes * self.n_shared


def reading_passes(
    model: Model,
    rows: Sequence[TokenRow],
    tokens: Tokens | Sequence[int] = "last",
    batch_tokens: int = BATCH_TOKENS,
) -> list[Pass]:
    """What `read_rows` would run, found without running it."""
    jobs, shared = _jobs(list(zip(rows, positions_of(model, rows, tokens), strict=True)))
    return [
        Pass(
            len(batch),
            max(len(jobs[index][0].ids) for index in batch) - n_shared,
            len({jobs[index][0].ids[:n_shared] for index in batch}) if n_shared else 0,
            n_shared,
        )
        for batch in _batches(jobs, shared, batch_tokens)
        for n_shared in [shared[batch[0]]]
    ]


def _jobs(wanted: Sequence[_Job]) -> tuple[list[_Job], list[int]]:
    """Each row and its positions once, and how many tokens it shares with others."""
    jobs = list(dict.fromkeys(wanted))
    # Cut from the tokens of whole texts: a token across a boundary is never shared.
    shared = shared_prefixes([_shareable(job) for job in jobs], [len(row.ids) for row, _ in jobs])
    return jobs, shared


def positions_of(
    model: Model, rows: Sequence[TokenRow], tokens: Tokens | Sequence[int]
) -> list[tuple[int, ...]]:
    """What is read of each row."""
    if isinstance(tokens, Sequence) and not isinstance(tokens, str):
        if len(tokens) != len(rows):
            raise SteerlensError(
                f"{len(tokens)} indices came for {len(rows)} prompts; give one for each"
            )
        each: list[Tokens] = [slice(at, at + 1 or None) for at in tokens]
    else:
        each = [tokens] * len(rows)

    def positions(row: TokenRow, choice: Tokens) -> tuple[int, ...]:
        starts = {"suffix": row.suffix_start, "reply": row.reply_start}
        str_tokens = partial(_str_tokens, model, row)
        return tuple(read_positions(choice, len(row.ids), starts, str_tokens))

    return [positions(row, choice) for row, choice in zip(rows, each, strict=True)]


def _str_tokens(model: Model, row: TokenRow) -> list[str]:
    return [model.tokenizer.decode([token]) for token in row.ids]


def _fast_batch(device: torch.device) -> int:
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def _places(model: Model, site: str, layers: Sequence[int]) -> list[_Place]:
    return [(hook_name(model, site, layer), site_frame(model, site, layer)) for layer in layers]


def _shareable(job: _Job) -> tuple[int, ...]:
    """What stands before the first token that is read; nothing of it is in the result."""
    row, positions = job
    return row.ids[: min(positions)]


def _batches(jobs: Sequence[_Job], shared: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Neighbours in length, up to `batch_tokens` with their padding, all sharing as many tokens."""

    def likeness(index: int) -> tuple[int, tuple[int, ...], int]:
        ids = jobs[index][0].ids
        return shared[index], ids[: shared[index]], len(ids)

    batch: list[int] = []
    width = 0
    for index in sorted(range(len(jobs)), key=likeness):
        own = len(jobs[index][0].ids) - shared[index]
        wider = max(width, own)
        full = wider * (len(batch) + 1) > batch_tokens
        if batch and (full or shared[index] != shared[batch[0]]):
            yield batch
            batch, wider = [], own
        batch.append(index)
        width = wider
    if batch:
        yield batch


def _read_shard(
    model: Model, shard: tuple[Sequence[_Job], int], *, site: str, layers: Sequence[int]
) -> Reading:
    jobs, n_shared = shard
    with lean(model):
        return _read_batch(model, jobs, n_shared, _places(model, site, layers), layers[-1])


@torch.no_grad()
def _read_batch(
    model: Model, jobs: Sequence[_Job], n_shared: int, places: Sequence[_Place], last_layer: int
) -> Reading:
    try:
        return _read_at_once(model, jobs, n_shared, places, last_layer)
    except torch.OutOfMemoryError:
        if len(jobs) == 1:
            raise
        torch.cuda.empty_cache()
    half = len(jobs) // 2
    halves = [
        _read_batch(model, part, n_shared, places, last_layer)
        for part in (jobs[:half], jobs[half:])
    ]
    return Reading(*(torch.cat(parts) for parts in zip(*halves, strict=True)))


def _after_prefixes(
    model: Model, jobs: Sequence[_Job], n_shared: int, room: int, last_layer: int
) -> Cache:
    """Run the distinct prefixes; every job gets the keys and values of its own."""
    prefixes = {row.ids[:n_shared]: None for row, _ in jobs}
    place = {prefix: index for index, prefix in enumerate(prefixes)}
    owner = torch.tensor([place[row.ids[:n_shared]] for row, _ in jobs], device=model.cfg.device)
    tokens = torch.tensor(list(prefixes), device=model.cfg.device)
    cache = lean_cache(model, len(tokens), room)
    model(**unmasked(model, tokens, cache), stop_at_layer=last_layer + 1)
    select_rows(cache, owner)
    return cache


def _read_at_once(
    model: Model, jobs: Sequence[_Job], n_shared: int, places: Sequence[_Place], last_layer: int
) -> Reading:
    rest = [row.ids[n_shared:] for row, _ in jobs]
    tokens, _ = right_padded(rest, pad_token(model), model.cfg.device)
    room = n_shared + tokens.shape[1]
    before = _after_prefixes(model, jobs, n_shared, room, last_layer) if n_shared else None
    # No mask is needed: causal attention never looks at what pads the right.
    _, cache = model.run_with_cache(
        **unmasked(model, tokens, before),
        names_filter=[name for name, _ in places],
        stop_at_layer=last_layer + 1,
        return_type=None,
        return_cache_object=False,
    )
    counts = torch.tensor([len(positions) for _, positions in jobs])
    row = torch.arange(len(jobs)).repeat_interleave(counts).to(tokens.device)
    place = torch.tensor([at - n_shared for _, positions in jobs for at in positions]).to(
        row.device
    )
    weight = (1 / counts.to(row.device))[row]
    off_sink = ((place + n_shared > 0) | (counts.to(row.device)[row] == 1)).float()
    pooled, norms = [], []
    for name, frame in places:
        activations = at_least_float32(frame.into(cache.pop(name))[row, place])
        sums = activations.new_zeros(len(jobs), activations.shape[1])
        pooled.append(sums.index_add_(0, row, activations * weight[:, None].to(activations)))
        lengths = activations.norm(dim=1).float() * off_sink
        total = lengths.new_zeros(2, len(jobs))
        total[0].index_add_(0, row, lengths)
        total[1].index_add_(0, row, off_sink)
        norms.append(total[0] / total[1].clamp_min(1))
    return Reading(
        torch.stack(pooled, dim=1).cpu(), rearrange(norms, "layer prompt -> prompt layer").cpu()
    )
