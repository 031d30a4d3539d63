"""Arms in order, and by layer → figures."""

import pandas as pd
import plotly.graph_objects as go

from steerlens.dashboards.theme import FLOOR, NEGATIVE, POSITIVE, error_bars, line_style, titled

BARS = ("words", "prompt")
"""Arms whose names begin so touch no activations: they are the bar to clear."""


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
    'LDA, max'
    """
    figure = go.Figure()
    numbered = rows.loc[[isinstance(layer, int) for layer in rows["layer"]]]
    arms = list(dict.fromkeys(numbered["arm"]))
    for (arm, measure), part in numbered.groupby(["arm", "measure"], sort=False):
        pooled = measure.partition("(")[2].rstrip(")")
        style = line_style(arms.index(arm))
        style["line"] = {**style["line"], "dash": "solid" if pooled == "mean" else "dot"}
        figure.add_scatter(
            x=list(part["layer"]),
            y=list(part["value"].astype(float)),
            name=f"{arm}, {pooled}",
            hovertemplate="layer %{x}: %{y:.3f}",
            **style,
        )
    for arm, value in zip(words["arm"], words["value"].astype(float), strict=True):
        figure.add_hline(
            y=value, line={"color": POSITIVE, "dash": "dash"}, annotation_text=arm,
            annotation_position="bottom right",
        )  # fmt: skip
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="AUROC, mean over concepts")
    return titled(
        figure, "Detection by layer", "solid: mean over tokens; dotted: greatest token", height=620
    )
