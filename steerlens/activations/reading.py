"""Token rows → pooled activations, read by `run_with_cache`."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.activations.batching import BatchBudget, ReadJob, read_batches, read_jobs
from steerlens.activations.pooling import Readers
from steerlens.activations.selection import Tokens, positions_of
from steerlens.errors import SteerlensError
from steerlens.models.engine import RunOptions, halving, run_settings
from steerlens.models.fast_forward import decoding_cache, forward_pass, is_on, select_rows
from steerlens.models.hooking import as_they_are
from steerlens.models.host import Cache, Model, unmasked
from steerlens.models.progress import progress_bar
from steerlens.models.sites import Frame, hook_name, resolve_layers, site_frame
from steerlens.models.tokenizing import Readable, TokenRow, pad_token, right_padded, tokenize
from steerlens.numerics import at_least_float32

Place = tuple[str, int]
"""A site of a layer."""


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
    **run: Unpack[RunOptions],
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
    """`read_residual` for prompts that are tokens already; equal rows are run once."""
    options = run_settings(**run)
    numbers = resolve_layers(model, layers)
    places = [(site, layer) for layer in numbers]
    for site_of_layer in places:  # refuses before any work
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
        raise SteerlensError("there is nothing to read: the list of prompts is empty")
    index_of = {job: index for index, job in enumerate(jobs)}
    place = [index_of[job] for job in wanted]
    return Reading(pooled[place], norms[place])


@torch.no_grad()
def _read_batch(
    model: Model, shard: tuple[Sequence[ReadJob], int], *, places: Sequence[Place]
) -> Reading:
    """A batch whose rows share so many first tokens; in halves, where memory does not hold it."""
    jobs, n_shared = shard

    def read() -> list[Reading]:
        points = [_point(model, *place) for place in places]
        return halving(lambda some: _read_at_once(model, some, n_shared, points), jobs)

    parts = forward_pass(model, read)
    return Reading(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Point(NamedTuple):
    """Where a place is seen."""

    name: str
    layer: int
    """The block that has to be run for it."""
    frame: Frame


def _point(model: Model, site: str, layer: int) -> _Point:
    """A block's input is the output of the one before, unless someone's hook changes it."""
    name, frame = hook_name(model, site, layer), site_frame(model, site, layer)
    if site != "resid_pre" or layer == 0 or model.hook_dict[name].fwd_hooks:
        return _Point(name, layer, frame)
    return _Point(hook_name(model, "resid_post", layer - 1), layer - 1, frame)


class _Sums(NamedTuple):
    """Sums over the tokens that each reader reads."""

    stream: Float[Tensor, "reader layer d_model"]
    lengths: Float[Tensor, "reader layer"]
    """Of norms, position 0 excluded."""
    sink: Float[Tensor, "reader layer"]
    """The norm at position 0, an attention sink, if it is read."""


def _read_at_once(
    model: Model, jobs: Sequence[ReadJob], n_shared: int, points: Sequence[_Point]
) -> Reading:
    rest = [row.ids[n_shared:] for row, _ in jobs]
    tokens, _ = right_padded(rest, pad_token(model), model.cfg.device)
    own = [[at for at in positions if at >= n_shared] for _, positions in jobs]
    if n_shared:
        before, of_prefixes = _after_prefixes(model, jobs, n_shared, tokens.shape[1], points)
        of_rest = _summed(model, tokens, list(enumerate(own)), points, before, n_shared)
        sums = _Sums(*map(torch.add, of_prefixes, of_rest))
    else:
        sums = _summed(model, tokens, list(enumerate(own)), points)
    n = torch.tensor([len(positions) for _, positions in jobs], device=tokens.device)[:, None]
    n_long = n - torch.tensor([0 in positions for _, positions in jobs]).to(n)[:, None]
    norms = torch.where(n_long > 0, sums.lengths / n_long.clamp_min(1), sums.sink)
    return Reading((sums.stream / n[:, :, None]).cpu(), norms.cpu())


def _after_prefixes(
    model: Model, jobs: Sequence[ReadJob], n_shared: int, room: int, points: Sequence[_Point]
) -> tuple[Cache, _Sums]:
    """Run the distinct prefixes; every job gets the keys, values and sums of its own."""
    prefixes = {row.ids[:n_shared]: None for row, _ in jobs}
    index = {prefix: place for place, prefix in enumerate(prefixes)}
    owner = [index[row.ids[:n_shared]] for row, _ in jobs]
    read = [tuple(at for at in positions if at < n_shared) for _, positions in jobs]
    wanted = list(zip(owner, read, strict=True))
    reader_of = {reader: number for number, reader in enumerate(dict.fromkeys(wanted))}
    tokens = torch.tensor(list(prefixes), device=model.cfg.device)
    cache = decoding_cache(model, len(tokens), n_shared + room, is_on(model))
    sums = _summed(model, tokens, list(reader_of), points, cache)
    select_rows(cache, torch.tensor(owner, device=tokens.device))
    return cache, _Sums(*(of[[reader_of[reader] for reader in wanted]] for of in sums))


def _summed(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    readers: Sequence[tuple[int, Sequence[int]]],
    points: Sequence[_Point],
    cache: Cache | None = None,
    first: int = 0,
) -> _Sums:
    """Run rows, from position `first` on, and add up what each reader reads of its row."""
    reads = Readers.of(readers, tokens.device)
    off_sink = reads.position > 0
    summed = []
    for activation in _shown(model, tokens, points, cache):
        read = reads.pick(activation, first)
        lengths = read.norm(dim=1).float()
        parts = (read, lengths * off_sink, lengths * ~off_sink)
        summed.append(tuple(map(reads.add_up, parts)))
    return _Sums(*(torch.stack(layers, dim=1) for layers in zip(*summed, strict=True)))


def _shown(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    points: Sequence[_Point],
    cache: Cache | None = None,
) -> Iterator[Float[Tensor, "row pos d_model"]]:
    """The activations at each point, in its site's form; what comes after the last is not run."""
    names = [point.name for point in points]
    tidy = as_they_are(model, names)
    try:
        # No mask is needed: causal attention never looks at what pads the right.
        _, shown = model.run_with_cache(
            **unmasked(model, tokens, cache),
            names_filter=names,
            stop_at_layer=max(point.layer for point in points) + 1,
            return_type=None,
            return_cache_object=False,
        )
    except BaseException:
        tidy()  # the host may have been stopped between a hook and its note of it
        raise
    for point in points:
        yield point.frame.into(shown[point.name])


@torch.no_grad()
def every_token(
    model: Model, ids: Sequence[int], places: Iterable[Place]
) -> dict[Place, Float[Tensor, "pos d_model"]]:
    """One text's activations at each place, not pooled; float32 at least, on the CPU."""
    if len(ids) > model.cfg.n_ctx:
        raise SteerlensError(
            f"the text has {len(ids)} tokens, but {model.cfg.model_name}'s context holds "
            f"{model.cfg.n_ctx}; shorten it"
        )
    wanted = list(dict.fromkeys(places))
    tokens = torch.tensor([list(ids)], device=model.cfg.device)

    def read() -> list[Tensor]:
        points = [_point(model, *place) for place in wanted]
        return [at_least_float32(one[0]).cpu() for one in _shown(model, tokens, points)]

    return dict(zip(wanted, forward_pass(model, read), strict=True))
