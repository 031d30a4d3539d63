"""Learned vectors → figures: loss and held-out effect by step."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.theme import line_style, plain, titled
from steerlens.errors import SteerlensError
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
