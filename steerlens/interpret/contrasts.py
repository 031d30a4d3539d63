"""The two sides of a contrast: their scatter and spectrum."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.numerics import at_least_float32
from steerlens.shapes import PromptActivations, Side


class Scatter(NamedTuple):
    """Prompts on the first two principal axes of each layer; positives are on the right."""

    layers: tuple[int, ...]
    positive: Float[Tensor, "positive layer 2"]
    negative: Float[Tensor, "negative layer 2"]
    explained: Float[Tensor, "layer 2"]
    """Share of the variance along each axis."""


class Spectrum(NamedTuple):
    """Singular values of each layer's matrix of pair differences p − n, largest first."""

    layers: tuple[int, ...]
    values: Float[Tensor, "layer rank"]
    n_pairs: int


def principal_scatter(
    positive: Float[Tensor, "positive layer d_model"],
    negative: Float[Tensor, "negative layer d_model"],
    layers: Sequence[int],
) -> Scatter:
    """Project both sides on each layer's first two principal axes, about their common mean.

    Args:
        positive: Activations of the positive prompts, as `read_residual` gives them.
        negative: Activations of the negative prompts.
        layers: The layers' numbers, in order.

    >>> random = torch.randn(20, 1, 8)
    >>> principal_scatter(random + 1, random - 1, layers=[3]).positive.shape
    torch.Size([20, 1, 2])
    """
    _require_layers(positive, layers)
    samples = torch.cat([at_least_float32(positive), at_least_float32(negative)])
    if min(len(samples), samples.shape[2]) < 2:
        raise SteerlensError(
            f"got {len(samples)} prompts of width {samples.shape[2]}; expected at least two of "
            "both, for two axes"
        )
    centred = samples - reduce(samples, "sample layer d_model -> layer d_model", "mean")
    left, sizes, _ = torch.linalg.svd(
        rearrange(centred, "sample layer d_model -> layer sample d_model"), full_matrices=False
    )
    points = einsum(
        left[..., :2],
        sizes[:, :2],
        "layer sample component, layer component -> sample layer component",
    )
    n = len(positive)
    on_the_right = points[:n].mean(dim=0) >= points[n:].mean(dim=0)
    points = points * torch.where(on_the_right, 1, -1)
    shares = sizes.square() / reduce(sizes.square(), "layer rank -> layer 1", "sum")
    return Scatter(tuple(layers), points[:n], points[n:], shares[:, :2])


def difference_spectrum(
    positive: Side,
    negative: Side,
    layers: Sequence[int],
) -> Spectrum:
    """Singular values of p − n per layer; one large value means that one direction explains it.

    The differences are not centred: their mean is part of the spectrum.

    Args:
        positive: Activations of the positive sides.
        negative: Activations of the negative sides, pair by pair.
        layers: The layers' numbers, in order.

    >>> difference_spectrum(torch.ones(4, 1, 4), torch.zeros(4, 1, 4), layers=[3]).values.round()
    tensor([[4., 0., 0., 0.]])
    """
    _require_layers(positive, layers)
    differences = at_least_float32(positive) - at_least_float32(negative)
    values = torch.linalg.svdvals(
        rearrange(differences, "pair layer d_model -> layer pair d_model")
    )
    return Spectrum(tuple(layers), values, len(differences))


def _require_layers(activations: PromptActivations, layers: Sequence[int]) -> None:
    if activations.shape[1] != len(layers):
        raise SteerlensError(
            f"got activations of {activations.shape[1]} layers and the layer numbers {list(layers)}"
            "; expected a number for each: name the layers that were read"
        )
