"""The named functions that TransformerLens calls: edits of the stream, and what reads it.

An edit is `(resid, direction, strength) -> resid` in one to three lines. `steering_hook` gives it
the host's signature; which rows and tokens, kept norms and dtype are settled there, once.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr

Strength = float | Float[Tensor, "batch 1 1"]
Edit = Callable[..., Float[Tensor, "batch pos d_model"]]
"""`(resid, direction, strength) -> resid`; strength is a number, or one per row."""
Where = Callable[[], Bool[Tensor, "#batch #pos"] | None]
"""Which tokens of which rows are edited in the pass at hand; None stands for all."""
KeepNorm = Callable[[Tensor, Tensor], Tensor]
"""`(before, after) -> after`, at the wanted length."""
PerRow = Callable[[], Float[Tensor, " batch"]]
"""The strength for each row of the pass at hand."""


def steering_hook(edit: Edit) -> Callable[..., Any]:
    """Give an edit the signature `(resid, hook, *, ...)` that the host calls, under its own name.

    The edit itself stays reachable as `.edit`.
    """

    @wraps(edit)
    def hooked(
        resid: Float[Tensor, "batch pos d_model"],
        hook: Any,
        *,
        direction: Float[Tensor, " d_model"],
        strength: float | PerRow,
        where: Where,
        keep_norm: KeepNorm | None = None,
        reference: Float[Tensor, " d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"] | None:
        if resid.shape[-1] != direction.shape[0]:
            raise SteerlensError(
                f"the direction is {direction.shape[0]} wide, but the stream {resid.shape[-1]}; "
                "the vector belongs to another model"
            )
        chosen = where()
        scale = strength().to(resid)[:, None, None] if callable(strength) else strength
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
    return hooked


@steering_hook
def add_direction(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Strength,
) -> Float[Tensor, "batch pos d_model"]:
    """Shift the stream by `strength` times the direction."""
    return resid + strength * direction


@steering_hook
def ablate_direction(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Strength,
) -> Float[Tensor, "batch pos d_model"]:
    """Remove `strength` times the part of the stream that lies along the direction."""
    return resid - strength * _along(resid, direction)


@steering_hook
def ablate_then_add(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Strength,
) -> Float[Tensor, "batch pos d_model"]:
    """Replace the part of the stream along the direction by `strength` times the direction."""
    return resid - _along(resid, direction) + strength * direction


@steering_hook
def clamp_direction(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Strength,
) -> Float[Tensor, "batch pos d_model"]:
    """Set the stream's length along the direction to exactly `strength`, in units of the stream."""
    return resid - _along(resid, direction) + strength * _unit(direction)


@steering_hook
def affine_direction(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Strength,
    reference: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """Set the part along the direction to the reference's, then add `strength` directions.

    With `directions.negative_mean` as the reference, strength 0 stands for "no trace of the
    concept" (affine concept editing, arXiv 2411.09003).
    """
    return (
        resid
        - _along(resid, direction)
        + _along(reference[None, None], direction)
        + strength * direction
    )


@steering_hook
def rotate_to_direction(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, " d_model"],
    strength: Strength,
    reference: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """Turn the stream by `strength` radians from the reference towards the direction.

    Only the part in the plane of the two turns, and every token keeps its length (angular
    steering, arXiv 2510.26243). Where the two are parallel, or one is zero, nothing turns.
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


def restore_norm(
    before: Float[Tensor, "batch pos d_model"], after: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Scale each token back to the length that it had before the edit."""
    return after * (_lengths(before) / _lengths(after))  # the ratio never overflows


def restore_grown_norm(
    before: Float[Tensor, "batch pos d_model"], after: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """CAST's rule: where any token of a row has grown in this pass, restore all of the row's.

    What a pass shows depends on caching, and so does this; `restore_norm` does not.
    """
    grew = (_lengths(after) > _lengths(before)).any(dim=1, keepdim=True)
    return torch.where(grew, restore_norm(before, after), after)


def read_condition(
    resid: Float[Tensor, "batch pos d_model"], hook: Any, *, gate: Any, layer: int
) -> None:
    """Let a condition's gate see the stream; changes nothing."""
    gate.read(resid, layer)


def in_site_frame(
    activation: Float[Tensor, "batch pos ..."], hook: Any, *, inner: Callable[..., Any], frame: Any
) -> Float[Tensor, "batch pos ..."] | None:
    """Call a hook on a site that the host shows in another form (`models.site_frame`)."""
    edited = inner(frame.into(activation), hook)
    return None if edited is None else frame.back(edited).to(activation)


def follow_text(resid: Float[Tensor, "batch pos d_model"], hook: Any, *, clock: Any) -> None:
    """Let the run's clock see which tokens this pass shows; changes nothing."""
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
    """What a function makes of the stream; one of the user's own gets copies, and is checked."""
    if getattr(function, "__module__", None) == __name__:
        made: Tensor = function(resid, *given)
        return made
    copies = (one.clone() if isinstance(one, Tensor) else one for one in given)
    return _checked(function(resid.clone(), *copies), resid, chosen, whose)


def _checked(edited: Any, resid: Tensor, chosen: Tensor | None, whose: str) -> Tensor:
    """What a function of the user's gave back, in the stream's dtype, if it can stand for it."""
    if not isinstance(edited, Tensor) or edited.shape != resid.shape or edited.is_complex():
        given = (
            f"a {edited.dtype} tensor of shape {tuple(edited.shape)}"
            if isinstance(edited, Tensor)
            else f"{type(edited).__name__} {short_repr(edited)}"
        )
        raise SteerlensError(
            f"{whose} returned {given}; expected a tensor of the stream's shape "
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


def _along(
    resid: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """The projection on the direction; on a zero direction it is zero."""
    unit = _unit(direction)
    along = einsum(resid, unit, "batch pos d_model, d_model -> batch pos")
    return einsum(along, unit, "batch pos, d_model -> batch pos d_model")


def _lengths(activation: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos 1"]:
    """Length of each token's activation, never zero, safe from overflow in half precision."""
    lengths = activation.float().norm(dim=-1, keepdim=True)
    return lengths.where(lengths > 0, 1.0).to(activation)


def _unit(direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """At length one, computed in float32; a zero direction stays zero."""
    wide = direction.float()
    length = wide.norm()
    return (wide / length.where(length > 0, 1.0)).to(direction)
