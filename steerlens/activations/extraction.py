"""From a contrastive dataset to a steering vector."""

import json
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from steerlens.activations.pairs import PairReader, Pairs
from steerlens.activations.reading import Sink
from steerlens.activations.selection import Tokens
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.data.lint import LintWarning
from steerlens.data.prompts import Passage
from steerlens.errors import SteerlensError, short_repr
from steerlens.files import digest
from steerlens.models.engine import RunOptions, run_settings
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides
from steerlens.shapes import Directions, PerLayer, Side
from steerlens.vectors.estimators import (
    CENTRING,
    ESTIMATORS,
    Estimator,
    explained_variance,
    linear_discriminant,
    pairwise_centred,
    pca_center,
    pca_pairwise,
    require_contrast,
)
from steerlens.vectors.streaming import estimate, require_streamable
from steerlens.vectors.vector import SteeringVector


def extract(
    model: Model,
    data: Sides,
    estimator: Estimator | None = None,
    *,
    tokens: Tokens | Sequence[int] = "last",
    sinks: bool = False,
    layers: Iterable[int] | None = None,
    site: str = "resid_post",
    name: str | None = None,
    pairs_at_once: int | None = None,
    batch_tokens: int | None = None,
    **run: Unpack[RunOptions],
) -> SteeringVector:
    """Extract a steering vector: one direction per layer, pointing from negative to positive.

    Args:
        model: The model whose activations are read.
        data: A dataset, or two equally long lists (positive, negative) of texts, chats or token
            ids.
        estimator: Computes the directions: one of `estimators`, or your own function of two
            [pair, layer, d_model] tensors that returns [layer, d_model]. None: for pairs of
            different prompts `linear_discriminant`, which tells prompts apart best; for pairs of
            one prompt under two suffixes or system messages `pca_pairwise`, to steer with.
        tokens: Which tokens of each prompt are read and averaged: "last", "all", "suffix",
            "user" (the user's own words), "reply" (everything after them, template included), a
            positive int k (the last k), a slice, a function of the string tokens such as
            `answer_letter`, or a list with one index for each prompt.
        sinks: Whether attention sinks are averaged too, as in `read_residual`. The provenance
            notes this, and the largest sink of each layer.
        layers: Layers to read; −1 is the last, None stands for all.
        site: Where in each block: "resid_post" (the default), or another key of `SITES`.
        name: The vector's name; None for the dataset's.
        pairs_at_once: Hold the activations of at most this many pairs and merge their moments,
            which gives the same result for any number of pairs. Only for estimators that moments
            determine: `mean_difference` and the PCA family.
        batch_tokens: Most tokens in a forward pass, padding included; None chooses by device.
        **run: `batch_size`, `progress` and `engine`, such as `Ray` to read on other machines.

    Raises:
        SteerlensError: If the sides differ in number, or are identical at a layer.

    >>> pair = (["I love you."], ["I hate you."])
    >>> extract(load_model(), pair, estimators.mean_difference, layers=[2, 3])
    SteeringVector('pairs', resid_post, layers 2–3, d 192)
    """
    numbers = resolve_layers(model, layers)
    pairs = _pairs(model, data)
    _warn_of_findings(data)
    if estimator is not None and not callable(estimator):
        raise SteerlensError(
            f"got estimator={short_repr(estimator)}; expected a function (positive, negative) -> "
            "directions, such as estimators.mean_difference"
        )
    if estimator is None:
        estimator = linear_discriminant if _prompts_differ(data) else pca_pairwise
    reader = PairReader(model, numbers, site, tokens, batch_tokens, run_settings(**run), sinks)
    if pairs_at_once is None:
        result = _from_all_pairs(reader, pairs, estimator)
    else:
        result = _from_moments(reader, pairs, estimator, pairs_at_once)
    missing = [layer for layer, d in zip(numbers, result.directions, strict=True) if not d.any()]
    if missing:
        raise SteerlensError(
            f"{_name_of(estimator)} found no direction at layer(s) {missing}: the centred "
            "pairs are all zero; give more pairs or use another estimator"
        )
    return SteeringVector(
        result.directions,
        numbers,
        site,
        norms=result.norms,
        explained=result.explained,
        provenance={
            "name": name or (data.name if isinstance(data, ContrastiveDataset) else "pairs"),
            **_provenance(model, pairs, estimator, tokens),
            "sinks": sinks,
            "sinks_seen": [list(sink) for sink in result.sinks],
        },
    )


