"""One steering whose strength, or place, differs from row to row of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.models.hooking import NamedHook
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow, reply_starts
from steerlens.steering.clocks import DecodingClock, PlainHooksClock
from steerlens.steering.steering import RowSettings, Run, Steering


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """A steering for the rows of one batch: each row by its own strengths, at its own places.

    >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
    >>> BatchPlan(Steering(v), torch.tensor([[0.0, 0.0], [1.5, 1.0]])).n_rows
    2
    """

    steering: Steering
    strength: Float[Tensor, "row layer"]
    """In place of the steering's own strength."""
    where: Bool[Tensor, "row place"] | None = None
    """In place of the steering's positions: a mask over the tokens of each row."""
    acts: Bool[Tensor, "row layer"] | None = None
    """Which rows are steered at all; None: where the strength is not zero. Other rows are left
    alone, whatever the edit (clamping to 0, say, is an edit)."""

    def __post_init__(self) -> None:
        strength, n_layers = self.strength, len(self.steering.layers_steered)
        if strength.ndim != 2 or strength.shape[1] != n_layers or not strength.isfinite().all():
            raise SteerlensError(
                f"got strengths of shape {tuple(strength.shape)}; expected a matrix [row, layer] "
                f"of finite numbers for the {n_layers} steered layers"
            )
        for name, mask, columns in (("where", self.where, None), ("acts", self.acts, n_layers)):
            if mask is None:
                continue
            fits = mask.dtype == torch.bool and mask.ndim == 2 and len(mask) == len(strength)
            if not fits or columns not in (None, mask.shape[1]):
                raise SteerlensError(
                    f"got {name} as a {mask.dtype} tensor of shape {tuple(mask.shape)}; expected "
                    f"a Boolean mask with one line for each of the {len(strength)} rows"
                )

    @property
    def n_rows(self) -> int:
        """How many prompts it is for."""
        return len(self.strength)

    @property
    def settings(self) -> RowSettings:
        """What differs between the rows."""
        acts = self.strength != 0 if self.acts is None else self.acts
        return RowSettings(self.strength, acts, self.where)

    def of_rows(self, rows: Sequence[int]) -> "BatchPlan":
        """The plan of a batch that is made of these rows of this one's."""
        index = list(rows)
        where = None if self.where is None else self.where[index]
        acts = None if self.acts is None else self.acts[index]
        return BatchPlan(self.steering, self.strength[index], where, acts)

    def row_key(self, row: int) -> tuple[Any, ...]:
        """Equal for rows that are steered alike."""
        settings = (self.strength, self.where, self.acts)
        return tuple(None if of is None else tuple(of[row].tolist()) for of in settings)

    def hooks(
        self, prompt_mask: Bool[Tensor, "row pos"] | None = None, model: Model | None = None
    ) -> list[NamedHook]:
        """Fresh hooks for `model.hooks(fwd_hooks=...)`, as `Steering.hooks` gives them."""
        clock = PlainHooksClock(prompt_mask, get_ident())
        return Run([(self.steering, self.settings)], clock, model).hooks()

    def __repr__(self) -> str:
        own = ", each at its own places" if self.where is not None else ""
        return f"BatchPlan({self.n_rows} rows of {self.steering}{own})"


Plan = Steering | BatchPlan
Plans = Plan | Sequence[Plan] | None


def as_plans(plans: Plans) -> list[Plan]:
    """One plan, several or none as a list."""
    return [plans] if isinstance(plans, Steering | BatchPlan) else list(plans or ())


def steering_of(plan: Plan) -> Steering:
    """What is done, apart from what differs by row."""
    return plan.steering if isinstance(plan, BatchPlan) else plan


def for_rows(plan: Plan, rows: Sequence[int]) -> Plan:
    """The plan of a batch that is made of these rows of the one it was made for."""
    return plan.of_rows(rows) if isinstance(plan, BatchPlan) else plan


def decoding_run(
    plans: Sequence[Plan],
    rows: Sequence[TokenRow],
    mask: Bool[Tensor, "row pos"],
    model: Model,
    copies: int = 1,
) -> Run:
    """The run of plans on a batch of prompts (`copies` of them) whose forward passes are ours."""
    start: Int[Tensor, " row"] | None = reply_starts(rows)
    clock = DecodingClock(mask.repeat(copies, 1), None if start is None else start.repeat(copies))
    parts = [
        (steering_of(plan), plan.settings if isinstance(plan, BatchPlan) else None)
        for plan in plans
    ]
    return Run(parts, clock, model)


def stacked(plans: Sequence[Steering | None], n_rows: int) -> list[BatchPlan]:
    """Several steerings of the same `n_rows` prompts as one batch, one after the other.

    Row `i × n_rows + j` of the batch is row j as steering i alone would steer it; None is
    unsteered. Steerings that differ in nothing but strength share their hooks.
    """
    groups: list[list[tuple[int, Steering]]] = []
    for index, plan in enumerate(plans):
        if plan is None:
            continue
        alike = next((group for group in groups if _differ_in_strength(plan, group[0][1])), None)
        if alike is None:
            groups.append([(index, plan)])
        else:
            alike.append((index, plan))
    return [_side_by_side(group, len(plans), n_rows) for group in groups]


def _side_by_side(group: Sequence[tuple[int, Steering]], n_plans: int, n_rows: int) -> BatchPlan:
    first = group[0][1]
    strength = torch.zeros(n_plans, n_rows, len(first.layers_steered))
    acts = torch.zeros_like(strength, dtype=torch.bool)
    for index, plan in group:
        strength[index] = torch.tensor(plan.strengths)
        acts[index] = True
    return BatchPlan(first, strength.flatten(0, 1), acts=acts.flatten(0, 1))


def _differ_in_strength(one: Steering, other: Steering) -> bool:
    """Whether they are the same in all else."""
    names = [field.name for field in fields(Steering) if field.name != "strength"]
    return all(_same(getattr(one, name), getattr(other, name)) for name in names)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one is other or bool(one == other)
