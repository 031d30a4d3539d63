"""Several steerings, and their rows, as one batch."""

from collections.abc import Sequence
from copy import copy
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.steering.steering import Steering


def per_row(steering: Steering) -> dict[str, Tensor]:
    """The settings that a steering has for each row."""
    settings = {"strength": steering.strength, "positions": steering.positions}
    return {
        name: value
        for name, value in settings.items()
        if isinstance(value, Tensor) and value.ndim == 2
    }


def for_rows(steering: Steering, rows: Sequence[int]) -> Steering:
    """The steering of a batch that is made of these rows of the one it was planned for."""
    part = copy(steering)  # no `replace`: these rows may well have nothing to be steered
    for name, of in per_row(steering).items():
        object.__setattr__(part, name, of[list(rows)])
    return part


def stacked(plans: Sequence[Steering | None], n_rows: int) -> list[Steering]:
    """Several plans for the same `n_rows` prompts as one batch, plan after plan; None is unsteered.

    Row `i × n_rows + j` of the batch is row j as plan i alone would steer it. Plans that differ in
    nothing but strength share their hooks.
    """
    groups: dict[tuple[Any, ...], list[tuple[int, Steering]]] = {}
    for index, plan in enumerate(plans):
        if plan is not None:
            _require_alike_rows(plan)
            alike = (plan.layers_steered, *(id(getattr(plan, name)) for name in _FIXED))
            groups.setdefault(alike, []).append((index, plan))
    together = []
    for members in groups.values():
        first = members[0][1]
        strength = torch.zeros(len(plans), n_rows, len(first.layers_steered))
        for index, plan in members:
            strength[index] = torch.as_tensor(plan.strength)
        if strength.any():
            together.append(replace(first, strength=strength.flatten(0, 1)))
    return together


_FIXED = [f.name for f in fields(Steering) if f.name not in ("layers", "strength")]


def _require_alike_rows(plan: Steering) -> None:
    """Refuse settings for the rows of one certain batch."""
    strength, positions = torch.as_tensor(plan.strength), plan.positions
    if strength.ndim == 2 and len(strength) != 1:
        raise SteerlensError(
            f"{plan} has strengths for {len(strength)} rows; needed is one number, or one row of "
            "strengths [1, layer], that holds for every prompt"
        )
    if isinstance(positions, Tensor) and positions.ndim == 2:
        raise SteerlensError(
            f"{plan} has a positions mask for {len(positions)} rows; needed are positions that "
            "hold for every prompt"
        )
