"""Checks of what a steering is made with, before anything is done with it."""

from inspect import signature
from typing import Any

import torch

from steerlens.errors import SteerlensError, short_repr
from steerlens.steering.predicates import Predicate
from steerlens.steering.soft_gates import SoftGate
from steerlens.vectors.vector import SteeringVector


def require_kinds(steering: Any) -> None:
    """Refuse arguments of another kind, which would fail later, or change nothing in silence."""
    fields: dict[str, tuple[Any, bool, str]] = {
        "vector": (
            steering.vector,
            isinstance(steering.vector, SteeringVector),
            "a SteeringVector",
        ),
        "edit": (
            steering.edit,
            callable(steering.edit),
            "a function, such as hooks.add_direction",
        ),
        "when": (
            steering.when,
            isinstance(steering.when, Predicate | SoftGate | None),
            "a Condition, a combination of conditions, a SoftGate, or None",
        ),
        "when_token": (
            steering.when_token,
            isinstance(steering.when_token, Predicate | SoftGate | None),
            "a Condition, a combination of conditions and places, a SoftGate, or None",
        ),
        "schedule": (
            steering.schedule,
            steering.schedule is None or callable(steering.schedule),
            "a function (age) -> factor, such as Decay(half_life=20), or None",
        ),
        "keep_norm": (
            steering.keep_norm,
            isinstance(steering.keep_norm, bool) or callable(steering.keep_norm),
            "True, False or a function (before, after) -> after",
        ),
        "reference": (
            steering.reference,
            isinstance(steering.reference, SteeringVector | None),
            "a SteeringVector or None",
        ),
    }
    for name, (value, fits, expected) in fields.items():
        if not fits:
            raise SteerlensError(f"got {name}={short_repr(value)}; expected {expected}")


def checked_strength(strength: Any, n_layers: int) -> float | tuple[float, ...]:
    """The strength as one finite number, or one for each layer."""
    try:
        numbers = torch.as_tensor(strength)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    fits = numbers.ndim == 0 or tuple(numbers.shape) == (n_layers,)
    if not fits or numbers.dtype == torch.bool or numbers.is_complex():
        raise SteerlensError(
            f"got strength={short_repr(strength)}; expected one number, or one for each of the "
            f"{n_layers} steered layers (for one per row of a batch, use a BatchPlan)"
        )
    if not numbers.isfinite().all():
        raise SteerlensError(f"got strength={short_repr(strength)}; expected finite numbers")
    if numbers.ndim:
        return tuple(map(float, numbers.tolist()))
    return strength if isinstance(strength, int | float) else float(numbers)


def require_edit_arguments(edit: Any, reference: SteeringVector | None) -> None:
    """Refuse an edit that does not take (resid, direction, strength) and, if given, a reference."""
    needed = ("resid", "direction", "strength", "reference")[: 3 if reference is None else 4]
    try:
        signature(edit.edit).bind(*needed)
    except TypeError as error:
        parameters = ", ".join(signature(edit.edit).parameters)
        raise SteerlensError(
            f"got the edit {edit.__name__}({parameters}); expected one that can be called with "
            f"({', '.join(needed)}): "
            + (
                "give Steering a reference= if it needs one"
                if reference is None
                else "leave reference= out, or give an edit that takes it"
            )
        ) from error
