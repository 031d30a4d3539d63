"""One steering whose strengths or positions differ between the rows of a batch."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.models.hooking import NamedHook
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow, reply_starts, user_words
from steerlens.shapes import TokenMask
from steerlens.steering.clocks import DecodingClock, PlainHooksClock
from steerlens.steering.steering import RowSettings, Run, Steering


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """A steering for one batch, with strengths and positions of each row's own.

    Args:
        steering: What all rows share.
        strength: Replaces the steering's strength: one row for each prompt, one column for each
            steered layer, with the layer's own strength (as `Steering.strengths` gives it).
        where: Replaces the steering's positions: a Boolean mask over the tokens of each prompt.
        acts: Which rows are steered at which layers; None: where the strength is not zero. Other
            rows are not edited at all (clamping to 0, say, is an edit).

    >>> v = SteeringVector(torch.eye(2), layers=(0, 1))
    >>> BatchPlan(Steering(v), torch.tensor([[0.0, 0.0], [1.5, 1.0]])).n_rows
    2
    """

    steering: Steering
    strength: Float[Tensor, "batch layer"]
    where: Bool[Tensor, "batch place"] | None = None
    acts: Bool[Tensor, "batch layer"] | None = None

    def __post_init__(self) -> None:
        strength, n_layers = self.strength, len(self.steering.layers_steered)
        if strength.ndim != 2 or strength.shape[1] != n_layers or not strength.isfinite().all():
            raise SteerlensError(
                f"got strengths of shape {tuple(strength.shape)}; expected a matrix [batch, layer] "
                f"of finite numbers for the {n_layers} steered layers"
            )
        for name, mask, columns in (("where", self.where, None), ("acts", self.acts, n_layers)):
            if mask is None:
                continue
            fits = mask.dtype == torch.bool and mask.ndim == 2 and len(mask) == len(strength)
            if not fits or columns not in (None, mask.shape[1]):
                raise SteerlensError(
                    f"got {name} as a {mask.dtype} tensor of shape {tuple(mask.shape)}; expected "
                    f"a Boolean mask with one row for each of the {len(strength)} rows of strength"
                )

    @property
    def n_rows(self) -> int:
        """How many prompts the plan is for."""
        return len(self.strength)

    @property
    def settings(self) -> RowSettings:
        """The strengths and positions that differ between rows."""
        acts = self.strength != 0 if self.acts is None else self.acts
        return RowSettings(self.strength, acts, self.where)

    def of_rows(self, rows: Sequence[int]) -> "BatchPlan":
        """The plan of a batch made of these rows, in this order."""
        index = list(rows)
        where = None if self.where is None else self.where[index]
        acts = None if self.acts is None else self.acts[index]
        return BatchPlan(self.steering, self.strength[index], where, acts)

    def row_key(self, row: int) -> tuple[Any, ...]:
        """A key that is equal for rows with equal settings."""
        settings = (self.strength, self.where, self.acts)
        return tuple(None if values is None else tuple(values[row].tolist()) for values in settings)

    def hooks(
        self, prompt_mask: TokenMask | None = None, model: Model | None = None
    ) -> list[NamedHook]:
        """Fresh hooks for `model.hooks(fwd_hooks=...)`, as `Steering.hooks` makes them."""
        clock = PlainHooksClock(prompt_mask, get_ident())
        return Run([(self.steering, self.settings)], clock, model).hooks()

    def __repr__(self) -> str:
        positions = ", each at its own positions" if self.where is not None else ""
        return f"BatchPlan({self.n_rows} rows of {self.steering}{positions})"


Plan = Steering | BatchPlan
"""How a batch is steered."""
Plans = Plan | Sequence[Plan] | None
"""One plan, several at once, or None: unsteered."""


def as_plans(plans: Plans) -> list[Plan]:
    """Plans as a list, empty for None."""
    if isinstance(plans, Steering | BatchPlan):
        return [plans]
    listed: list[Any] = (
        [] if plans is None else list(plans) if isinstance(plans, list | tuple) else [plans]
    )
    wrong = [plan for plan in listed if not isinstance(plan, Steering | BatchPlan)]
    if wrong:
        raise SteerlensError(
            f"got {short_repr(wrong[0])} as a steering; expected a Steering, such as "
            "Steering(vector, layers=[2, 3], strength=1.0), a BatchPlan, or a list of these"
        )
    return listed


def steering_of(plan: Plan) -> Steering:
    """The steering that all rows of a plan share."""
    return plan.steering if isinstance(plan, BatchPlan) else plan


def for_rows(plan: Plan, rows: Sequence[int]) -> Plan:
    """The plan of a batch made of these rows of the plan's batch."""
    return plan.of_rows(rows) if isinstance(plan, BatchPlan) else plan


def decoding_run(
    plans: Sequence[Plan],
    rows: Sequence[TokenRow],
    mask: TokenMask,
    model: Model,
    copies: int = 1,
) -> Run:
    """A run whose forward passes are ours, each announced to its clock.

    Args:
        plans: What to do; all act in every forward pass.
        rows: The prompts.
        mask: Which tokens of the padded prompts are real.
        model: The model that runs.
        copies: How often the prompts are repeated in the batch, one copy after the other.
    """
    known = (reply_starts(rows), user_words(rows))
    repeated = (None if of is None else torch.cat([of] * copies) for of in known)
    clock = DecodingClock(mask.repeat(copies, 1), *repeated)
    parts = [
        (steering_of(plan), plan.settings if isinstance(plan, BatchPlan) else None)
        for plan in plans
    ]
    return Run(parts, clock, model)


def stacked(plans: Sequence[Steering | None], n_rows: int) -> list[BatchPlan]:
    """Several steerings of the same prompts as one batch: the prompts repeated for each steering.

    Row `i × n_rows + j` of the batch is prompt j, steered as steering i alone would steer it.
    Steerings that differ only in strength share their hooks.

    Args:
        plans: The steerings; None is unsteered.
        n_rows: How many prompts there are.

    >>> stronger = Steering(vector, strength=0.4, relative=True)
    >>> [plan] = stacked([None, steering, stronger], n_rows=2)
    >>> plan.strength[:, 0]
    tensor([0.0000, 0.0000, 0.1000, 0.1000, 0.2000, 0.2000])
    """
    groups: list[list[tuple[int, Steering]]] = []
    for index, plan in enumerate(plans):
        if plan is None:
            continue
        same_group = next(
            (group for group in groups if equal_but_for({"strength"}, plan, group[0][1])), None
        )
        if same_group is None:
            groups.append([(index, plan)])
        else:
            same_group.append((index, plan))
    return [_side_by_side(group, len(plans), n_rows) for group in groups]


def _side_by_side(group: Sequence[tuple[int, Steering]], n_plans: int, n_rows: int) -> BatchPlan:
    first = group[0][1]
    strength = torch.zeros(n_plans, n_rows, len(first.layers_steered))
    acts = torch.zeros_like(strength, dtype=torch.bool)
    for index, plan in group:
        strength[index] = torch.tensor(plan.strengths)
        acts[index] = True
    return BatchPlan(first, strength.flatten(0, 1), acts=acts.flatten(0, 1))


def equal_but_for(names: Set[str], first: Steering, second: Steering) -> bool:
    """Whether two steerings differ at most in fields of these names.

    >>> from dataclasses import replace
    >>> equal_but_for({"strength"}, steering, replace(steering, strength=2))
    True
    """
    compared = (field.name for field in fields(Steering) if field.init and field.name not in names)
    return all(_same(getattr(first, name), getattr(second, name)) for name in compared)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return False
    return first is second or bool(first == second)
