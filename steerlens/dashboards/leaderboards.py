"""Arms in order, and by layer → figures."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.theme import FLOOR, NEGATIVE, POSITIVE, error_bars, line_style, titled

BARS = ("words", "prompt")
"""Arms whose names begin so touch no activations: they are the bar to clear."""
POOLINGS = {"mean": "mean over tokens", "max": "greatest token"}


def leaderboard(
    rows: pd.DataFrame, title: str, measure: str, floor: float | None = None
) -> go.Figure:
    """Arms with their intervals, the best on top; arms of words or a prompt in another colour.

    Args:
        rows: Columns arm, value, low, high, n; one row per arm.
        title: What was measured.
        measure: The axis.
        floor: What can be had for nothing: a dotted line.

    >>> rows = pd.DataFrame({"arm": ["LDA"], "value": [0.9], "low": [0.8], "high": [1], "n": [9]})
    >>> leaderboard(rows, "Detection", "AUROC", 0.5).data[0].x
    array([0.9])
    """
    given = rows.astype({"value": float, "low": float, "high": float}).sort_values("value")
    colors = [POSITIVE if arm.startswith(BARS) else NEGATIVE for arm in given["arm"]]
    figure = go.Figure()
    figure.add_scatter(
        x=given["value"].to_numpy(),
        y=list(given["arm"]),
        mode="markers",
        marker={"color": colors, "size": 11},
        error_x=error_bars(given["value"], given["low"], given["high"]),
        customdata=given["n"],
        hovertemplate="%{y}: %{x:.3f}, n = %{customdata}<extra></extra>",
    )
    notes = ["95 % intervals over concepts", "orange: words only, no activations"]
    if floor is not None:
        figure.add_vline(x=floor, line={"color": FLOOR, "dash": "dot"})
        notes.append("dotted: what can be had for nothing")
    figure.update_xaxes(title=measure)
    figure.update_yaxes(automargin=True)
    return titled(figure, title, *notes, height=280 + 34 * len(given))


def detection_by_layer(rows: pd.DataFrame, words: pd.DataFrame) -> go.Figure:
    """A line per arm and pooling over layers, and levels of what reads no layer.

    Args:
        rows: Columns arm, layer, measure, value; layers that are no numbers are left out.
        words: Columns arm, value: drawn as horizontal lines.

    >>> rows = pd.DataFrame({"arm": "LDA", "layer": [3, 7], "measure": "auroc (max)", "value": 0.9})
    >>> detection_by_layer(rows, rows[:0]).data[0].name
    'LDA'
    """
    numbered = rows.loc[[isinstance(layer, int) for layer in rows["layer"]]]
    arms = list(dict.fromkeys(numbered["arm"]))
    found = dict(iter(numbered.groupby("measure", sort=False)))
    pooled = [name.partition("(")[2].rstrip(")") for name in found]
    figure = make_subplots(
        rows=1, cols=max(len(found), 1), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[POOLINGS.get(name, name) for name in pooled],
    )  # fmt: skip
    for column, (pooling, of_measure) in enumerate(zip(pooled, found.values(), strict=True), 1):
        for arm, part in of_measure.groupby("arm", sort=False):
            figure.add_scatter(
                x=list(part["layer"]),
                y=list(part["value"].astype(float)),
                name=arm,
                legendgroup=arm,
                showlegend=column == 1,
                hovertemplate=f"{pooling}, layer %{{x}}: %{{y:.3f}}",
                row=1,
                col=column,
                **line_style(arms.index(arm)),
            )
    for arm, value in zip(words["arm"], words["value"].astype(float), strict=True):
        figure.add_hline(y=value, line={"color": POSITIVE, "dash": "dash"})
        figure.add_annotation(
            text=arm.replace(", ", ",<br>"), x=1.005, xref="paper", xanchor="left", align="left",
            y=value, yref="y", showarrow=False,
        )  # fmt: skip
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="AUROC, mean over concepts", col=1)
    figure.update_layout(margin={"r": 110})
    return titled(figure, "Detection by layer", "dashed: words only, no activations", height=620)
