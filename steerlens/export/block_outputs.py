"""What a plan adds to the outputs of blocks: all that most other programs can do."""

from collections.abc import Sequence

import torch

from steerlens.errors import SteerlensError
from steerlens.export.weight_edits import require_constant
from steerlens.layer_text import display_layers, layers_as_text
from steerlens.shapes import Direction
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector


def as_steps(plan: Steering | Sequence[Steering]) -> list[Steering]:
    """The steerings of a plan; refuses one without any."""
    steps = [plan] if isinstance(plan, Steering) else list(plan)
    if not steps:
        raise SteerlensError("got a plan without a steering; expected at least one")
    return steps


def block_of(steering: Steering, layer: int, into: str) -> int:
    """The block whose output is the site that a steering writes at a layer.

    Args:
        steering: The steering.
        layer: One of its layers.
        into: What it is to be made into, for the message.

    >>> block_of(Steering(vector, [3], site="resid_pre"), 3, "a control vector")
    2
    """
    block = {"resid_post": layer, "resid_pre": layer - 1}.get(steering.site_written, -1)
    if block < 0:
        raise SteerlensError(
            f"got {steering} at {steering.site_written} of layer {layer}; expected the output of a "
            f"block (resid_post, or resid_pre of a later layer), since {into} acts there"
        )
    return block


def block_additions(plan: Steering | Sequence[Steering], into: str) -> dict[int, Direction]:
    """The vector that a plan adds to each block's output, strengths multiplied in.

    Args:
        plan: Unconditional additions to every token.
        into: What it is to be made into, for messages.

    Raises:
        SteerlensError: A steering that does anything else, with the reason.

    >>> pushes = Steering(SteeringVector(torch.ones(2, 2), layers=(3, 4)), [4], strength=0.5)
    >>> block_additions([pushes, pushes], "a control vector")
    {4: tensor([1., 1.])}
    """
    added: dict[int, Direction] = {}
    for step in as_steps(plan):
        require_constant(step, into)
        for layer, strength in zip(step.layers_steered, step.strengths, strict=True):
            block = block_of(step, layer, into)
            pushed = strength * step.direction(layer)
            added[block] = pushed if block not in added else added[block] + pushed
    widths = {len(vector) for vector in added.values()}
    if len(widths) > 1:
        raise SteerlensError(f"got vectors of widths {sorted(widths)}; expected those of one model")
    return dict(sorted(added.items()))


def control_vector(plan: Steering | Sequence[Steering]) -> SteeringVector:
    """The control vector for llama.cpp that does what a plan does: strengths multiplied in.

    Save it as `.gguf` for `--control-vector`. Each layer's vector is added as it is, so that
    steerlens itself does the same with the strengths `[1.0, 1.0, …]`, one for each layer.

    Args:
        plan: Unconditional additions to blocks' outputs, except the first block's.

    Raises:
        SteerlensError: A steering that is conditional, not an addition, or at another site.

    >>> steering = Steering(SteeringVector(torch.ones(2, 2), layers=(3, 4)), [4], strength=0.5)
    >>> control_vector(steering)[4]
    tensor([0.5000, 0.5000])
    """
    steps = as_steps(plan)
    added = block_additions(steps, "a control vector")
    if 0 in added:
        rest = [block for block in added if block]
        raise SteerlensError(
            f"got a plan that steers layers {display_layers([*added])}; expected none of layer 0, "
            "whose output llama.cpp never steers"
            + (
                f": steer layers {layers_as_text(rest)} (--layers {layers_as_text(rest)})"
                * bool(rest)
            )
        )
    provenance = {**steps[0].vector.provenance, "steering": "; ".join(map(repr, steps))}
    return SteeringVector(torch.stack([*added.values()]), tuple(added), provenance=provenance)
