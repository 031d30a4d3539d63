"""From a contrastive dataset to a steering vector."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from steerlens.activations.reading import Reading, read_rows
from steerlens.activations.selection import Tokens
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError
from steerlens.files import digest
from steerlens.models.engine import LOCAL, Engine
from steerlens.models.fingerprint import LIBRARIES, fingerprint, processing
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides
from steerlens.vectors.estimators import (
    CENTRING,
    Estimator,
    explained_variance,
    pairwise_centred,
    pca_center,
    pca_pairwise,
    require_contrast,
    require_finite,
    sign_votes,
)
from steerlens.vectors.streaming import ContrastMoments, estimate, require_streamable
from steerlens.vectors.vector import SteeringVector


def extract(
    model: Model,
    data: Sides,
    estimator: Estimator = pca_pairwise,
    *,
    tokens: Tokens | Sequence[int] = "last",
    layers: Iterable[int] | None = None,
    site: str = "resid_post",
    name: str | None = None,
    pairs_at_once: int | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
    engine: Engine = LOCAL,
) -> SteeringVector:
    """One direction per layer, from what each pair leaves in the residual stream.

    `data` is a dataset, or two equally long lists (positive, negative) of text, chats or token
    ids. The vector points from negative to positive and remembers the activations' length.
    With `pairs_at_once`, the activations of no more pairs than that are held: their moments merge
    to the same result, for as many pairs as you like, with estimators that need nothing else.
    An `engine` such as `distributed.Ray` reads them elsewhere.

    >>> pair = (["I love you."], ["I hate you."])
    >>> extract(load_model(), pair, mean_difference, layers=[2, 3])
    SteeringVector('pairs', resid_post, layers 2–3, d 192)
    """
    numbers = resolve_layers(model, layers)
    positive, negative = _pairs(model, data)
    read = partial(read_rows, layers=numbers, site=site, batch_tokens=batch_tokens)
    pairs = _Pairs(positive, negative, tokens)
    if pairs_at_once is None:
        here = partial(read, model, progress=progress, engine=engine)
        found = _from_all_pairs(here, pairs, estimator)
    else:
        run = partial(engine.run, model)
        each = partial(_each_part, run, pairs, pairs_at_once, progress)
        found = _from_moments(each, partial(read, progress=False), estimator)
    lost = [layer for layer, d in zip(numbers, found.directions, strict=True) if not d.any()]
    if lost:
        raise SteerlensError(
            f"{_name_of(estimator)} found no direction at layer(s) {lost}: nothing is left of "
            "these pairs once they are centred; give more pairs or use another estimator"
        )
    return SteeringVector(
        found.directions,
        numbers,
        site,
        norms=found.norms,
        explained=found.explained,
        provenance={
            "name": name or (data.name if isinstance(data, ContrastiveDataset) else "pairs"),
            "model": model.cfg.model_name,
            "weights": fingerprint(model),
            "processing": processing(model),
            "tokens": tokens if isinstance(tokens, str | int) else _name_of(tokens),
            "estimator": _name_of(estimator),
            "pairs": len(positive),
            "pairs_hash": _hash_of(chain(positive, negative)),
            "template": _template_hash(model),
            "versions": {library: version(library) for library in LIBRARIES},
        },
    )


class _Pairs(NamedTuple):
    positive: Sequence[TokenRow]
    negative: Sequence[TokenRow]
    tokens: Tokens | Sequence[int]


class _Found(NamedTuple):
    directions: Float[Tensor, "layer d_model"]
    norms: Float[Tensor, " layer"]
    explained: Float[Tensor, " layer"]


def _from_all_pairs(read: Callable[..., Reading], pairs: _Pairs, estimator: Estimator) -> _Found:
    positive, negative, norms = _read_sides(read, pairs)
    require_contrast(positive, negative)
    directions = estimator(positive, negative)
    if directions.shape != positive.shape[1:]:
        raise SteerlensError(
            f"the estimator {_name_of(estimator)} returned shape {tuple(directions.shape)}; "
            f"needed is [layer, d_model] = {tuple(positive.shape[1:])}"
        )
    centred = CENTRING.get(estimator, pairwise_centred)(positive, negative)
    return _Found(directions, norms, explained_variance(centred, directions).float())


def _from_moments(
    each: Callable[..., Iterator[Any]], read: Callable[..., Reading], estimator: Estimator
) -> _Found:
    require_streamable(estimator)
    moments, norms = None, torch.zeros(())
    for its, part_norms in each(partial(_moments_of, read, common=estimator is pca_center)):
        moments = its if moments is None else moments + its
        norms = norms + part_norms * its.apart.n
    assert moments is not None  # an empty dataset has been refused
    found = estimate(estimator, moments)
    directions = found.directions
    if not found.certain:  # read again, to let the pairs vote on the sign
        votes = sum(each(partial(_votes_of, read, directions=directions)))
        directions = directions * torch.where(votes < 0, -1, 1)[:, None]
    return _Found(directions, norms / moments.apart.n, found.explained)


def _moments_of(
    read: Callable[..., Reading], model: Model, part: _Pairs, *, common: bool
) -> tuple[ContrastMoments, Float[Tensor, " layer"]]:
    positive, negative, norms = _read_sides(partial(read, model), part)
    require_finite(positive, negative)
    return ContrastMoments.of(positive, negative, common=common), norms


def _votes_of(
    read: Callable[..., Reading],
    model: Model,
    part: _Pairs,
    *,
    directions: Float[Tensor, "layer d_model"],
) -> Float[Tensor, " layer"]:
    positive, negative, _ = _read_sides(partial(read, model), part)
    return sign_votes(directions, positive, negative)


def _each_part(
    run: Callable[..., Iterator[Any]],
    pairs: _Pairs,
    size: int,
    progress: bool,
    work: Callable[..., Any],
) -> Iterator[Any]:
    """What `work` makes of each part of the pairs."""
    if size < 1:
        raise SteerlensError(f"pairs_at_once={size} came; needed is at least 1")
    parts = ((len(part.positive), part) for part in _parts(pairs, size))
    hidden = None if progress else True
    with tqdm(total=len(pairs.positive), unit="pair", desc="reading", disable=hidden) as bar:
        for n_pairs, found in run(work, parts):
            yield found
            bar.update(n_pairs)


def _parts(pairs: _Pairs, size: int) -> Iterator[_Pairs]:
    n = len(pairs.positive)
    for start in range(0, n, size):
        part = slice(start, start + size)
        tokens = pairs.tokens
        if isinstance(tokens, Sequence) and not isinstance(tokens, str):  # an index for each row
            tokens = [*tokens[:n][part], *tokens[n:][part]]
        yield _Pairs(pairs.positive[part], pairs.negative[part], tokens)


def _read_sides(
    read: Callable[..., Reading], pairs: _Pairs
) -> tuple[
    Float[Tensor, "pair layer d_model"],
    Float[Tensor, "pair layer d_model"],
    Float[Tensor, " layer"],
]:
    """Both sides, and the mean norms."""
    reading = read(rows=[*pairs.positive, *pairs.negative], tokens=pairs.tokens)
    n = len(pairs.positive)
    return reading.pooled[:n], reading.pooled[n:], reading.norms.mean(dim=0)


def _pairs(model: Model, data: Sides) -> tuple[list[TokenRow], list[TokenRow]]:
    positive, negative = tokenize_sides(model, data)
    if len(positive) != len(negative):
        raise SteerlensError(
            f"{len(positive)} positive but {len(negative)} negative prompts came; "
            "an extraction needs pairs"
        )
    return positive, negative


def _name_of(value: object) -> str:
    if isinstance(value, partial):
        settings = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"{_name_of(value.func)}({', '.join(settings)})"
    return getattr(value, "__qualname__", repr(value))


def _hash_of(rows: Iterable[TokenRow]) -> str:
    return digest("".join(map(json.dumps, rows)).encode())


def _template_hash(model: Model) -> str | None:
    template = getattr(model.tokenizer, "chat_template", None)
    return None if template is None else digest(str(template).encode())
