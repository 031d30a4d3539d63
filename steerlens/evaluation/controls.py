"""What a steering is compared with: vectors of the same lengths that should do nothing."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.activations.extraction import apply_estimator
from steerlens.activations.pairs import read_contrast
from steerlens.activations.selection import Tokens, require_tokens
from steerlens.errors import SteerlensError
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Sides, tokenize_sides
from steerlens.vectors.estimators import ESTIMATORS, Estimator, mean_difference
from steerlens.vectors.vector import SteeringVector

SAME_DIRECTION = 0.99
"""Cosine from which two directions are one, up to what rounding and batching change."""


def random_directions(
    vector: SteeringVector, count: int = 3, *, seed: int = 0
) -> tuple[SteeringVector, ...]:
    """Vectors in directions drawn evenly from all, as long as `vector` at each layer.

    >>> [control] = random_directions(vector, 1)
    >>> control.directions.norm(dim=1) / vector.directions.norm(dim=1)
    tensor([1., 1.])
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(vector.directions.shape, generator=generator) for _ in range(count)]
    return tuple(
        _control(vector, directions, f"random {i}") for i, directions in enumerate(drawn, start=1)
    )


def shuffled_labels(
    model: Model,
    vector: SteeringVector,
    data: Sides,
    count: int = 3,
    *,
    estimator: Estimator | None = None,
    tokens: Tokens | None = None,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> tuple[SteeringVector, ...]:
    """Vectors from the pairs that `vector` came from, with positive and negative swapped in half.

    Which half is drawn at random; what all pairs share cancels, and what is left is what these
    texts hold apart from the labels. As long as `vector` at each layer. `estimator` and `tokens`
    are those that the vector notes, unless given. An estimator that does not see which side is
    which (all PCA of differences) finds the same direction again; then mean differences are taken.
    Raises if `data` does not give the vector back, for then it would be a control of another one.
    """
    estimator = estimator or _noted_estimator(vector)
    tokens = _noted_tokens(vector) if tokens is None else tokens
    positive, negative = tokenize_sides(model, data)
    if len(positive) != len(negative) or len(positive) < 2:
        raise SteerlensError(
            f"got {len(positive)} positive and {len(negative)} negative prompts; expected at least "
            "two pairs, whose labels can be shuffled"
        )
    sides = read_contrast(
        model,
        (positive, negative),
        vector.layers,
        tokens=tokens,
        site=vector.site,
        **run,
    )
    again = _control(vector, apply_estimator(estimator, *sides), "again").cosine(vector)
    if again.min() < SAME_DIRECTION:
        raise SteerlensError(
            f"these {len(positive)} pairs give another direction than {vector} (cosine "
            f"{again.min():.3f}); pass the pairs, estimator= and tokens= that it was extracted "
            "with, or take random_directions() only"
        )
    flips = _flips(len(positive), count, seed)
    found = [apply_estimator(estimator, *_flipped(sides, flip)) for flip in flips]
    alike = [_control(vector, one, "shuffled").cosine(vector).abs() for one in found]
    if alike and (torch.stack(alike) > SAME_DIRECTION).all():
        found = [mean_difference(*_flipped(sides, flip)) for flip in flips]
    return tuple(
        _control(vector, directions, f"shuffled {i}") for i, directions in enumerate(found, start=1)
    )


def _noted_estimator(vector: SteeringVector) -> Estimator:
    noted = vector.provenance.get("estimator")
    known = {estimator.__qualname__: estimator for estimator in ESTIMATORS.values()}
    if noted not in known:
        raise SteerlensError(
            f"{vector} notes the estimator {noted!r}, which is none of {', '.join(known)}; pass "
            "the function as estimator="
        )
    return known[noted]


def _noted_tokens(vector: SteeringVector) -> Tokens:
    """The tokens that the vector was read at; slices are noted as text, functions by their name."""
    noted = vector.provenance.get("tokens", "last")
    bounds = re.fullmatch(r"slice\((\S+), (\S+), (\S+)\)", str(noted))
    try:
        if bounds:
            return slice(*(None if bound == "None" else int(bound) for bound in bounds.groups()))
        require_tokens(noted)
    except (SteerlensError, ValueError):
        raise SteerlensError(
            f"{vector} notes the tokens {noted!r}, which are no name, number or slice; pass what "
            "it was extracted with as tokens="
        ) from None
    return noted


def _flips(n_pairs: int, count: int, seed: int) -> list[Bool[Tensor, " pair"]]:
    """Exactly half of the pairs each time: a majority would leave some of the vector."""
    random = np.random.default_rng(seed)
    half = np.arange(n_pairs) < n_pairs // 2
    return [torch.from_numpy(random.permutation(half)) for _ in range(count)]


def _flipped(
    sides: Sequence[Float[Tensor, "pair layer d_model"]], flip: Bool[Tensor, " pair"]
) -> tuple[Float[Tensor, "pair layer d_model"], Float[Tensor, "pair layer d_model"]]:
    positive, negative = sides
    swap = flip[:, None, None]
    return torch.where(swap, negative, positive), torch.where(swap, positive, negative)


def _control(
    vector: SteeringVector, directions: Float[Tensor, "layer d_model"], what: str
) -> SteeringVector:
    """The directions at the vector's lengths, with its norms and place."""
    lengths = vector.directions.norm(dim=1, keepdim=True)
    plain = replace(vector, directions=directions, explained=None)
    noted = {
        key: vector.provenance[key] for key in ("model", "weights") if key in vector.provenance
    }
    return replace(
        plain,
        directions=plain.normalized().directions * lengths,
        provenance={"name": what, **noted},
    )
