"""The two sides of a contrast: their scatter and spectrum."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.numerics import at_least_float32


class Scatter(NamedTuple):
    """Prompts on the two widest principal axes of each layer; positives lie to the right."""

    layers: tuple[int, ...]
    positive: Float[Tensor, "positive layer 2"]
    negative: Float[Tensor, "negative layer 2"]
    explained: Float[Tensor, "layer 2"]
    """Share of the variance along each axis."""


class Spectrum(NamedTuple):
    """Singular values of each layer's matrix of differences p − n, largest first."""

    layers: tuple[int, ...]
    values: Float[Tensor, "layer rank"]
    n_pairs: int


def principal_scatter(
    positive: Float[Tensor, "positive layer d_model"],
    negative: Float[Tensor, "negative layer d_model"],
    layers: Sequence[int],
) -> Scatter:
    """Both sides on the two principal axes of all rows about their common mean, per layer.

    >>> random = torch.randn(20, 1, 8)
    >>> principal_scatter(random + 1, random - 1, layers=[3]).positive.shape
    torch.Size([20, 1, 2])
    """
    _require_layers(positive, layers)
    rows = torch.cat([at_least_float32(positive), at_least_float32(negative)])
    if min(len(rows), rows.shape[2]) < 2:
        raise SteerlensError(
            f"got {len(rows)} prompts of width {rows.shape[2]}; expected at least two of both, for "
            "two axes"
        )
    centred = rows - reduce(rows, "row layer d_model -> layer d_model", "mean")
    left, sizes, _ = torch.linalg.svd(
        rearrange(centred, "row layer d_model -> layer row d_model"), full_matrices=False
    )
    places = einsum(left[..., :2], sizes[:, :2], "layer row plane, layer plane -> row layer plane")
    n = len(positive)
    to_the_right = places[:n].mean(dim=0) >= places[n:].mean(dim=0)
    places = places * torch.where(to_the_right, 1, -1)
    shares = sizes.square() / reduce(sizes.square(), "layer rank -> layer 1", "sum")
    return Scatter(tuple(layers), places[:n], places[n:], shares[:, :2])


def difference_spectrum(
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
    layers: Sequence[int],
) -> Spectrum:
    """Singular values of p − n per layer: one large one means that one direction is the contrast.

    Not centred, so that the mean difference is in it.

    >>> difference_spectrum(torch.ones(4, 1, 4), torch.zeros(4, 1, 4), layers=[3]).values.round()
    tensor([[4., 0., 0., 0.]])
    """
    _require_layers(positive, layers)
    rows = at_least_float32(positive) - at_least_float32(negative)
    values = torch.linalg.svdvals(rearrange(rows, "pair layer d_model -> layer pair d_model"))
    return Spectrum(tuple(layers), values, len(rows))


def _require_layers(rows: Float[Tensor, "prompt layer d_model"], layers: Sequence[int]) -> None:
    if rows.shape[1] != len(layers):
        raise SteerlensError(
            f"got activations of {rows.shape[1]} layers and the layer numbers {list(layers)}; "
            "expected a number for each: name the layers that were read"
        )
