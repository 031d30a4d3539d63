"""From a contrastive dataset to a steering vector."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.pairs import PairReader, Pairs
from steerlens.activations.selection import Tokens
from steerlens.data.contrastive import ContrastiveDataset
from steerlens.errors import SteerlensError
from steerlens.files import digest
from steerlens.models.engine import RunOptions, run_settings
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.models.sites import resolve_layers
from steerlens.models.tokenizing import Sides, TokenRow, tokenize_sides
from steerlens.vectors.estimators import (
    CENTRING,
    ESTIMATORS,
    Estimator,
    explained_variance,
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
    estimator: Estimator = pca_pairwise,
    *,
    tokens: Tokens | Sequence[int] = "last",
    layers: Iterable[int] | None = None,
    site: str = "resid_post",
    name: str | None = None,
    pairs_at_once: int | None = None,
    batch_tokens: int | None = None,
    **run: Unpack[RunOptions],
) -> SteeringVector:
    """One direction per layer, from what each pair leaves in the residual stream.

    `data` is a dataset, or two equally long lists (positive, negative) of text, chats or token
    ids. The vector points from negative to positive and remembers the activations' length.
    With `pairs_at_once`, the activations of no more pairs than that are held: their moments merge
    to the same result, for as many pairs as you like, with estimators that need nothing else.
    An `engine` such as `distributed.Ray` reads them elsewhere.

    >>> pair = (["I love you."], ["I hate you."])
    >>> extract(load_model(), pair, estimators.mean_difference, layers=[2, 3])
    SteeringVector('pairs', resid_post, layers 2–3, d 192)
    """
    numbers = resolve_layers(model, layers)
    pairs = _pairs(model, data)
    reader = PairReader(model, numbers, site, tokens, batch_tokens, run_settings(**run))
    if pairs_at_once is None:
        found = _from_all_pairs(reader, pairs, estimator)
    else:
        found = _from_moments(reader, pairs, estimator, pairs_at_once)
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
            **_provenance(model, pairs, estimator, tokens),
        },
    )


class _Found(NamedTuple):
    directions: Float[Tensor, "layer d_model"]
    norms: Float[Tensor, " layer"]
    explained: Float[Tensor, " layer"]


def apply_estimator(
    estimator: Estimator,
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Directions from an estimator that may be anybody's: checked, its inputs out of its reach.

    NumPy arrays are taken for tensors; all else that is not [layer, d_model] is refused.
    """
    known = estimator in ESTIMATORS.values()
    sides = (positive, negative) if known else (positive.clone(), negative.clone())
    found: Any = estimator(*sides)
    if isinstance(found, np.ndarray) and found.dtype.kind in "fiu":
        found = torch.from_numpy(found)
    name, shape = _name_of(estimator), tuple(positive.shape[1:])
    if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.is_complex():
        came = f"a {type(found).__name__}"
        if isinstance(found, Tensor):
            came = f"shape {tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
        raise SteerlensError(
            f"the estimator {name} returned {came}; expected [layer, d_model] = {shape}: return a "
            "tensor of real numbers, one direction for each layer"
        )
    if not found.isfinite().all():
        raise SteerlensError(
            f"the estimator {name} returned NaN or infinite values; expected finite directions: "
            "look for a division by zero, or leave the pairs out that cause it"
        )
    return (found if found.is_floating_point() else found.float()).detach().cpu()


def _from_all_pairs(reader: PairReader, pairs: Pairs, estimator: Estimator) -> _Found:
    positive, negative, norms = reader.sides(pairs)
    require_contrast(positive, negative)
    directions = apply_estimator(estimator, positive, negative)
    centred = CENTRING.get(estimator, pairwise_centred)(positive, negative)
    return _Found(directions, norms, explained_variance(centred, directions).float())


def _from_moments(reader: PairReader, pairs: Pairs, estimator: Estimator, at_once: int) -> _Found:
    require_streamable(estimator)
    moments, norms = reader.moments(pairs, at_once, common=estimator is pca_center)
    found = estimate(estimator, moments)
    directions = found.directions
    if not found.certain:  # read again, to let the pairs vote on the sign
        votes = reader.votes(pairs, at_once, directions)
        directions = directions * torch.where(votes < 0, -1, 1)[:, None]
    return _Found(directions, norms, found.explained)


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
    """Of what, how and with which libraries a vector was made."""
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
