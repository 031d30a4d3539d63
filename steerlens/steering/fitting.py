"""Whether plans fit a model and prompts: asked before any work, by all who run them."""

from collections.abc import Sequence

from steerlens.activations.provenance import check_provenance
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.tokenizing import TokenRow
from steerlens.steering.batch_plans import BatchPlan, Plan, Plans, as_plans, steering_of
from steerlens.steering.positions import can_select


def require_fit(model: Model, plans: Plans, rows: Sequence[TokenRow] = (), n_new: int = 0) -> None:
    """Refuse what could not run to its end, or would do nothing.

    Vectors must be of this model; prompts with `n_new` tokens more must fit into its context; and
    each plan must touch a token that the model reads. Without rows, only the vectors are looked at.
    """
    for index, row in enumerate(rows):
        if len(row.ids) + n_new > model.cfg.n_ctx:
            raise SteerlensError(
                f"prompt {index} has {len(row.ids)} tokens and {n_new} new ones were "
                f"asked for, but {model.cfg.model_name}'s context holds {model.cfg.n_ctx}"
            )
    for plan in as_plans(plans):
        steering = steering_of(plan)
        check_provenance(model, steering.vector, steering.site_written, steering.layers_steered)
        for one in steering.conditions:
            check_provenance(model, one.vector, one.site_read, one.layers_read)
        if rows:
            _require_acting(plan, rows, n_new)


def _require_acting(plan: Plan, rows: Sequence[TokenRow], n_new: int) -> None:
    if isinstance(plan, BatchPlan) and plan.n_rows != len(rows):
        raise SteerlensError(
            f"got {plan} for {len(rows)} prompts; expected one row for each prompt"
        )
    if not any(touches(plan, row, index, n_new) for index, row in enumerate(rows)):
        longest = max(len(row.ids) for row in rows)
        raise SteerlensError(
            f"{plan} would touch no token of these prompts (of {longest} tokens at most) and "
            f"{n_new} new ones; change positions="
        )


def touches(plan: Plan, row: TokenRow, index: int, n_new: int) -> bool:
    """Whether the plan selects any token of a prompt, or of `n_new` new ones, that is read."""
    steering = steering_of(plan)
    own = plan.where if isinstance(plan, BatchPlan) else None
    positions = steering.positions if own is None else own[index]
    return can_select(positions, steering.skip_bos, len(row.ids), max(1, n_new), row.reply_start)
