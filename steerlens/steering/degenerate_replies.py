"""The warning about steered replies that fall apart."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from steerlens.errors import DegenerateWarning
from steerlens.judges.fluency import TOO_MANY_DEGENERATE
from steerlens.steering.batch_plans import Plan
from steerlens.steering.conditions import Condition
from steerlens.steering.steering import Steering
from steerlens.steering.transcripts import Replies

FEWEST_ROWS = 10
"""Steered replies that a share is told of: with fewer, one reply is more than a tenth."""
FEWEST_TOKENS = 16
"""Length of replies below which a loop cannot be told from a short phrase."""


def warn_if_degenerate(replies: Replies, plans: Sequence[Plan], max_new_tokens: int) -> None:
    """Warn if more than a tenth of the steered replies are empty or repeat themselves.

    Replies are judged by `judges.degenerate`. Rows whose condition did not fire are not counted.
    The settings of a `BatchPlan` are compared with one another, and what compares them says which
    of them break the text; it is not warned of here.

    Args:
        replies: The finished replies.
        plans: How they were steered.
        max_new_tokens: Their greatest length.
    """
    steerings = [plan for plan in plans if isinstance(plan, Steering) and _acts(plan)]
    if not steerings or max_new_tokens < FEWEST_TOKENS or len(replies) < FEWEST_ROWS:
        return
    gates = {gate.condition: gate.open for gate in replies.gates}
    steered = torch.zeros(len(replies), dtype=torch.bool)
    for steering in steerings:
        steered |= _fired(steering, gates, len(replies))
    broken = torch.tensor(replies.degenerate)[steered]
    if len(broken) < FEWEST_ROWS or broken.float().mean() <= TOO_MANY_DEGENERATE:
        return
    warnings.warn(
        f"{int(broken.sum())} of {len(broken)} steered replies ({broken.float().mean():.0%}) are "
        f"degenerate (empty or repeating themselves) under {'; '.join(map(repr, steerings))}: "
        "steer less, at a strength that calibrate_strength(model, steering) finds, or elsewhere",
        DegenerateWarning,
        stacklevel=3,
    )


def _acts(steering: Steering) -> bool:
    return any(steering.strengths) or not steering.adds_up


def _fired(
    steering: Steering, gates: dict[Condition, Bool[Tensor, " row"]], n_rows: int
) -> Bool[Tensor, " row"]:
    if steering.when is None:
        return torch.ones(n_rows, dtype=torch.bool)
    return steering.when.truth(lambda condition: gates[condition]).cpu()
