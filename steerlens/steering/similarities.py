"""Similarities between a prompt's pooled activation and a direction."""

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

Similarity = Callable[
    [Float[Tensor, "row d_model"], Float[Tensor, " d_model"]], Float[Tensor, " row"]
]


def cast_similarity(
    pooled: Float[Tensor, "row d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " row"]:
    """CAST's cos(h, tanh(c cᵀh / c·c)): the sign of c does not matter (arXiv 2409.05907)."""
    along = einsum(pooled, direction, "row d_model, d_model -> row")
    scaled = along / direction.square().sum().clamp_min(torch.finfo(direction.dtype).tiny)
    projected = rearrange(scaled, "row -> row 1") * direction
    return torch.cosine_similarity(pooled, projected.tanh(), dim=1)


def cosine(
    pooled: Float[Tensor, "row d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " row"]:
    """The signed cosine: positive on the side that the direction points to."""
    return torch.cosine_similarity(pooled, direction[None], dim=1)


def projection(
    pooled: Float[Tensor, "row d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, " row"]:
    """Signed length along the direction, in units of the stream."""
    along = einsum(pooled, direction, "row d_model, d_model -> row")
    return along / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)


SIMILARITIES: dict[str, Similarity] = {
    "cast": cast_similarity,
    "cosine": cosine,
    "projection": projection,
}
"""The names under which similarities are written to files."""
