"""The named functions that TransformerLens calls: edits of the stream, and readers of it.

An edit is `(resid, direction, strength) -> resid` in one to three lines. `steering_hook` gives it
the host's signature and takes care of rows, tokens, kept norms and dtype, once for all edits.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.shapes import Direction, Resid

Strength = float | Float[Tensor, "#batch #pos 1"]
Edit = Callable[..., Resid]
"""`(resid, direction, strength) -> resid`; strength is a number, or one per row, or per token."""
Where = Callable[[], Bool[Tensor, "#batch #pos"] | None]
"""Which tokens of which rows the current pass edits; None: all."""
KeepNorm = Callable[[Tensor, Tensor], Tensor]
"""`(before, after) -> after`, rescaled to the norm that it should have."""
Strengths = Callable[[], Float[Tensor, "#batch #pos"]]
"""The strength for each row, or each token, of the current pass."""


def steering_hook(edit: Edit, *, adds_up: bool = False) -> Callable[..., Any]:
    """Make a hook of an edit: the signature `(resid, hook, *, ...)` under the edit's own name.

    Args:
        edit: `(resid, direction, strength) -> resid`, or with a fourth argument `reference`; it
            is kept as the hook's `.edit`.
        adds_up: Whether edits at several layers add up, as additions do: then one number as
            strength is shared by the layers. Otherwise each layer gets the number itself.

    >>> @steering_hook
    ... def add_unit(resid, direction, strength):
    ...     return resid + strength * direction / direction.norm()
    >>> Steering(vector, edit=add_unit).edit.__name__
    'add_unit'
    """

    @wraps(edit)
    def hooked(
        resid: Resid,
        hook: Any,
        *,
        direction: Direction,
        strength: float | Strengths,
        where: Where,
        keep_norm: KeepNorm | None = None,
        reference: Direction | None = None,
    ) -> Resid | None:
        if resid.shape[-1] != direction.shape[0]:
            raise SteerlensError(
                f"got a stream of width {resid.shape[-1]}; expected {direction.shape[0]}, the "
                "direction's: the vector belongs to another model"
            )
        chosen = where()
        scale = strength().to(resid)[..., None] if callable(strength) else strength
        if chosen is not None and not chosen.any():
            return None
        more = () if reference is None else (reference.to(resid),)
        given = (direction.to(resid), scale, *more)
        edited = _applied(edit, f"the edit {hooked.__name__}", resid, chosen, given)
        if keep_norm is not None:
            edited = _applied(keep_norm, "keep_norm", resid, chosen, (edited,))
        if chosen is None:
            return edited
        return torch.where(chosen.to(resid.device)[..., None], edited, resid)

    hooked.edit = edit  # type: ignore[attr-defined]
    hooked.adds_up = adds_up  # type: ignore[attr-defined]
    return hooked


@partial(steering_hook, adds_up=True)
def add_direction(resid: Resid, direction: Direction, strength: Strength) -> Resid:
    """Shift the stream by `strength` times the direction.

    >>> resid, direction = torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> add_direction.edit(resid, direction, 0.5)
    tensor([[[1., 4.]]])
    """
    return resid + strength * direction


@steering_hook
def ablate_direction(resid: Resid, direction: Direction, strength: Strength) -> Resid:
    """Remove `strength` times the stream's projection on the direction.

    >>> resid, direction = torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> ablate_direction.edit(resid, direction, 1.0)
    tensor([[[1., 0.]]])
    """
    return resid - strength * _along(resid, direction)


@steering_hook
def ablate_then_add(resid: Resid, direction: Direction, strength: Strength) -> Resid:
    """Replace the stream's projection on the direction by `strength` times the direction.

    >>> resid, direction = torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> ablate_then_add.edit(resid, direction, 0.25)
    tensor([[[1., 1.]]])
    """
    return resid - _along(resid, direction) + strength * direction


@steering_hook
def clamp_direction(resid: Resid, direction: Direction, strength: Strength) -> Resid:
    """Set the stream's signed length along the direction to `strength`, in units of the stream.

    >>> resid, direction = torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> clamp_direction.edit(resid, direction, 3.0)
    tensor([[[1., 3.]]])
    """
    return resid - _along(resid, direction) + strength * _unit(direction)


@steering_hook
def cap_direction(resid: Resid, direction: Direction, strength: Strength) -> Resid:
    """Bring the stream's signed length along the direction down to `strength` where it is above.

    Activation capping (arXiv 2601.10387): tokens within the bound are not touched. `projections`
    measures which lengths are usual.

    Args:
        resid: The stream.
        direction: The direction.
        strength: The greatest length, in units of the stream.

    >>> resid, direction = torch.tensor([[[1.0, 5.0], [1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> cap_direction.edit(resid, direction, 3.0)
    tensor([[[1., 3.],
             [1., 2.]]])
    """
    return resid - (_length_along(resid, direction) - strength).relu() * _unit(direction)


@steering_hook
def floor_direction(resid: Resid, direction: Direction, strength: Strength) -> Resid:
    """Bring the stream's signed length along the direction up to `strength` where it is below.

    Args:
        resid: The stream.
        direction: The direction.
        strength: The least length, in units of the stream.

    >>> resid, direction = torch.tensor([[[1.0, 5.0], [1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> floor_direction.edit(resid, direction, 3.0)
    tensor([[[1., 5.],
             [1., 3.]]])
    """
    return resid + (strength - _length_along(resid, direction)).relu() * _unit(direction)


@steering_hook
def move_to_projection(
    resid: Resid, direction: Direction, strength: Strength, reference: Direction
) -> Resid:
    """Set the length along the direction to `strength`, but only where it is below a boundary.

    Steer-to-target-projection (arXiv 2604.08169). The boundary is the reference's own projection:
    the mean of two kinds of text (`estimators.midpoint`) lies half-way between them.

    Args:
        resid: The stream.
        direction: The direction.
        strength: The length that tokens below the boundary get, in units of the stream.
        reference: An activation on the boundary.

    >>> resid, direction = torch.tensor([[[1.0, 5.0], [1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> move_to_projection.edit(resid, direction, 6.0, torch.tensor([0.0, 3.0]))
    tensor([[[1., 5.],
             [1., 6.]]])
    """
    along = _length_along(resid, direction)
    below = along < _length_along(reference[None, None], direction)
    return resid + below * (strength - along) * _unit(direction)


@steering_hook
def mirror_direction(
    resid: Resid, direction: Direction, strength: Strength, reference: Direction
) -> Resid:
    """Mirror the stream at a boundary along the direction, where it is below the boundary.

    Steer-to-mirror-projection (arXiv 2604.08169): tokens below come to lie as far above. The
    boundary is the reference's own projection, as for `move_to_projection`.

    Args:
        resid: The stream.
        direction: The direction.
        strength: 1 mirrors; 0.5 moves to the boundary.
        reference: An activation on the boundary.

    >>> resid, direction = torch.tensor([[[1.0, 5.0], [1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> mirror_direction.edit(resid, direction, 1.0, torch.tensor([0.0, 3.0]))
    tensor([[[1., 5.],
             [1., 4.]]])
    """
    below = _length_along(reference[None, None], direction) - _length_along(resid, direction)
    return resid + 2 * strength * below.relu() * _unit(direction)


@steering_hook
def affine_direction(
    resid: Resid, direction: Direction, strength: Strength, reference: Direction
) -> Resid:
    """Set the projection on the direction to the reference's, then add `strength` directions.

    With `estimators.negative_mean` as the reference, strength 0 means "no trace of the concept"
    (affine concept editing, arXiv 2411.09003).

    Args:
        resid: The stream.
        direction: The concept's direction.
        strength: How many directions to add.
        reference: An activation whose projection on the direction replaces the stream's.

    >>> resid, direction = torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> affine_direction.edit(resid, direction, 0.5, torch.tensor([5.0, 1.0]))
    tensor([[[1., 3.]]])
    """
    return (
        resid
        - _along(resid, direction)
        + _along(reference[None, None], direction)
        + strength * direction
    )


@steering_hook
def rotate_to_direction(
    resid: Resid, direction: Direction, strength: Strength, reference: Direction
) -> Resid:
    """Rotate the stream by `strength` radians from the reference towards the direction.

    Only the part in the plane of the two rotates, and every token keeps its norm (angular
    steering, arXiv 2510.26243). Where the two are parallel, or one is zero, nothing rotates.

    Args:
        resid: The stream.
        direction: Where to rotate to.
        strength: The angle in radians.
        reference: Where to rotate from.

    >>> resid, direction = torch.tensor([[[1.0, 2.0]]]), torch.tensor([0.0, 4.0])
    >>> quarter_turn = rotate_to_direction.edit(
    ...     resid, direction, torch.pi / 2, torch.tensor([1.0, 0.0])
    ... )
    >>> quarter_turn.round(decimals=3)
    tensor([[[-2.,  1.]]])
    """
    first = _unit(direction)
    rest = reference - einsum(reference, first, "d_model, d_model ->") * first
    rounding = 4 * torch.finfo(rest.dtype).eps * reference.float().norm()
    second = _unit(rest.where(rest.float().norm() > rounding, 0.0))
    along, across = (
        einsum(resid, axis, "batch pos d_model, d_model -> batch pos")[..., None]
        for axis in (first, second)
    )
    angle = torch.as_tensor(strength).to(resid) * (first.any() & second.any())
    turned_along = along * angle.cos() + across * angle.sin()
    turned_across = across * angle.cos() - along * angle.sin()
    return resid + (turned_along - along) * first + (turned_across - across) * second


def restore_norm(before: Resid, after: Resid) -> Resid:
    """Rescale each token to its norm before the edit.

    >>> restore_norm(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 9.0]]]))
    tensor([[[0., 5.]]])
    """
    return after * (_lengths(before) / _lengths(after))  # the ratio never overflows


def restore_grown_norm(before: Resid, after: Resid) -> Resid:
    """CAST's rule: where any token of a row has grown in this pass, restore the whole row's norms.

    Which tokens a pass contains depends on caching, and so does this; `restore_norm` does not.

    >>> before = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    >>> restore_grown_norm(before, before / 2)  # none has grown
    tensor([[[1.5000, 2.0000],
             [0.5000, 0.0000]]])
    """
    grew = (_lengths(after) > _lengths(before)).any(dim=1, keepdim=True)
    return torch.where(grew, restore_norm(before, after), after)


def read_condition(resid: Resid, hook: Any, *, gate: Any, layer: int) -> None:
    """Let a condition's gate read the stream; changes nothing."""
    gate.read(resid, layer)


def in_site_frame(
    activation: Float[Tensor, "batch pos ..."], hook: Any, *, inner: Callable[..., Any], frame: Any
) -> Float[Tensor, "batch pos ..."] | None:
    """Call a hook on a site that the host has in another form (`models.sites.site_frame`)."""
    edited = inner(frame.into(activation), hook)
    return None if edited is None else frame.back(edited).to(activation)


def follow_text(resid: Resid, hook: Any, *, clock: Any) -> None:
    """Let the run's clock see that a pass begins; changes nothing."""
    clock.tick(resid)


def follow_keys(scores: Float[Tensor, "batch head pos key"], hook: Any, *, clock: Any) -> None:
    """Let the run's clock see how long the text is, cached tokens included; changes nothing."""
    clock.count(scores.shape[-1])


def _applied(
    function: Callable[..., Any],
    whose: str,
    resid: Tensor,
    chosen: Tensor | None,
    given: tuple[Any, ...],
) -> Tensor:
    """The result of a function on the stream; a user's function gets copies, and is checked."""
    if getattr(function, "__module__", None) == __name__:
        edited: Tensor = function(resid, *given)
        return edited
    copies = (value.clone() if isinstance(value, Tensor) else value for value in given)
    return _checked(function(resid.clone(), *copies), resid, chosen, whose)


def _checked(edited: Any, resid: Tensor, chosen: Tensor | None, whose: str) -> Tensor:
    """The result of a user's function in the stream's dtype; refused if it cannot replace it."""
    if not isinstance(edited, Tensor) or edited.shape != resid.shape or edited.is_complex():
        returned = (
            f"a {edited.dtype} tensor of shape {tuple(edited.shape)}"
            if isinstance(edited, Tensor)
            else f"{type(edited).__name__} {short_repr(edited)}"
        )
        raise SteerlensError(
            f"{whose} returned {returned}; expected a tensor of the stream's shape "
            f"{tuple(resid.shape)}, as in `return resid + strength * direction`"
        )
    edited = edited.to(resid)
    if edited.isnan().any():
        spoilt = edited.isnan() & ~resid.isnan()
        if chosen is not None:
            spoilt = spoilt & chosen.to(spoilt.device)[..., None]
        if spoilt.any():
            raise SteerlensError(
                f"{whose} returned NaN for {int(spoilt.any(dim=-1).sum())} tokens; guard it "
                "against dividing by zero (a token, or a direction, may be zero)"
            )
    return edited


def _along(resid: Resid, direction: Direction) -> Resid:
    """The projection on the direction; zero for a zero direction."""
    unit = _unit(direction)
    along = einsum(resid, unit, "batch pos d_model, d_model -> batch pos")
    return einsum(along, unit, "batch pos, d_model -> batch pos d_model")


def _length_along(resid: Resid, direction: Direction) -> Float[Tensor, "batch pos 1"]:
    """The signed length of the projection on the direction, in units of the stream."""
    along = einsum(resid, _unit(direction), "batch pos d_model, d_model -> batch pos")
    return along[..., None]


def _lengths(activation: Resid) -> Float[Tensor, "batch pos 1"]:
    """Norm of each token's activation, never zero, safe from overflow in half precision."""
    lengths = activation.float().norm(dim=-1, keepdim=True)
    return lengths.where(lengths > 0, 1.0).to(activation)


def _unit(direction: Direction) -> Direction:
    """The unit direction, computed in float32; a zero direction stays zero."""
    wide = direction.float()
    length = wide.norm()
    return (wide / length.where(length > 0, 1.0)).to(direction)
