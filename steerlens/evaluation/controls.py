"""Control vectors: as long as the steering vector, without its concept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, Unpack

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from steerlens.activations.extraction import apply_estimator
from steerlens.activations.pairs import read_contrast
from steerlens.activations.selection import Tokens, require_tokens
from steerlens.errors import SteerlensError
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Sides, tokenize_sides
from steerlens.shapes import Directions, Side
from steerlens.vectors.estimators import ESTIMATORS, Estimator, mean_difference
from steerlens.vectors.vector import SteeringVector

Named = TypeVar("Named")

SAME_DIRECTION = 0.99
"""Least cosine of one direction computed twice: rounding and batching change it by less."""


def random_directions(
    vector: SteeringVector, count: int = 3, *, seed: int = 0
) -> tuple[SteeringVector, ...]:
    """Vectors in uniformly random directions, as long as `vector` at each layer.

    Args:
        count: How many.
        seed: Of the draws.

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
    """Vectors extracted from the same pairs, with positive and negative swapped in a random half.

    What all pairs share cancels; what is left comes from the texts, not from their labels. As long
    as `vector` at each layer. An estimator that ignores which side is which (all PCA of
    differences) would find the same direction again; mean differences are then taken instead.

    Args:
        data: The pairs that `vector` was extracted from: a `ContrastiveDataset`, or two lists of
            texts, chats, passages or token ids.
        count: How many control vectors.
        estimator: Default: the one in the vector's provenance.
        tokens: Positions to pool, as in `extract`; default: those in the vector's provenance.
        seed: Of the random halves.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If `data` does not give the direction of `vector` again.

    >>> [control] = shuffled_labels(model, vector, refusals.train, 1, progress=False)
    >>> control.provenance["name"]
    'shuffled 1'
    """
    estimator = estimator or _estimator_of(vector)
    tokens = _tokens_of(vector) if tokens is None else tokens
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
            f"got {len(positive)} pairs that give another direction than {vector} (cosine "
            f"{again.min():.3f}); expected those it was extracted from: pass its pairs, estimator= "
            "and tokens=, or use random_directions() only"
        )
    flips = _flips(len(positive), count, seed)
    shuffled = [apply_estimator(estimator, *_flipped(sides, flip)) for flip in flips]
    cosines = [_control(vector, each, "shuffled").cosine(vector).abs() for each in shuffled]
    if cosines and (torch.stack(cosines) > SAME_DIRECTION).all():
        shuffled = [mean_difference(*_flipped(sides, flip)) for flip in flips]
    return tuple(
        _control(vector, directions, f"shuffled {i}")
        for i, directions in enumerate(shuffled, start=1)
    )


def _estimator_of(vector: SteeringVector) -> Estimator:
    known = {estimator.__qualname__: estimator for estimator in ESTIMATORS.values()}
    return named_in_provenance(vector, "estimator", known, "the function")


def named_in_provenance(
    vector: SteeringVector, argument: str, known: Mapping[str, Named], otherwise: str
) -> Named:
    """What a vector was made with, by the name in its provenance.

    Args:
        vector: The vector.
        argument: What to look up; also the argument to pass it as if its name is unknown.
        known: What it may be, by name.
        otherwise: What to pass, for the message.

    >>> told = SteeringVector(torch.ones(1, 2), (0,), provenance={"positions": "all"})
    >>> named_in_provenance(told, "positions", {"all": "all"}, "them")
    'all'
    """
    name = vector.provenance.get(argument)
    if not isinstance(name, str) or name not in known:
        raise SteerlensError(
            f"got {vector} with the {argument} {name!r} in its provenance; expected one of "
            f"{', '.join(known)}: pass {otherwise} as {argument}="
        )
    return known[name]


def _tokens_of(vector: SteeringVector) -> Tokens:
    """The `tokens` in the vector's provenance, where slices are text and functions are names."""
    tokens = vector.provenance.get("tokens", "last")
    bounds = re.fullmatch(r"slice\((\S+), (\S+), (\S+)\)", str(tokens))
    try:
        if bounds:
            return slice(*(None if bound == "None" else int(bound) for bound in bounds.groups()))
        require_tokens(tokens)
    except (SteerlensError, ValueError):
        raise SteerlensError(
            f"got {vector} with the tokens {tokens!r} in its provenance; expected a name, number "
            "or slice: pass what it was extracted with as tokens="
        ) from None
    return tokens


def _flips(n_pairs: int, count: int, seed: int) -> list[Bool[Tensor, " pair"]]:
    """Exactly half of the pairs each time: a majority would keep part of the vector."""
    random = np.random.default_rng(seed)
    half = np.arange(n_pairs) < n_pairs // 2
    return [torch.from_numpy(random.permutation(half)) for _ in range(count)]


def _flipped(sides: Sequence[Side], flip: Bool[Tensor, " pair"]) -> tuple[Side, Side]:
    positive, negative = sides
    swap = flip[:, None, None]
    return torch.where(swap, negative, positive), torch.where(swap, positive, negative)


def _control(vector: SteeringVector, directions: Directions, name: str) -> SteeringVector:
    """The directions at the vector's lengths, with its norms, layers and site."""
    origin = {
        key: vector.provenance[key] for key in ("model", "weights") if key in vector.provenance
    }
    plain = replace(
        vector, directions=directions, explained=None, provenance={"name": name, **origin}
    )
    return as_long_as(vector, plain)


def as_long_as(vector: SteeringVector, control: SteeringVector) -> SteeringVector:
    """The control at the vector's length at each layer.

    >>> as_long_as(vector, 3 * vector).directions.allclose(vector.directions)
    True
    """
    lengths = vector.directions.norm(dim=1, keepdim=True)
    return replace(control, directions=control.normalized().directions * lengths)