def _warn_of_findings(data: Sides) -> None:
    """Python shows equal warnings once."""
    found = data.lint() if isinstance(data, ContrastiveDataset) else []
    if found:
        assert isinstance(data, ContrastiveDataset)
        warnings.warn(
            f"the dataset {data.name!r} may mislead: {'; '.join(map(str, found))}. Even out the "
            "sides, or see in search_conditions(...).verdict what is left of a condition",
            LintWarning,
            stacklevel=3,
        )


def _prompts_differ(data: Sides) -> bool:
    if isinstance(data, ContrastiveDataset):
        return any(positive != negative for positive, negative in data.pairs)
    prompts = [[one.prompt if isinstance(one, Passage) else one for one in side] for side in data]
    return repr(prompts[0]) != repr(prompts[1])


class _Extracted(NamedTuple):
    directions: Directions
    norms: PerLayer
    explained: PerLayer
    sinks: Sequence[Sink] = ()


def apply_estimator(estimator: Estimator, positive: Side, negative: Side) -> Directions:
    """Run an estimator, which may be the user's own, and check what it returns.

    Args:
        estimator: Gets copies of both sides, so that it may work in place; may return NumPy.
        positive: Activations of the positive side, [pair, layer, d_model].
        negative: Activations of the negative side, in the same order of pairs.

    Raises:
        SteerlensError: If it returns anything but finite real directions, [layer, d_model].
    """
    known = estimator in ESTIMATORS.values()
    sides = (positive, negative) if known else (positive.clone(), negative.clone())
    directions: Any = estimator(*sides)
    if isinstance(directions, np.ndarray) and directions.dtype.kind in "fiu":
        directions = torch.from_numpy(directions)
    name, shape = _name_of(estimator), tuple(positive.shape[1:])
    if (
        not isinstance(directions, Tensor)
        or tuple(directions.shape) != shape
        or directions.is_complex()
    ):
        returned = f"a {type(directions).__name__}"
        if isinstance(directions, Tensor):
            dtype = str(directions.dtype).removeprefix("torch.")
            returned = f"shape {tuple(directions.shape)} of {dtype}"
        raise SteerlensError(
            f"the estimator {name} returned {returned}; expected [layer, d_model] = {shape}: "
            "return a tensor of real numbers, one direction for each layer"
        )
    if not directions.isfinite().all():
        raise SteerlensError(
            f"the estimator {name} returned NaN or infinite values; expected finite directions: "
            "look for a division by zero, or leave out the pairs that cause it"
        )
    return (directions if directions.is_floating_point() else directions.float()).detach().cpu()


def _from_all_pairs(reader: PairReader, pairs: Pairs, estimator: Estimator) -> _Extracted:
    positive, negative, norms, sinks = reader.sides(pairs)
    require_contrast(positive, negative)
    directions = apply_estimator(estimator, positive, negative)
    centred = CENTRING.get(estimator, pairwise_centred)(positive, negative)
    return _Extracted(directions, norms, explained_variance(centred, directions).float(), sinks)


def _from_moments(
    reader: PairReader, pairs: Pairs, estimator: Estimator, at_once: int
) -> _Extracted:
    require_streamable(estimator)
    moments, norms = reader.moments(pairs, at_once, with_sum=estimator is pca_center)
    estimated = estimate(estimator, moments)
    directions = estimated.directions
    if not estimated.sign_is_certain:  # read again, to let the pairs vote on the sign
        votes = reader.votes(pairs, at_once, directions)
        directions = directions * torch.where(votes < 0, -1, 1)[:, None]
    return _Extracted(directions, norms, estimated.explained)


def _pairs(model: Model, data: Sides) -> Pairs:
    positive, negative = tokenize_sides(model, data)
    if len(positive) != len(negative):
        raise SteerlensError(
            f"got {len(positive)} positive but {len(negative)} negative prompts; expected pairs: "
            "give each positive prompt its negative"
        )
    return positive, negative


def _provenance(
    model: Model, pairs: Pairs, estimator: Estimator, tokens: Tokens | Sequence[int]
) -> dict[str, Any]:
    """The model, data, settings and library versions that a vector was made with."""
    return {
        **model_provenance(model),
        "tokens": tokens if isinstance(tokens, str | int) else _name_of(tokens),
        "estimator": _name_of(estimator),
        "pairs": len(pairs[0]),
        "pairs_hash": _hash_of(chain(*pairs)),
    }


def _name_of(value: object) -> str:
    if isinstance(value, partial):
        settings = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"{_name_of(value.func)}({', '.join(settings)})"
    return getattr(value, "__qualname__", repr(value))


def _hash_of(rows: Iterable[TokenRow]) -> str:
    return digest("".join(map(json.dumps, rows)).encode())
