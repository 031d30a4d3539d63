"""Maps of the stream in closed form: an edit of its own for each layer, fitted to activations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.steering.hooks import Edit, steering_hook
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

Shift = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


@dataclass(frozen=True, eq=False)
class StreamMap:
    """A map of one layer's stream: `x + strength × shift(x)`, in float32."""

    layer: int
    shift: Shift
    direction: Float[Tensor, " d_model"]
    """What it moves by on average, or towards: so that the map can be drawn and compared."""
    name: str
    site: str = "resid_post"

    @property
    def edit(self) -> Edit:
        """For `Steering(edit=...)` at this layer; the direction that comes with it is not used."""

        def shifted(resid: Tensor, direction: Tensor, strength: Any) -> Tensor:
            return resid + (strength * self.shift(resid.float())).to(resid)

        shifted.__name__ = shifted.__qualname__ = self.name
        return steering_hook(shifted)

    def steering(self, strength: float = 1.0, **options: Any) -> Steering:
        """The plan that applies it; options are those of `Steering`: `when=`, `positions=`, …"""
        vector = SteeringVector(
            self.direction[None], (self.layer,), self.site, provenance={"name": self.name}
        )
        return Steering(vector, strength=strength, edit=self.edit, **options)


def linear_transport(
    source: Float[Tensor, "prompt d_model"],
    target: Float[Tensor, "prompt d_model"],
    layer: int,
    *,
    site: str = "resid_post",
) -> StreamMap:
    """Move each coordinate's distribution to the target's by a line (Linear-AcT,
    arXiv 2410.23054).

    Coordinate by coordinate, both samples are sorted, and the line a x + b is the one of least
    squares from the one to the other. Strength 1 is the whole way, 0 none; where the two
    distributions differ in place and width only, strength 1 gives the target's mean and variance.

    >>> source = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    >>> linear_transport(source, 2 * source + 5, layer=1).shift(source[None])[0]
    tensor([[5., 6.],
            [6., 8.],
            [7., 7.]])
    """
    _require_alike(source, target)
    if len(source) != len(target):
        raise SteerlensError(
            f"got {len(source)} activations to move to {len(target)}; linear_transport sorts both "
            "and pairs them: give equally many"
        )
    x, y = source.double().sort(dim=0).values, target.double().sort(dim=0).values
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    covariance = ((x - mean_x) * (y - mean_y)).sum(dim=0)
    variance = (x - mean_x).square().sum(dim=0)
    # A coordinate that never varies is moved, not stretched.
    slope = torch.where(variance > 0, covariance / variance.where(variance > 0, 1.0), 1.0)
    stretch, move = (slope - 1).float(), (mean_y - slope * mean_x).float()

    def shift(resid: Tensor) -> Tensor:
        return resid * stretch.to(resid) + move.to(resid)

    return StreamMap(layer, shift, (mean_y - mean_x).float(), "linear_transport", site)


def null_space_map(
    benign: Float[Tensor, "prompt d_model"],
    harmful: Float[Tensor, "other_prompt d_model"],
    direction: Float[Tensor, " d_model"],
    layer: int,
    *,
    site: str = "resid_post",
    kept_energy: float = 1e-6,
    ridge: float = 1e-3,
) -> StreamMap:
    """Add a direction to harmful activations, and nothing to benign ones (AlphaSteer,
    arXiv 2506.07022).

    x + Δ P x, where P projects on what benign activations leave free and Δ is the ridge regression
    from P x of harmful ones to the direction.

    Args:
        benign: What is to stay as it is.
        harmful: What is to be moved by `direction`.
        kept_energy: P keeps the axes along which benign activations have at most this share of
            their mean square: 0.05, say, where there are more of them than numbers in each.
        ridge: Weight of Δ's squared size, as a fraction of the mean square of P x.
    """
    _require_alike(benign, harmful)
    if not 0 <= kept_energy < 1 or ridge < 0:
        raise SteerlensError(
            f"got kept_energy={kept_energy}, ridge={ridge}; expected a share below 1, and a ridge "
            "of at least 0"
        )
    moments = einsum(benign.double(), benign.double(), "prompt a, prompt b -> a b")
    energy, axes = torch.linalg.eigh(moments)  # increasing
    n_free = int((energy.clamp_min(0).cumsum(0) <= kept_energy * energy.sum()).sum())
    if not n_free:
        raise SteerlensError(
            f"{len(benign)} benign activations leave no axis of {len(energy)} with at most "
            f"{kept_energy:g} of their mean square; raise kept_energy, or give fewer"
        )
    free = axes[:, :n_free]
    seen = einsum(harmful.double(), free, "prompt d_model, d_model free -> prompt free")
    own = einsum(seen, seen, "prompt a, prompt b -> a b")
    own += ridge * own.diagonal().mean() * torch.eye(n_free, dtype=own.dtype)
    # The target is one direction for all, so that Δ has rank one: how much of it, by what is read.
    gate = torch.linalg.lstsq(own, seen.sum(dim=0)[:, None], driver="gelsd").solution[:, 0]
    read = einsum(free, gate, "d_model free, free -> d_model").float()

    def shift(resid: Tensor) -> Tensor:
        amount = einsum(resid, read.to(resid), "batch pos d_model, d_model -> batch pos")
        return amount[..., None] * direction.to(resid)

    return StreamMap(layer, shift, direction.float(), "null_space_map", site)


def _require_alike(one: Tensor, other: Tensor) -> None:
    shapes = [tuple(side.shape) for side in (one, other)]
    fits = all(len(shape) == 2 and shape[0] for shape in shapes) and shapes[0][1] == shapes[1][1]
    if not fits or not all(side.isfinite().all() for side in (one, other)):
        raise SteerlensError(
            f"got activations of shapes {shapes[0]} and {shapes[1]}; expected two finite tables "
            "[prompt, d_model] of one model and layer, as read_residual(...)[:, 0] gives them"
        )
