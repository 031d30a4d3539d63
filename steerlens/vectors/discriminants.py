"""Linear discriminants: directions that tell groups apart, for how much each one varies anyway."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.numerics import at_least_float32
from steerlens.shapes import PromptActivations, Samples


class Discriminant(NamedTuple):
    """A linear score for each group at each layer; the greatest is the likeliest group."""

    weights: Float[Tensor, "group layer d_model"]
    offsets: Float[Tensor, "group layer"]

    def scores(self, activations: PromptActivations) -> Float[Tensor, "prompt layer group"]:
        """Each group's score of each prompt at each layer, in float64."""
        along = einsum(
            activations.double(),
            self.weights.to(activations.device).double(),
            "prompt layer d_model, group layer d_model -> prompt layer group",
        )
        return along + self.offsets.T.to(along)


def joint_discriminant(groups: Sequence[Float[Tensor, "_ layer d_model"]]) -> Discriminant:
    """Linear discriminant analysis of several groups at once, all of them equally likely.

    One covariance for all groups, of each about its own mean, shrunk after Ledoit and Wolf (2004).
    Scores are log-likelihoods but for what all groups have in common, so that those of several
    layers may be added up.

    Args:
        groups: The activations of each group's prompts.

    >>> here, there = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]]), torch.tensor([[[-3.0, 0.0]]])
    >>> joint_discriminant([here, there]).scores(torch.tensor([[[0.9, 1.0]]])).argmax().item()
    0
    """
    wide = [at_least_float32(group).double() for group in groups]
    means = torch.stack(
        [reduce(group, "prompt layer d_model -> layer d_model", "mean") for group in wide]
    )
    within = torch.cat([group - mean for group, mean in zip(wide, means, strict=True)])
    centre = means.mean(dim=0)
    apart = (means - centre).permute(1, 2, 0)
    weights = whitened(within, apart).permute(2, 0, 1)
    middles = (means + centre) / 2
    offsets = -einsum(weights, middles, "group layer d_model, group layer d_model -> group layer")
    return Discriminant(weights.float(), offsets.float())


def whitened(
    rows: Samples, vectors: Float[Tensor, "layer d_model column"]
) -> Float[Tensor, "layer d_model column"]:
    """Σ⁻¹ V, where Σ is the samples' covariance about zero, shrunk after Ledoit and Wolf (2004).

    >>> whitened(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]]), torch.eye(2)[None])
    tensor([[[0.5000, 0.0000],
             [0.0000, 0.5000]]])
    """
    n_samples, _, d_model = rows.shape
    is_scatter = n_samples >= d_model
    gram_or_scatter = (
        einsum(rows, rows, "sample layer d_model, sample layer other -> layer d_model other")
        if is_scatter
        else einsum(rows, rows, "sample layer d_model, other layer d_model -> layer sample other")
    )
    squares = reduce(rows.square(), "sample layer d_model -> sample layer", "sum")
    variance = squares.sum(dim=0) / (n_samples * d_model)
    dispersion = gram_or_scatter.square().sum(dim=(1, 2)) / n_samples**2  # Σ's squared norm
    shrinkage_numerator = (squares.square().sum(dim=0) / n_samples - dispersion) / n_samples
    shrinkage = shrinkage_numerator / (dispersion - d_model * variance**2)
    shrinkage = shrinkage.nan_to_num(1).clamp(0, 1)
    # invertible even where nothing varies
    ridge = torch.where(variance > 0, (shrinkage * variance).maximum(1e-6 * variance), 1)
    scale = (1 - shrinkage) / n_samples
    shrunk = scale[:, None, None] * gram_or_scatter + torch.diag_embed(
        ridge[:, None].expand(gram_or_scatter.shape[:2])
    )
    if is_scatter:
        return torch.linalg.solve(shrunk, vectors)
    # Woodbury's identity
    projections = einsum(
        rows, vectors, "sample layer d_model, layer d_model column -> layer sample column"
    )
    coefficients = scale[:, None, None] * torch.linalg.solve(shrunk, projections)
    removed = einsum(
        rows, coefficients, "sample layer d_model, layer sample column -> layer d_model column"
    )
    return (vectors - removed) / ridge[:, None, None]
