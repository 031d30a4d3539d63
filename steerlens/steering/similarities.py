"""Similarities between a prompt's pooled activation and a direction."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.shapes import Direction

Similarity = Callable[
    [Float[Tensor, "batch d_model"], Float[Tensor, " d_model"]], Float[Tensor, " batch"]
]
"""`(pooled, direction) -> similarity`, one number per row."""


def cast_similarity(
    pooled: Float[Tensor, "batch d_model"], direction: Direction
) -> Float[Tensor, " batch"]:
    """CAST's cos(h, tanh(c cᵀh / c·c)): the sign of c does not matter (arXiv 2409.05907).

    Args:
        pooled: h, the pooled activation of each row.
        direction: c, the condition's direction.

    >>> cast_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0]))
    tensor([0.6000])
    """
    along = einsum(pooled, direction, "batch d_model, d_model -> batch")
    scaled = along / direction.square().sum().clamp_min(torch.finfo(direction.dtype).tiny)
    projected = rearrange(scaled, "batch -> batch 1") * direction
    return torch.cosine_similarity(pooled, projected.tanh(), dim=1)


def cosine(pooled: Float[Tensor, "batch d_model"], direction: Direction) -> Float[Tensor, " batch"]:
    """The signed cosine: positive on the side that the direction points to.

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, -2.0]))
    tensor([-0.8000])
    """
    return torch.cosine_similarity(pooled, direction[None], dim=1)


def projection(
    pooled: Float[Tensor, "batch d_model"], direction: Direction
) -> Float[Tensor, " batch"]:
    """The signed projection on the unit direction, in units of the stream.

    >>> projection(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0]))
    tensor([4.])
    """
    along = einsum(pooled, direction, "batch d_model, d_model -> batch")
    return along / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)


def similarity_of(
    similarity: Similarity,
    pooled: Float[Tensor, "batch d_model"],
    direction: Direction,
    what: str = "the similarity",
) -> Float[Tensor, " batch"]:
    """Call a similarity, which may be a user's own, on copies, and check what it returns.

    Args:
        similarity: `(pooled, direction) -> similarity`.
        pooled: An activation for each row.
        direction: What they are compared with.
        what: Whose similarity it is, for messages.

    >>> similarity_of(cosine, torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0]))
    tensor([0.8000])
    """
    if not callable(similarity):
        raise SteerlensError(
            f"got {what} {short_repr(similarity)}; expected a function (pooled, direction) -> one "
            "number for each row, such as similarities.cosine"
        )
    result: Any = similarity(pooled.clone(), direction.to(pooled, copy=True))
    is_array = isinstance(result, np.ndarray) and result.dtype.kind in "fiub"
    values = torch.from_numpy(result) if is_array else result
    fits = isinstance(values, Tensor) and tuple(values.shape) == (len(pooled),)
    if not fits or values.is_complex():
        returned = (
            f"shape {tuple(values.shape)} of {values.dtype}"
            if isinstance(values, Tensor)
            else f"{type(result).__name__} {short_repr(result)}"
        )
        raise SteerlensError(
            f"{what} returned {returned}; expected a tensor (or an array) of one real number for "
            f"each of the {len(pooled)} rows"
        )
    return values.detach().to(pooled)


class Standard(NamedTuple):
    """Mean and standard deviation of a similarity at each layer, which make layers comparable.

    >>> Standard.of(torch.tensor([[0.0, 10.0], [2.0, 30.0]])).mean_of(torch.tensor([[2.0, 20.0]]))
    tensor([[0.5000]], dtype=torch.float64)
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def of(cls, similarities: Float[Tensor, "sample layer"]) -> "Standard":
        """Of measured similarities; a layer where they do not vary keeps its scale."""
        wide = similarities.double()
        deviations = wide.std(dim=0, correction=0)
        return cls(
            tuple(wide.mean(dim=0).tolist()),
            tuple(deviations.where(deviations > 0, 1.0).tolist()),
        )

    def standardised(
        self, similarities: Float[Tensor, "batch layer"]
    ) -> Float[Tensor, "batch layer"]:
        """How many deviations each similarity is from its layer's mean, in float64."""
        wide = similarities.double()
        return (wide - wide.new_tensor(self.means)) / wide.new_tensor(self.deviations)

    def mean_of(self, similarities: Float[Tensor, "batch layer"]) -> Float[Tensor, "batch 1"]:
        """The mean over the layers of the standardised similarities, in float64."""
        return self.standardised(similarities).mean(dim=1, keepdim=True)


SIMILARITIES: dict[str, Similarity] = {
    "cast": cast_similarity,
    "cosine": cosine,
    "projection": projection,
}
"""The names under which similarities are written to files."""
