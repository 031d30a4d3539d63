"""Token rows → pooled activations, read by `run_with_cache`."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.activations.batching import BatchBudget, ReadJob, read_batches, read_jobs
from steerlens.activations.pooling import (
    TIMES_MEDIAN,
    norms_of,
    sum_of,
    times_median,
    without_sinks,
)
from steerlens.activations.selection import Tokens, positions_of
from steerlens.errors import SteerlensError
from steerlens.models.engine import RunOptions, halving, run_settings
from steerlens.models.fast_forward import decoding_cache, forward_pass, is_on, select_rows
from steerlens.models.hooking import restore_hooks
from steerlens.models.host import Cache, Model, unmasked
from steerlens.models.progress import progress_bar
from steerlens.models.sites import Frame, hook_name, resolve_layers, site_frame
from steerlens.models.tokenizing import Readable, TokenRow, pad_token, right_padded, tokenize
from steerlens.numerics import at_least_float32
from steerlens.shapes import PromptActivations, Resid, TokenIds, TokenMask

Place = tuple[str, int]
"""A site of a layer."""


class Reading(NamedTuple):
    """The activations read, pooled for each prompt."""

    pooled: PromptActivations
    """Mean activation over the tokens read."""
    norms: Float[Tensor, "prompt layer"]
    """Mean norm of these tokens' activations, attention sinks left out."""
    largest: Float[Tensor, "prompt layer"]
    """Largest norm of a token of the prompt, in multiples of the prompt's median norm."""
    largest_at: Int[Tensor, "prompt layer"]
    """The position of that token."""


class Sink(NamedTuple):
    """A token that is of many times the median norm of its text at a layer."""

    layer: int
    position: int
    times: float
    """How many times the median."""


def largest_sinks(reading: Reading, layers: Sequence[int]) -> tuple[Sink, ...]:
    """The token of largest norm at each layer, over all prompts read, where it is a sink.

    >>> one = torch.tensor([[170.4, 3.0]])
    >>> reading = Reading(torch.zeros(1, 2, 1), one, one, torch.zeros(1, 2, dtype=torch.long))
    >>> largest_sinks(reading, (11, 12))
    (Sink(layer=11, position=0, times=170.4),)
    """
    largest, row = reading.largest.max(dim=0)
    at = reading.largest_at.gather(0, row[None])[0]
    found = zip(layers, at.tolist(), largest.tolist(), strict=True)
    return tuple(
        Sink(layer, position, round(times, 1))
        for layer, position, times in found
        if times > TIMES_MEDIAN
    )


def read_residual(
    model: Model,
    prompts: Sequence[Readable],
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens | Sequence[int] = "last",
    sinks: bool = False,
    site: str = "resid_post",
    chat: bool | None = None,
    generation_prompt: bool = True,
    batch_tokens: int | None = None,
    **run: Unpack[RunOptions],
) -> PromptActivations:
    """The activations of each prompt at each layer, averaged over the chosen tokens.

    Args:
        model: The model to read.
        prompts: Texts, chats (lists of `{"role": …, "content": …}`) or token ids.
        layers: Layers to read; −1 is the last, None stands for all.
        tokens: Which tokens are read: "last", "all", "user" (the user's own words, without the
            template), "suffix", "reply" (everything after the user's words, template included), a
            positive int k (the last k), a slice, a function of the string tokens such as
            `answer_letter`, or a list with one index for each prompt.
        sinks: Whether attention sinks are averaged too: the first token of a text, and every token
            whose norm at a layer is more than 10 times the text's median norm there. Where nothing
            else is selected, they are.
        site: Where in each block: "resid_post", or another key of `SITES`.
        chat: Whether texts get the chat template; None if the tokenizer has one. Token ids are
            used as they are.
        generation_prompt: Whether the template's opening of a reply follows.
        batch_tokens: Most tokens in a forward pass, padding included; None chooses by device.
        **run: `batch_size`, `progress` and `engine`.

    Returns:
        Float32 (or wider), on the CPU, in the order of the prompts.

    >>> read_residual(load_model(), ["Hi there.", "How do I bake bread?"], layers=[2, 3]).shape
    torch.Size([2, 2, 192])
    """
    rows = tokenize(model, prompts, chat=chat, generation_prompt=generation_prompt)
    return read_rows(
        model,
        rows,
        layers,
        tokens=tokens,
        sinks=sinks,
        site=site,
        batch_tokens=batch_tokens,
        **run,
    ).pooled


