"""The same edits folded into weights: for as long as a `with` lasts, at no cost while it does.

`model.state_dict()`, taken inside, keeps the edited weights: that is how to export them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.ownership import edited_weights
from steerlens.models.sites import FRAMED_SITES, resolve_layers, site_width
from steerlens.models.weights import SiteBias, site_biases, stream_writers
from steerlens.numerics import at_least_float32
from steerlens.steering.hooks import add_direction
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

Change = Callable[[Tensor], Tensor]
"""New values from old ones, in float32 at least."""

SAME_DIRECTION = 1e-4
"""Largest distance between unit directions that rounding explains."""


@contextmanager
def edited_biases(model: Model, *steerings: Steering) -> Iterator[None]:
    """Steer by biases instead of hooks: the same logits, for additions that are unconditional.

    Afterwards the model has its very old tensors back, and what else was written into them inside
    is lost. Refuses what a bias cannot do exactly: to tell rows or tokens apart, to depend on the
    activation, to act where the model has no bias.

    >>> model = load_model()
    >>> vector = SteeringVector(torch.ones(1, model.cfg.d_model), layers=(2,))
    >>> with edited_biases(model, Steering(vector)):
    ...     model.blocks[2].mlp.b_out[:3].tolist()
    [1.0, 1.0, 1.0]
    """
    changes = [change for steering in steerings for change in _additions(model, steering)]
    with edited_weights(model, "edited_biases", partial(_new_values, changes)):
        yield


@contextmanager
def ablated_weights(
    model: Model, vector: SteeringVector, layers: int | Iterable[int] | None = None
) -> Iterator[None]:
    """Take one direction out of all that writes into the residual stream, in the whole model.

    Gives the logits of ablating it by hooks at the embedding and at every `attn_out` and `mlp_out`
    (directional ablation, arXiv 2406.11717). `layers` picks the direction of a vector that holds
    several: the weights of every layer are changed whatever it says.
    """
    chosen = vector.layers if layers is None else layers
    unit = _one_direction(vector.at([chosen] if isinstance(chosen, int) else chosen))
    if vector.width != model.cfg.d_model:
        raise SteerlensError(
            f"{vector} is {vector.width} wide, but the stream of {model.cfg.model_name} "
            f"{model.cfg.d_model}; it belongs to another model"
        )

    def without(weight: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        along = einsum(weight, unit.to(weight), "... d_model, d_model -> ...")
        return weight - along[..., None] * unit.to(weight)

    changes = [(writer, without) for writer in stream_writers(model)]
    with edited_weights(model, "ablated_weights", partial(_new_values, changes)):
        yield


def _additions(model: Model, steering: Steering) -> list[tuple[Parameter, Change]]:
    """What to do to which parameter; refuses before anything is done."""
    require_constant(steering)
    site, layers = steering.site_written, resolve_layers(model, steering.layers_steered)
    if steering.vector.width != site_width(model, site):
        raise SteerlensError(
            f"{steering.vector} is {steering.vector.width} wide, but {model.cfg.model_name}'s "
            f"{site} {site_width(model, site)}; it belongs to another model or site"
        )
    return [
        (target.bias, _shifted(target, steering.direction(layer), strength))
        for layer, strength in zip(layers, steering.strengths, strict=True)
        for target in site_biases(model, site, layer)
    ]


def require_constant(steering: Steering, into: str = "biases") -> None:
    """Refuse a steering that does not add the same to every token of every text."""
    reason = _why_no_bias(steering)
    if reason:
        raise SteerlensError(
            f"{steering} cannot be folded into {into}: {reason}; use its hooks() instead"
        )


def _why_no_bias(steering: Steering) -> str | None:
    """What a bias, the same for all tokens of all texts, cannot do of a steering."""
    name = steering.edit.__name__
    positions = steering.positions
    reasons = {
        "its condition (when=) is judged for every prompt, and a bias is the same for all": (
            steering.when is not None
        ),
        'its positions are not "all", and a bias is added to every token': (
            not (isinstance(positions, str) and positions == "all")
        ),
        "skip_bos leaves a token as it is, and a bias is added to every token": steering.skip_bos,
        "keep_norm scales each token by its own length": steering.norm_keeper is not None,
        f"{name} depends on the activation, and only add_direction adds a constant "
        "(to ablate a direction in the whole model, see ablated_weights)": (
            steering.edit is not add_direction
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _shifted(target: SiteBias, direction: Float[Tensor, " site"], strength: float) -> Change:
    def add(bias: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        shift = strength * direction.to(bias)
        if target.weight is None:
            return bias + shift
        return bias + einsum(shift, target.weight.to(bias), "site, ... site out -> ... out")

    return add


def _one_direction(vector: SteeringVector) -> Float[Tensor, " d_model"]:
    """At length one; the sign and length of the vector's directions do not matter."""
    if vector.site in FRAMED_SITES:
        raise SteerlensError(
            f"{vector} was read at {vector.site}, which is not the residual stream: its direction "
            "cannot be taken out of what writes there; extract one at resid_post"
        )
    units = vector.normalized().directions
    if not units.any(dim=1).all():
        raise SteerlensError(f"{vector} holds a direction of zero: there is nothing to ablate")
    first = units[0]
    signs = torch.where(units @ first < 0, -1.0, 1.0)[:, None]
    if (signs * units - first).norm(dim=1).max() > SAME_DIRECTION:
        raise SteerlensError(
            f"{vector} holds different directions, but weights write to the stream of all layers "
            "at once and can lose only one; choose it with layers=, or ablate by hooks"
        )
    return first


def _new_values(changes: Iterable[tuple[Parameter, Change]]) -> list[tuple[Parameter, Tensor]]:
    """Changed copies, of the same strides; changes of one parameter follow each other."""
    values: dict[Parameter, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for parameter, change in changes:
            old = values.get(parameter, parameter.data)
            new = change(at_least_float32(old))
            values[parameter] = torch.empty_like(parameter.data).copy_(new)
    return list(values.items())
