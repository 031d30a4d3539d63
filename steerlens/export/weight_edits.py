"""Edits folded into weights for the duration of a `with`, at no cost for the forward pass.

`model.state_dict()`, taken inside, has the edited weights.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
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
from steerlens.shapes import Direction
from steerlens.steering.hooks import add_direction
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

Change = Callable[[Tensor], Tensor]
"""New values from old ones, in float32 at least."""

SAME_DIRECTION = 1e-4
"""Largest distance between unit directions that rounding explains."""


@contextmanager
def edited_biases(model: Model, *steerings: Steering) -> Iterator[None]:
    """Steer by biases instead of hooks: the same logits, for unconditional additions.

    Afterwards the model has the same tensors as before; other changes made to them inside are lost.

    Args:
        model: The model to edit.
        *steerings: Unconditional additions to every token.

    Raises:
        SteerlensError: What a bias cannot do exactly: differ between rows or tokens, depend on the
            activation, or act at a site without a bias.

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
    """Remove one direction from all that writes to the residual stream, in the whole model.

    The logits are those of ablating it by hooks at the embedding and at every `attn_out` and
    `mlp_out` (directional ablation, arXiv 2406.11717).

    Args:
        model: The model to edit.
        vector: The vector that holds the direction.
        layers: Which of the vector's directions to remove, if it holds several; the weights of all
            layers change in any case.

    Raises:
        SteerlensError: A vector with several different directions, of another model, or read
            outside the stream.

    >>> direction = torch.ones(model.cfg.d_model) / model.cfg.d_model**0.5
    >>> with ablated_weights(model, SteeringVector(direction[None], layers=(2,))):
    ...     bool((model.W_E.detach() @ direction).abs().max() < 1e-4)
    True
    """
    chosen = vector.layers if layers is None else layers
    unit = _one_direction(vector.at([chosen] if isinstance(chosen, int) else chosen))
    if vector.width != model.cfg.d_model:
        raise SteerlensError(
            f"got {vector} of width {vector.width}; expected {model.cfg.d_model}, the stream of "
            f"{model.cfg.model_name}: it belongs to another model"
        )

    def without(weight: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        along = einsum(weight, unit.to(weight), "... d_model, d_model -> ...")
        return weight - along[..., None] * unit.to(weight)

    changes = [(writer, without) for writer in stream_writers(model)]
    with edited_weights(model, "ablated_weights", partial(_new_values, changes)):
        yield


def _additions(model: Model, steering: Steering) -> list[tuple[Parameter, Change]]:
    """The parameters to change, and how; refuses before anything is changed."""
    require_constant(steering)
    site, layers = steering.site_written, resolve_layers(model, steering.layers_steered)
    if steering.vector.width != site_width(model, site):
        raise SteerlensError(
            f"got {steering.vector} of width {steering.vector.width}; expected "
            f"{site_width(model, site)}, {model.cfg.model_name}'s {site}: it belongs to another "
            "model or site"
        )
    return [
        (target.bias, _shifted(target, steering.direction(layer), strength))
        for layer, strength in zip(layers, steering.strengths, strict=True)
        for target in site_biases(model, site, layer)
    ]


def require_constant(steering: Steering, into: str = "biases") -> None:
    """Refuse a steering that does not add the same vector to every token of every text.

    Args:
        steering: The steering.
        into: What it is to be folded into, for the message.

    >>> require_constant(Steering(SteeringVector(torch.ones(1, 2), layers=(0,)), strength=2))
    """
    reason = why_not_everywhere(steering)
    if reason is None and steering.edit is not add_direction:
        reason = (
            f"{steering.edit.__name__} depends on the activation, and only add_direction adds a "
            "constant (to ablate a direction in the whole model, see ablated_weights)"
        )
    if reason:
        raise SteerlensError(
            f"{steering} cannot be folded into {into}: {reason}; use its hooks() instead"
        )


EVERYWHERE_ALIKE = {
    "vector", "layers", "strength", "edit", "relative", "site", "reference", "name", "evidence"
}  # fmt: skip
"""Fields of a steering that say the same of every token of every text."""


def why_not_everywhere(steering: Steering) -> str | None:
    """Why a steering is not the same for all tokens of all texts, as other programs need it to be.

    >>> why_not_everywhere(Steering(vector, positions="last"))
    'its positions are not "all", and what is exported acts on every token'
    """
    positions = steering.positions
    reasons = {
        "its condition (when=) is judged for every prompt, and what is exported is the same for "
        "all": steering.when is not None,
        'its positions are not "all", and what is exported acts on every token': (
            not (isinstance(positions, str) and positions == "all")
        ),
        "skip_bos leaves the first token out, and what is exported acts on every token": (
            steering.skip_bos
        ),
        "keep_norm scales each token by its own length": steering.norm_keeper is not None,
        "its strength is not a number": not isinstance(steering.strength, int | float | tuple),
    }
    others = [
        f"its {field.name} may differ between tokens"
        for field in fields(steering)
        if field.name not in {*EVERYWHERE_ALIKE, "when", "positions", "skip_bos", "keep_norm"}
        and getattr(steering, field.name) is not field.default
    ]
    return next((reason for reason, holds in reasons.items() if holds), next(iter(others), None))


def _shifted(target: SiteBias, direction: Float[Tensor, " site"], strength: float) -> Change:
    def add(bias: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        shift = strength * direction.to(bias)
        if target.weight is None:
            return bias + shift
        return bias + einsum(shift, target.weight.to(bias), "site, ... site out -> ... out")

    return add


def _one_direction(vector: SteeringVector) -> Direction:
    """The vector's only direction at length one; sign and length do not matter."""
    if vector.site in FRAMED_SITES:
        raise SteerlensError(
            f"got {vector}, read at {vector.site}, which is not the residual stream; expected a "
            "direction of the stream: extract one at resid_post"
        )
    units = vector.normalized().directions
    if not units.any(dim=1).all():
        raise SteerlensError(f"got {vector} with a direction of zero; expected one to ablate")
    first = units[0]
    signs = torch.where(units @ first < 0, -1.0, 1.0)[:, None]
    if (signs * units - first).norm(dim=1).max() > SAME_DIRECTION:
        raise SteerlensError(
            f"got {vector} with different directions; expected a single one, since weights write "
            "to the stream of all layers: choose it with layers=, or ablate by hooks"
        )
    return first


def _new_values(changes: Iterable[tuple[Parameter, Change]]) -> list[tuple[Parameter, Tensor]]:
    """Changed copies, with the same strides; several changes of a parameter are applied in turn."""
    values: dict[Parameter, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for parameter, change in changes:
            old = values.get(parameter, parameter.data)
            new = change(at_least_float32(old))
            values[parameter] = torch.empty_like(parameter.data).copy_(new)
    return list(values.items())
