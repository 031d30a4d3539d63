"""Token rows → pooled activations, read by `run_with_cache`."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.batching import BatchBudget, ReadJob, read_batches, read_jobs
from steerlens.activations.pooling import Readers
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
from steerlens.shapes import PromptActivations, Resid, TokenIds

Place = tuple[str, int]
"""A site of a layer."""


class Reading(NamedTuple):
    """The activations read, pooled for each prompt."""

    pooled: PromptActivations
    """Mean activation over the tokens read."""
    norms: Float[Tensor, "prompt layer"]
    """Mean norm of these tokens' activations; position 0, an attention sink, is left out."""


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
    **run: Unpack[RunOptions],
) -> PromptActivations:
    """The activations of each prompt at each layer, averaged over the chosen tokens.

    Args:
        model: The model to read.
        prompts: Texts, chats (lists of `{"role": …, "content": …}`) or token ids.
        layers: Layers to read; −1 is the last, None stands for all.
        tokens: Which tokens are read: "last", "all", "suffix", "reply" (everything after the
            user's words, template included), a positive int k (the last k), a slice, a function of
            the string tokens such as `answer_letter`, or a list with one index for each prompt.
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
    pooled: Tensor | None = None
    norms = torch.zeros(len(jobs), len(numbers))
    total = sum(len(row.ids) for row, _ in jobs)
    budget = BatchBudget.of(model, batch_tokens, options.engine, options.batch_size)
    shards = (
        (indices, ([jobs[index] for index in indices], shared[indices[0]]))
        for indices in read_batches(jobs, shared, budget)
    )
    work = partial(_read_batch, places=places)
    with progress_bar(total, "tok", options.progress, what="reading") as bar:
        for indices, read in options.engine.run(model, work, shards):
            if pooled is None:
                pooled = read.pooled.new_zeros(len(jobs), *read.pooled.shape[1:])
            pooled[indices], norms[indices] = read.pooled, read.norms
            bar.update(sum(len(jobs[index][0].ids) for index in indices))
    if pooled is None:
        raise SteerlensError("got an empty list of prompts; expected at least one prompt")
    index_of = {job: index for index, job in enumerate(jobs)}
    order = [index_of[job] for job in wanted]
    return Reading(pooled[order], norms[order])


@torch.no_grad()
def _read_batch(
    model: Model, shard: tuple[Sequence[ReadJob], int], *, places: Sequence[Place]
) -> Reading:
    """Read a batch whose rows share their first `n_shared` tokens; in halves if memory runs out."""
    jobs, n_shared = shard

    def read() -> list[Reading]:
        points = [_point(model, *place) for place in places]
        return halving(lambda half: _read_at_once(model, half, n_shared, points), jobs)

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


class _Sums(NamedTuple):
    """Per-job sums over the selected positions."""

    activations: Float[Tensor, "reader layer d_model"]
    norms: Float[Tensor, "reader layer"]
    """Sum of norms, position 0 excluded."""
    sink: Float[Tensor, "reader layer"]
    """Norm at position 0, an attention sink; 0 if it is not read."""


def _read_at_once(
    model: Model, jobs: Sequence[ReadJob], n_shared: int, points: Sequence[_Point]
) -> Reading:
    rest = [row.ids[n_shared:] for row, _ in jobs]
    tokens, _ = right_padded(rest, pad_token(model), model.cfg.device)
    readers = [
        (row, [position for position in positions if position >= n_shared])
        for row, (_, positions) in enumerate(jobs)
    ]
    if n_shared:
        cache, prefix_sums = _run_prefixes(model, jobs, n_shared, tokens.shape[1], points)
        rest_sums = _sum_selected(model, tokens, readers, points, cache, n_shared)
        sums = _Sums(*map(torch.add, prefix_sums, rest_sums))
    else:
        sums = _sum_selected(model, tokens, readers, points)
    n = torch.tensor([len(positions) for _, positions in jobs], device=tokens.device)[:, None]
    n_off_sink = n - torch.tensor([0 in positions for _, positions in jobs]).to(n)[:, None]
    norms = torch.where(n_off_sink > 0, sums.norms / n_off_sink.clamp_min(1), sums.sink)
    return Reading((sums.activations / n[:, :, None]).cpu(), norms.cpu())


def _run_prefixes(
    model: Model, jobs: Sequence[ReadJob], n_shared: int, n_rest: int, points: Sequence[_Point]
) -> tuple[Cache, _Sums]:
    """Run each distinct prefix once; the KV cache and sums returned have a row for each job.

    The cache can take `n_rest` more tokens per row.
    """
    prefixes = list(dict.fromkeys(row.ids[:n_shared] for row, _ in jobs))
    index = {prefix: number for number, prefix in enumerate(prefixes)}
    prefix_of_job = [index[row.ids[:n_shared]] for row, _ in jobs]
    selected = [
        tuple(position for position in positions if position < n_shared) for _, positions in jobs
    ]
    wanted = list(zip(prefix_of_job, selected, strict=True))
    reader_of = {reader: number for number, reader in enumerate(dict.fromkeys(wanted))}
    tokens = torch.tensor(prefixes, device=model.cfg.device)
    cache = decoding_cache(model, len(tokens), n_shared + n_rest, is_on(model))
    sums = _sum_selected(model, tokens, list(reader_of), points, cache)
    select_rows(cache, torch.tensor(prefix_of_job, device=tokens.device))
    return cache, _Sums(*(part[[reader_of[reader] for reader in wanted]] for part in sums))


def _sum_selected(
    model: Model,
    tokens: TokenIds,
    readers: Sequence[tuple[int, Sequence[int]]],
    points: Sequence[_Point],
    cache: Cache | None = None,
    first: int = 0,
) -> _Sums:
    """Run rows, whose first token is at position `first`, and sum over each reader's positions."""
    pooling = Readers.of(readers, tokens.device)
    off_sink = pooling.position > 0
    layer_sums = []
    for activation in _activations_at(model, tokens, points, cache):
        picked = pooling.pick(activation, first)
        norms = picked.norm(dim=1).float()
        parts = (picked, norms * off_sink, norms * ~off_sink)
        layer_sums.append(tuple(map(pooling.add_up, parts)))
    return _Sums(*(torch.stack(layers, dim=1) for layers in zip(*layer_sums, strict=True)))


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


@torch.no_grad()
def every_token(
    model: Model, ids: Sequence[int], places: Iterable[Place]
) -> dict[Place, Float[Tensor, "pos d_model"]]:
    """One text's activations at each place, for every token; float32 at least, on the CPU.

    Args:
        model: The model to read.
        ids: The token ids of the text.
        places: Sites and layers, such as `("resid_post", 5)`.
    """
    if len(ids) > model.cfg.n_ctx:
        raise SteerlensError(
            f"the text has {len(ids)} tokens, but {model.cfg.model_name}'s context holds "
            f"{model.cfg.n_ctx}; shorten it"
        )
    wanted = list(dict.fromkeys(places))
    tokens = torch.tensor([list(ids)], device=model.cfg.device)

    def read() -> list[Tensor]:
        points = [_point(model, *place) for place in wanted]
        return [
            at_least_float32(activation[0]).cpu()
            for activation in _activations_at(model, tokens, points)
        ]

    return dict(zip(wanted, forward_pass(model, read), strict=True))
