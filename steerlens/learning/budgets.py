"""A learned vector at a budget of side effects: as long as it may be, and no longer."""

from dataclasses import replace
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import MET, N_TEXTS, at_kl_budget
from steerlens.evaluation.kl_search import percentiles
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.models.host import Model
from steerlens.models.tokenizing import tokenize
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

TOLERANCE = 0.02
"""How far below the budget a shortened vector may lie, as a share of it."""


def within_budget(
    model: Model, steering: Steering, kl_budget: float | None
) -> tuple[SteeringVector, dict[str, Any]]:
    """The steering's vector, shortened if at strength 1 it exceeds the budget; and what it spends.

    Args:
        model: The model.
        steering: At strength 1, with the positions it was learned for.
        kl_budget: 95th percentile of KL per token on neutral text, in nats; None: nothing is read.

    Raises:
        SteerlensError: If the shortest vectors tried still exceed the budget.

    >>> shorter, spent = within_budget(model, Steering(vector), 0.01)
    >>> spent["kl_p95"] <= 0.01
    True
    """
    vector = steering.vector
    if kl_budget is None:
        return vector, {}
    rows = tokenize(model, neutral_texts()[:N_TEXTS], chat=False)
    [kl] = percentiles(model, rows, [steering], progress=False)
    if kl <= kl_budget:
        return vector, {"kl_p95": kl, "shortened_to": 1.0}
    [found] = at_kl_budget(model, [steering], kl_budget, None, TOLERANCE, progress=False)
    if found.status != MET:
        raise SteerlensError(
            f"got kl_budget={kl_budget:g}, which {steering} exceeds at every length tried, down to "
            f"{found.tried.strength.min():.3g} of what was learned; give a larger budget"
        )
    shorter = replace(vector, directions=vector.directions * found.strength)
    return shorter, {"kl_p95": found.kl, "shortened_to": found.strength}
