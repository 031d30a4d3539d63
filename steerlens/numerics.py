"""Small numerical helpers for all folders."""

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(activations: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision as float32; float32 and float64 unchanged.

    >>> at_least_float32(torch.ones(2).half()).dtype
    torch.float32
    """
    return activations.to(torch.promote_types(activations.dtype, torch.float32))


def unit(directions: Float[Tensor, "*layer d_model"]) -> Float[Tensor, "*layer d_model"]:
    """Each direction normalised to norm 1; zero stays zero.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    peaks = directions.abs().amax(dim=-1, keepdim=True)
    scaled = directions / peaks.where(peaks > 0, 1.0)  # squares of tiny numbers would underflow
    lengths = scaled.norm(dim=-1, keepdim=True)
    return scaled / lengths.where(lengths > 0, 1.0)
