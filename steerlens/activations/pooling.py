"""Activations averaged over chosen tokens, attention sinks left out.

A few tokens of a text, most often its first, are many times longer than all others in the middle
layers of pretrained models: attention sinks (Xiao et al. 2023) with massive activations (Sun et al.
2024). A mean that contains one measures little but how many other tokens there are.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.numerics import at_least_float32

TIMES_MEDIAN = 10.0
"""A token is a sink where its norm is more than this many times the median norm of its text."""


def norms_of(activation: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
    """Euclidean norm of each token's activation, in float32."""
    wide = torch.promote_types(activation.dtype, torch.float32)
    return torch.linalg.vector_norm(activation, dim=-1, dtype=wide).float()


def times_median(
    norms: Float[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    """Each token's norm over its row's median norm; 0 at padding, and where it is not finite.

    The median of an even number of tokens is the smaller of the middle two.
    """
    known = torch.where(real & norms.isfinite(), norms, torch.nan)
    return (known / known.nanmedian(dim=1, keepdim=True).values).nan_to_num(0, posinf=0)


def without_sinks(
    chosen: Bool[Tensor, "batch pos"],
    times: Float[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"],
) -> Bool[Tensor, "batch pos"]:
    """The chosen tokens without the text's first one, and without those of more than
    `TIMES_MEDIAN` times the median norm; where nothing else is chosen, all of them.

    >>> real = torch.ones(1, 4, dtype=torch.bool)
    >>> without_sinks(real, torch.tensor([[1.0, 1.0, 30.0, 1.0]]), real)
    tensor([[False,  True, False,  True]])
    """
    first = real & (real.cumsum(dim=1) == 1)
    kept = chosen & ~first & (times <= TIMES_MEDIAN)
    return torch.where(kept.any(dim=1, keepdim=True), kept, chosen)


def sum_of(
    activation: Float[Tensor, "batch pos d_model"], chosen: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch d_model"]:
    """The sum over each row's chosen tokens, in float32 at least.

    No other token is touched: padding may hold anything.
    """
    row, position = chosen.nonzero(as_tuple=True)
    picked = at_least_float32(activation[row, position])
    nothing = picked.new_zeros(len(chosen), activation.shape[-1])
    return nothing.index_add_(0, row, picked)


def mean_of(
    activation: Float[Tensor, "batch pos d_model"],
    chosen: Bool[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"],
    *,
    sinks: bool,
) -> Float[Tensor, "batch d_model"]:
    """The mean over each row's chosen tokens, `sinks` among them or not.

    >>> text = torch.tensor([[[9.0], [3.0], [5.0]]])
    >>> real = torch.ones(1, 3, dtype=torch.bool)
    >>> mean_of(text, real, real, sinks=False)
    tensor([[4.]])
    """
    if not sinks:
        chosen = without_sinks(chosen, times_median(norms_of(activation), real), real)
    return sum_of(activation, chosen) / chosen.sum(dim=1, keepdim=True)
