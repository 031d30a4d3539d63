"""Whether plans fit a model and prompts: checked before anything runs."""

from collections.abc import Sequence

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow
from steerlens.steering.batch_plans import BatchPlan, Plan, Plans, as_plans, steering_of
from steerlens.steering.positions import can_select


def require_fit(model: Model, plans: Plans, rows: Sequence[TokenRow] = (), n_new: int = 0) -> None:
    """Refuse plans that could not run to the end, or would do nothing.

    Args:
        model: The model that is to run; the vectors must be of it.
        plans: The plans to check.
        rows: The prompts, each of which must fit into the context with `n_new` more tokens; every
            plan must touch a token that the model reads. Without rows, only vectors are checked.
        n_new: How many tokens are to be generated.
    """
    require_room(model, rows, n_new)
    for plan in as_plans(plans):
        steering = steering_of(plan)
        check_provenance(model, steering.vector, steering.site_written, steering.layers_steered)
        for condition in (*steering.conditions, *steering.token_conditions):
            check_provenance(model, condition.vector, condition.site_read, condition.layers_read)
        if rows:
            require_acting(plan, rows, n_new)


def require_room(model: Model, rows: Sequence[TokenRow], n_new: int) -> None:
    """Refuse prompts that do not fit into the context with so many new tokens.

    >>> require_room(load_model(), [TokenRow((1, 7))], n_new=10)
    """
    for index, row in enumerate(rows):
        if len(row.ids) + n_new > model.cfg.n_ctx:
            raise SteerlensError(
                f"got prompt {index} of {len(row.ids)} tokens and {n_new} new ones, but "
                f"{model.cfg.model_name}'s context holds {model.cfg.n_ctx}; shorten the prompt or "
                "ask for fewer new tokens"
            )


def require_acting(plan: Plan, rows: Sequence[TokenRow], n_new: int) -> None:
    """Refuse a plan that would touch no token of these prompts and of so many new ones."""
    if isinstance(plan, BatchPlan) and plan.n_rows != len(rows):
        raise SteerlensError(
            f"got {plan} for {len(rows)} prompts; expected one row for each prompt"
        )
    if not any(touches(plan, row, index, n_new) for index, row in enumerate(rows)):
        longest = max(len(row.ids) for row in rows)
        raise SteerlensError(
            f"{plan} would touch no token of these prompts (of at most {longest} tokens) and of "
            f"{n_new} new ones; change positions="
        )


def touches(plan: Plan, row: TokenRow, index: int, n_new: int) -> bool:
    """Whether a plan steers any token that the model reads.

    Args:
        plan: The plan.
        row: One prompt.
        index: The prompt's row in the batch.
        n_new: How many tokens follow it.
    """
    steering = steering_of(plan)
    row_masks = plan.where if isinstance(plan, BatchPlan) else None
    positions = steering.positions if row_masks is None else row_masks[index]
    return can_select(positions, steering.skip_bos, row.ids, max(1, n_new), row.reply_start)
