"""Effect against side effect → figures: the Pareto front, and strengths at a KL budget."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from steerlens.dashboards.results import (
    Calibrations,
    budgets,
    trade_offs,
)
from steerlens.dashboards.tables import (
    PARETO,
    checked,
    require_few,
)
from steerlens.dashboards.theme import (
    CHOSEN,
    FLOOR,
    LINES,
    error_bars,
    line_style,
    plain,
    titled,
)
from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import MET, Suggestion
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.sweep_store import Sweep

MOST_POINTS = 400
"""Settings in a scatter beside the front; more are taken together on a grid."""


def pareto(result: Evaluation | Suggestion | Sweep | pd.DataFrame) -> go.Figure:
    """Effect against side effect; the settings that no other beats are joined.

    Args:
        result: an evaluation or a suggestion (side effect: KL to the unsteered model); a sweep (its
            first judge against the share of degenerate replies); or a table of name, strength,
            effect, low, high, kl.
    """
    table, side_effect = trade_offs(result)
    given = checked(table, PARETO).dropna(subset=["kl"])
    rows = given.dropna(subset=["effect"])
    if rows.empty:
        raise SteerlensError("no row has both an effect and a kl; there is nothing to draw")
    best = pareto_front(rows["kl"].to_numpy(), rows["effect"].to_numpy())
    front, others = rows[best].sort_values("kl"), rows[~best]
    thinned = _on_a_grid(others)
    figure = go.Figure()
    for part, name, color, mode in (
        (thinned, "settings", LINES[0], "markers"),
        (front, "Pareto front", CHOSEN, "lines+markers"),
    ):
        figure.add_scatter(
            x=part["kl"],
            y=part["effect"],
            error_y=error_bars(part["effect"], part["low"], part["high"]),
            mode=mode,
            name=name,
            showlegend=True,
            marker={
                "color": color,
                "size": 9,
                "symbol": "circle" if part is thinned else "diamond",
            },
            line={"color": color, "shape": "hv"},
            customdata=np.stack([part["name"].map(plain), part["strength"].map("{:g}".format)], -1),
            hovertemplate="%{customdata[0]}, strength %{customdata[1]}<br>effect %{y:.3f}, "
            "side effect %{x:.4f}<extra></extra>",
        )
    figure.update_xaxes(title=side_effect, rangemode="tozero")
    figure.update_yaxes(title="effect")
    figure.add_hline(0, line={"color": FLOOR, "width": 1})
    empty = len(table) - len(rows)
    return titled(
        figure,
        "Effect against side effect",
        f"{len(rows):,} settings, {int(best.sum())} on the front",
        f"{empty} empty (NaN)" if empty else "",
        f"the other {len(others):,} averaged on a grid" if len(thinned) < len(others) else "",
    )


def pareto_front(
    kl: Float[np.ndarray, " setting"], effect: Float[np.ndarray, " setting"]
) -> Bool[np.ndarray, " setting"]:
    """Which settings no other beats: at least the effect for at most the KL, one of them better.

    >>> pareto_front(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.9]))
    array([ True, False,  True])
    """
    order = np.lexsort([-effect, kl])
    best = np.zeros(len(kl), dtype=bool)
    highest, at = -np.inf, np.nan
    for place in order:
        if effect[place] > highest or (effect[place] == highest and kl[place] == at):
            best[place] = True
            highest, at = effect[place], kl[place]
    return best


def calibration(result: Calibrations) -> go.Figure:
    """KL at every strength that was tried, the budget, and the strength that was found.

    Args:
        result: what `calibrate_strength` gives, or the table of `calibrate_layers`.
    """
    found = budgets(result)
    require_few(len(found), "layers", "calibrate fewer")
    figure = go.Figure()
    for index, (name, one) in enumerate(found.items()):
        tried = one.tried[(one.tried["kl_p95"] > 0) & np.isfinite(one.tried["kl_p95"])]
        figure.add_scatter(
            x=tried["strength"].abs(),
            y=tried["kl_p95"],
            name=plain(name),
            showlegend=True,
            legendgroup=name,
            hovertemplate="strength %{x:.4g}: KL %{y:.4g} nats<extra></extra>",
            **line_style(index),
        )
        if one.status == MET:
            figure.add_scatter(
                x=[abs(one.strength)],
                y=[one.kl],
                name="found",
                showlegend=index == 0,
                legendgroup="found",
                mode="markers",
                marker={"color": CHOSEN, "size": 13, "symbol": "diamond"},
                hovertemplate="found: %{x:.4g}<extra></extra>",
            )
    first = next(iter(found.values()))
    figure.add_hline(first.kl_budget, line={"color": FLOOR, "width": 2, "dash": "dash"})
    unit = "mean activation norms" if first.steering.relative else "times the vector"
    figure.update_xaxes(title=f"strength ({unit}), without its sign", type="log")
    figure.update_yaxes(title="KL per token, 95th percentile (nats)", type="log")
    unmet = [f"{plain(name)} {one.status}" for name, one in found.items() if one.status != MET]
    return titled(
        figure,
        "Strength at a KL budget",
        f"dashed: the budget of {first.kl_budget:g} nats per token",
        f"strength found: {first.strength:.4g}" if len(found) == 1 and not unmet else "",
        ", ".join(unmet),
    )


def _on_a_grid(rows: pd.DataFrame, steps: int = 20) -> pd.DataFrame:
    """Many points as the means of their cells on a `steps` × `steps` grid."""
    if len(rows) <= MOST_POINTS:
        return rows
    cells = [pd.cut(rows[column], steps, labels=False) for column in ("kl", "effect")]
    numbers = rows.groupby(cells)[["strength", "effect", "low", "high", "kl"]].mean()
    counts = rows.groupby(cells).size()
    return numbers.assign(name=[f"{count} settings" for count in counts])
