"""Small numerical helpers for all folders."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr


def is_number(value: object) -> bool:
    """Whether a value is one real number: Python's, NumPy's, or a tensor's single element.

    >>> is_number(2), is_number(np.float32(2)), is_number("2"), is_number(True)
    (True, True, False, False)
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        is_bool = value.dtype in (torch.bool, np.bool_)
        is_complex = value.is_complex() if isinstance(value, Tensor) else np.iscomplexobj(value)
        return value.ndim == 0 and not is_bool and not is_complex and not isinstance(value, np.str_)
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_count(name: str, value: object) -> None:
    """Refuse what is no whole number of at least 1.

    >>> require_count("batch_size", 8)
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise SteerlensError(f"got {name}={short_repr(value)}; expected a whole number")
    if value < 1:
        raise SteerlensError(f"got {name}={value}; expected at least 1")


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
