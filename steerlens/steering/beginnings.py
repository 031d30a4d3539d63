"""What the prompts of a batch begin with, such as a system message, is run once for all of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from steerlens.activations.prefixes import WORTH_ROWS, common_length
from steerlens.models.fast_forward import (
    begin_rows_with,
    decoding_cache,
    forward_pass,
    is_on,
)
from steerlens.models.hooking import placed
from steerlens.models.host import Cache, Model, unmasked
from steerlens.models.tokenizing import TokenRow
from steerlens.shapes import TokenMask
from steerlens.steering import hooks
from steerlens.steering.batch_plans import BatchPlan, Plan, decoding_run, for_rows, steering_of
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.places import At, Generated
from steerlens.steering.positions import Positions
from steerlens.steering.predicates import Predicate
from steerlens.steering.steering import Steering

WORTH_TOKENS = 8
"""How long a common beginning must be to be run on its own."""
_PLACED_BY_MASK = ("rotary", "standard")
"""Positional embeddings that depend on a token's place in its text only, not on its column."""


class Beginning(NamedTuple):
    """The tokens that all rows of a batch begin with."""

    length: int
    rows: list[int]
    """One row for each way in which it is steered."""
    of_row: list[int]
    """Which of these each row of the batch is steered like."""


def common_beginning(rows: Sequence[TokenRow], plans: Sequence[Plan]) -> Beginning | None:
    """What rows begin with, if running it once gives each row the same; None if not worth it.

    A gate may depend on the whole prompt, and so may positions that count from its end, edits of
    the user's own, and norms that are restored by row: these run with every row.

    >>> rows = [TokenRow((*range(20), word)) for word in range(4)]
    >>> common_beginning(rows, [])
    Beginning(length=20, rows=[0], of_row=[0, 0, 0, 0])
    >>> common_beginning(rows, [Steering(vector, positions="last")]) is None
    True
    """
    if not all(_alike_in_beginnings(plan) for plan in plans):
        return None
    texts = [row.ids for row in rows]
    length = min(common_length(min(texts), max(texts)), min(map(len, texts)) - 1)
    number_of: dict[Any, int] = {}
    first: list[int] = []
    of_row: list[int] = []
    for index in range(len(rows)):
        settings = tuple(plan.row_key(index) for plan in plans if isinstance(plan, BatchPlan))
        if settings not in number_of:
            number_of[settings] = len(first)
            first.append(index)
        of_row.append(number_of[settings])
    if length < WORTH_TOKENS or len(rows) < WORTH_ROWS * len(first):
        return None
    return Beginning(length, first, of_row)


@torch.inference_mode()
def run_beginning(
    model: Model,
    rows: Sequence[TokenRow],
    plans: Sequence[Plan],
    mask: TokenMask,
    cache: Cache | None,
) -> int:
    """Fill the KV cache with the rows' common beginning; returns how many columns are done.

    Args:
        model: The model.
        rows: The prompts.
        plans: How they are steered.
        mask: Which tokens of the prompts, padded on the left, are real.
        cache: The batch's empty KV cache; None: nothing is kept, and nothing done.
    """
    beginning = None
    if cache is not None and _can_share(model):
        beginning = common_beginning(rows, plans)
    if beginning is None or cache is None:
        return 0
    ids = rows[0].ids[: beginning.length]
    tokens = torch.tensor([ids] * len(beginning.rows), device=model.cfg.device)
    run = decoding_run(
        [for_rows(plan, beginning.rows) for plan in plans],
        [rows[row] for row in beginning.rows],
        torch.ones(tokens.shape, dtype=torch.bool),
        model,
    )
    assert isinstance(run.clock, DecodingClock)
    run.clock.show(0, beginning.length, tokens)
    shared = decoding_cache(model, len(tokens), beginning.length, fast=True)
    forward_pass(
        model,
        lambda: model(**unmasked(model, tokens, shared), stop_at_layer=model.cfg.n_layers),
        placed(model, run.hooks()),
        fast=True,
    )
    of_row: Int[Tensor, " row"] = torch.tensor(beginning.of_row, device=tokens.device)
    begun = mask[:, : beginning.length].to(tokens.device).int()
    begin_rows_with(cache, shared, of_row, begun)
    return beginning.length


def _can_share(model: Model) -> bool:
    """Whether places do not depend on padding, and no hook of the user's counts rows or tokens."""
    if not is_on(model) or model.cfg.positional_embedding_type not in _PLACED_BY_MASK:
        return False
    return not any(point.fwd_hooks for point in model.hook_dict.values())


def _alike_in_beginnings(plan: Plan) -> bool:
    """Whether a plan's edits of a prompt's first tokens depend on these tokens alone."""
    steering: Steering = steering_of(plan)
    own_places = isinstance(plan, BatchPlan) and plan.where is not None
    return (
        steering.when is None
        and not own_places
        and _same_in_every_prompt(steering.positions)
        and edits_each_token_alone(steering)
    )


def edits_each_token_alone(steering: Steering) -> bool:
    """Whether what is done to a token is sure not to depend on the others of its forward pass.

    >>> edits_each_token_alone(steering)
    True
    """
    return (
        steering.when_token is None  # sinks are told by the whole prompt's norms
        and steering.norm_keeper in (None, hooks.restore_norm)
        and getattr(steering.edit.edit, "__module__", None) == hooks.__name__  # type: ignore[attr-defined]
    )


def _same_in_every_prompt(positions: Positions) -> bool:
    """Whether positions do not depend on where a prompt ends, among its first tokens."""
    if isinstance(positions, Predicate):
        leaves = positions.leaves()
        return all(
            isinstance(leaf, Generated)
            or (isinstance(leaf, At) and _same_in_every_prompt(leaf.positions))
            for leaf in leaves
        )
    return isinstance(positions, str) and positions in ("all", "prompt", "generated")
