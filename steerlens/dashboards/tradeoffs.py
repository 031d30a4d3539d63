"""Effect against side effect → figures: the Pareto front, and strengths at a KL budget."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from steerlens.dashboards.results import Calibrations, budgets, trade_offs
from steerlens.dashboards.tables import PARETO, checked, require_few
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
from steerlens.evaluation.calibration import MET
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.suggestion import Suggestion
from steerlens.evaluation.sweep_store import Sweep

MOST_POINTS = 400
"""Most settings drawn besides the front; more are averaged on a grid."""


def pareto(result: Evaluation | Suggestion | Sweep | pd.DataFrame) -> go.Figure:
    """Effect against side effect; a line joins the Pareto front.

    Args:
        result: An evaluation or a suggestion (side effect: KL to the unsteered model, in nats per
            token); a sweep (first judge's effect against the share of degenerate replies); or a
            table with the columns name, strength, effect, low, high, kl.

    >>> row = {"name": "mean", "low": 0.1, "high": 0.9}
    >>> rows = [{**row, "strength": s, "effect": s / 4, "kl": s} for s in (1, 2)]
    >>> pareto(pd.DataFrame(rows)).layout.title.subtitle.text
    '2 settings, 2 on the front'
    """
    table, side_effect = trade_offs(result)
    given = checked(table, PARETO).dropna(subset=["kl"])
    rows = given.dropna(subset=["effect"])
    if rows.empty:
        raise SteerlensError(
            f"got {len(table)} rows, none with both an effect and a kl: there is nothing to draw"
        )
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
    """Which settings no other dominates (no less effect at no more KL, one of the two better).

    >>> pareto_front(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.9]))
    array([ True, False,  True])
    """
    order = np.lexsort([-effect, kl])
    best = np.zeros(len(kl), dtype=bool)
    highest, its_kl = -np.inf, np.nan
    for index in order:
        if effect[index] > highest or (effect[index] == highest and kl[index] == its_kl):
            best[index] = True
            highest, its_kl = effect[index], kl[index]
    return best


def calibration(result: Calibrations) -> go.Figure:
    """KL at every strength tried, the budget, and the strength that was found.

    Args:
        result: What `calibrate_strength` or `calibrate_layers` returned.

    >>> calibration(calibrate_strength(model, steering, texts=prompts)).layout.xaxis.type
    'log'
    """
    calibrations = budgets(result)
    require_few(len(calibrations), "layers", "calibrate fewer")
    figure = go.Figure()
    for index, (name, one) in enumerate(calibrations.items()):
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
    first = next(iter(calibrations.values()))
    figure.add_hline(first.kl_budget, line={"color": FLOOR, "width": 2, "dash": "dash"})
    unit = "mean activation norms" if first.steering.relative else "times the vector"
    figure.update_xaxes(title=f"strength ({unit}), without its sign", type="log")
    figure.update_yaxes(title="KL per token, 95th percentile (nats)", type="log")
    unmet = [
        f"{plain(name)} {one.status}" for name, one in calibrations.items() if one.status != MET
    ]
    return titled(
        figure,
        "Strength at a KL budget",
        f"dashed: the budget of {first.kl_budget:g} nats per token",
        f"strength found: {first.strength:.4g}" if len(calibrations) == 1 and not unmet else "",
        ", ".join(unmet),
    )


def _on_a_grid(rows: pd.DataFrame, steps: int = 20) -> pd.DataFrame:
    """More than `MOST_POINTS` points as the means of the cells of a `steps` × `steps` grid."""
    if len(rows) <= MOST_POINTS:
        return rows
    cells = [pd.cut(rows[column], steps, labels=False) for column in ("kl", "effect")]
    numbers = rows.groupby(cells)[["strength", "effect", "low", "high", "kl"]].mean()
    counts = rows.groupby(cells).size()
    return numbers.assign(name=[f"{count} settings" for count in counts])