def read_rows(
    model: Model,
    rows: Sequence[TokenRow],
    layers: Sequence[int] | range | None = None,
    *,
    tokens: Tokens | Sequence[int] = "last",
    sinks: bool = False,
    site: str = "resid_post",
    batch_tokens: int | None = None,
    **run: Unpack[RunOptions],
) -> Reading:
    """`read_residual` for token rows, with mean norms; equal rows are run once.

    Args:
        model: The model to read.
        rows: Prompts as `tokenize` returns them.
        layers: Layers to read; −1 is the last, None stands for all.
        tokens: Which tokens are read, or a list with one index for each row.
        site: Where in each block, such as "resid_post".
        batch_tokens: Most tokens in a forward pass, padding included; None chooses by device.
        **run: `batch_size`, `progress` and `engine`.

    >>> read_rows(load_model(), [TokenRow((4, 40, 41))], layers=[2]).norms.shape
    torch.Size([1, 1])
    """
    options = run_settings(**run)
    numbers = resolve_layers(model, layers)
    places = [(site, layer) for layer in numbers]
    for site_of_layer in places:  # unknown ones are refused before any work
        _point(model, *site_of_layer)
    wanted = list(zip(rows, positions_of(model, rows, tokens), strict=True))
    jobs, shared = read_jobs(wanted)
    whole: Reading | None = None
    total = sum(len(row.ids) for row, _ in jobs)
    budget = BatchBudget.of(model, batch_tokens, options.engine, options.batch_size)
    shards = (
        (indices, ([jobs[index] for index in indices], shared[indices[0]]))
        for indices in read_batches(jobs, shared, budget)
    )
    work = partial(_read_batch, places=places, sinks=sinks)
    with progress_bar(total, "tok", options.progress, what="reading") as bar:
        for indices, read in options.engine.run(model, work, shards):
            if whole is None:
                whole = Reading(*(part.new_zeros(len(jobs), *part.shape[1:]) for part in read))
            for of_all, part in zip(whole, read, strict=True):
                of_all[indices] = part
            bar.update(sum(len(jobs[index][0].ids) for index in indices))
    if whole is None:
        raise SteerlensError("got an empty list of prompts; expected at least one prompt")
    index_of = {job: index for index, job in enumerate(jobs)}
    order = [index_of[job] for job in wanted]
    return Reading(*(part[order] for part in whole))


