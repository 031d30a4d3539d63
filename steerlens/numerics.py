"""Small numerical helpers that every layer of the package uses."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def at_least_float32(activations: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision widened; float32 and float64 as they are."""
    return activations.to(torch.promote_types(activations.dtype, torch.float32))


def unit(directions: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """Each layer's direction at length one; zero stays zero."""
    lengths = rearrange(directions.norm(dim=-1), "layer -> layer 1")
    return directions / lengths.clamp_min(torch.finfo(directions.dtype).tiny)
