"""Learned vectors → figures: loss and held-out effect by step; methods compared."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.theme import WIDE, error_bars, line_style, plain, titled
from steerlens.errors import SteerlensError
from steerlens.learning.comparing import Comparison
from steerlens.vectors.vector import SteeringVector


def learning_curve(vector: SteeringVector) -> go.Figure:
    """Loss of each step, and loss and gain on held-out prompts at each check.

    Args:
        vector: One that `learn` gave, here or in another session: its provenance has the story.
    """
    losses = vector.provenance.get("loss")
    if not losses:
        raise SteerlensError(
            f"{vector!r} has no losses in its provenance; the figure is for vectors of `learn`"
        )
    checks = vector.provenance.get("checks") or []
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4]
    )
    figure.add_scatter(
        x=list(range(1, len(losses) + 1)),
        y=losses,
        name="prompts learned from",
        hovertemplate="step %{x}: loss %{y:.3f}",
        row=1,
        col=1,
        **line_style(0),
    )
    steps = [check["step"] for check in checks]
    for row, what, name in ((1, "loss", "held-out prompts"), (2, "gain", "gain, held out")):
        figure.add_scatter(
            x=steps,
            y=[check[what] for check in checks],
            name=name,
            hovertemplate=f"step %{{x}}: {what} %{{y:.3f}}",
            row=row,
            col=1,
            **line_style(row),
        )
    figure.update_yaxes(title="loss", row=1, col=1)
    figure.update_yaxes(title="nats per token", row=2, col=1)
    figure.update_xaxes(title="step", row=2, col=1)
    name = plain(str(vector.provenance.get("name", "vector")))
    return titled(figure, f"Learning “{name}”: loss, and how much likelier the wanted replies are")


def method_comparison(comparison: Comparison) -> go.Figure:
    """What each method does, and how many of its replies fall apart, at one KL budget."""
    table = comparison.table
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    names = [plain(name) for name in table["method"]]
    for col, value, low, high, title in (
        (1, "score", "low", "high", comparison.judge),
        (2, "degenerate", "degenerate_low", "degenerate_high", "degenerate replies"),
    ):
        style = {**line_style(col - 1), "mode": "markers"}
        figure.add_scatter(
            x=table[value],
            y=names,
            name=plain(title),
            error_x=error_bars(table[value], table[low], table[high]),
            customdata=table[["strength", "kl", "different", "n"]],
            hovertemplate="%{y}: %{x:.3f}; strength %{customdata[0]:.3g}, KL %{customdata[1]:.3g} "
            "nats, %{customdata[2]} different replies of %{customdata[3]}<extra></extra>",
            row=1,
            col=col,
            **style,
        )
        figure.update_xaxes(title=plain(title), row=1, col=col)
    figure.update_yaxes(autorange="reversed")
    return titled(
        figure,
        f"Ways to get a vector, at layer {comparison.layer}",
        f"each at the greatest strength within {comparison.budgets}",
        f"{table['n'].iloc[0]} prompts, 95 % intervals",
        min_width=WIDE,
    )