@torch.no_grad()
def _read_batch(
    model: Model, shard: tuple[Sequence[ReadJob], int], *, places: Sequence[Place], sinks: bool
) -> Reading:
    """Read a batch whose rows share their first `n_shared` tokens; in halves if memory runs out."""
    jobs, n_shared = shard

    def read() -> list[Reading]:
        points = [_point(model, *place) for place in places]
        return halving(lambda half: _read_at_once(model, half, n_shared, points, sinks), jobs)

    parts = forward_pass(model, read)
    return Reading(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Point(NamedTuple):
    """The hook point where a place is read."""

    name: str
    layer: int
    """The last block that has to be run."""
    frame: Frame


def _point(model: Model, site: str, layer: int) -> _Point:
    """A block's input is read as the output of the block before, unless a hook changes it."""
    name, frame = hook_name(model, site, layer), site_frame(model, site, layer)
    if site != "resid_pre" or layer == 0 or model.hook_dict[name].fwd_hooks:
        return _Point(name, layer, frame)
    return _Point(hook_name(model, "resid_post", layer - 1), layer - 1, frame)


class _Prefixes(NamedTuple):
    """The distinct beginnings of a batch's rows, run once each."""

    of_row: Int[Tensor, " batch"]
    """Which of them each row begins with."""
    activations: list[Float[Tensor, "prefix pos d_model"]]
    """At each point."""
    cache: Cache
    """The KV cache, with a row for each row of the batch."""


def _read_at_once(
    model: Model, jobs: Sequence[ReadJob], n_shared: int, points: Sequence[_Point], sinks: bool
) -> Reading:
    rest = [row.ids[n_shared:] for row, _ in jobs]
    tokens, real = right_padded(rest, pad_token(model), model.cfg.device)
    real = torch.cat([real.new_ones(len(jobs), n_shared), real], dim=1)
    selected = torch.zeros(real.shape, dtype=torch.bool)
    for row, (_, positions) in zip(selected, jobs, strict=True):
        row[list(positions)] = True
    selected = selected.to(real.device)
    prefixes = _run_prefixes(model, jobs, n_shared, tokens.shape[1], points) if n_shared else None
    layers = []
    cache = None if prefixes is None else prefixes.cache
    for at, activation in enumerate(_activations_at(model, tokens, points, cache)):
        norms = norms_of(activation)
        if prefixes is not None:
            beginning = prefixes.activations[at]
            norms = torch.cat([norms_of(beginning)[prefixes.of_row], norms], dim=1)
        times = times_median(norms, real)
        kept = without_sinks(selected, times, real)
        pooled = selected if sinks else kept
        total = sum_of(activation, pooled[:, n_shared:])
        if prefixes is not None:
            total += _sum_of_prefixes(beginning, prefixes.of_row, pooled[:, :n_shared])
        norm = torch.where(kept, norms, 0).sum(dim=1) / kept.sum(dim=1)
        layers.append((total / pooled.sum(dim=1, keepdim=True), norm, *times.max(dim=1)))
    return Reading(*(torch.stack(parts, dim=1).cpu() for parts in zip(*layers, strict=True)))


def _run_prefixes(
    model: Model, jobs: Sequence[ReadJob], n_shared: int, n_rest: int, points: Sequence[_Point]
) -> _Prefixes:
    """Run each distinct prefix once; the cache can take `n_rest` more tokens per row."""
    prefixes = list(dict.fromkeys(row.ids[:n_shared] for row, _ in jobs))
    index = {prefix: number for number, prefix in enumerate(prefixes)}
    tokens = torch.tensor(prefixes, device=model.cfg.device)
    of_row = torch.tensor([index[row.ids[:n_shared]] for row, _ in jobs], device=tokens.device)
    cache = decoding_cache(model, len(tokens), n_shared + n_rest, is_on(model))
    activations = list(_activations_at(model, tokens, points, cache))
    select_rows(cache, of_row)
    return _Prefixes(of_row, activations, cache)


def _sum_of_prefixes(
    activation: Float[Tensor, "prefix pos d_model"],
    of_row: Int[Tensor, " batch"],
    selected: TokenMask,
) -> Float[Tensor, "batch d_model"]:
    """The sum over each row's selected tokens of its prefix; alike selections are summed once."""
    choices, of_choice = torch.cat([of_row[:, None], selected.long()], dim=1).unique(
        dim=0, return_inverse=True
    )
    return sum_of(activation[choices[:, 0]], choices[:, 1:].bool())[of_choice]


def _activations_at(
    model: Model, tokens: TokenIds, points: Sequence[_Point], cache: Cache | None = None
) -> Iterator[Resid]:
    """The activations at each point, in its site's form; no block after the last is run."""
    names = [point.name for point in points]
    tidy = restore_hooks(model, names)
    try:
        # No mask is needed: causal attention never reaches padding on the right.
        _, activations = model.run_with_cache(
            **unmasked(model, tokens, cache),
            names_filter=names,
            stop_at_layer=max(point.layer for point in points) + 1,
            return_type=None,
            return_cache_object=False,
        )
    except BaseException:
        tidy()  # an interrupt may fall between adding a hook and noting it
        raise
    for point in points:
        yield point.frame.into(activations[point.name])


def require_context(model: Model, n_tokens: int) -> None:
    """Refuse a text that is longer than the model's context.

    >>> require_context(load_model(), 256)
    """
    if n_tokens > model.cfg.n_ctx:
        raise SteerlensError(
            f"the text has {n_tokens} tokens, but {model.cfg.model_name}'s context holds "
            f"{model.cfg.n_ctx}; shorten it"
        )


@torch.no_grad()
def every_token(
    model: Model, ids: Sequence[int], places: Iterable[Place], cache: Cache | None = None
) -> dict[Place, Float[Tensor, "pos d_model"]]:
    """One text's activations at each place, for every token; float32 at least, on the CPU.

    Args:
        model: The model to read.
        ids: The token ids of the text.
        places: Sites and layers, such as `("resid_post", 5)`.
        cache: The KV cache of a text that these tokens continue.
    """
    require_context(model, len(ids))
    wanted = list(dict.fromkeys(places))
    tokens = torch.tensor([list(ids)], device=model.cfg.device)

    def read() -> list[Tensor]:
        points = [_point(model, *place) for place in wanted]
        return [
            at_least_float32(activation[0]).cpu()
            for activation in _activations_at(model, tokens, points, cache)
        ]

    return dict(zip(wanted, forward_pass(model, read), strict=True))
