"""Conversations → figures."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.tables import DRIFT, checked, require_few
from steerlens.dashboards.theme import FLOOR, LINES, WIDE, faded, plain, titled

_COLORS = {"user": LINES[2], "assistant": LINES[0]}
_MOST_TICKS = 12
"""Most turns that are named below the axis."""


def drift(table: pd.DataFrame) -> go.Figure:
    """Each token's projection over a conversation, and each message's mean; one panel per layer.

    Args:
        table: Columns turn, role, layer, place, token, projection, as `Chat.projections` gives
            them.

    >>> chat = Chat(model, max_new_tokens=5)
    >>> _ = chat.say("Hi.")
    >>> drift(chat.projections(vector, layers=[3])).layout.yaxis.title.text
    'projection'
    """
    given = checked(table, DRIFT)
    layers = sorted(given["layer"].unique())
    require_few(len(layers), "layers", "give projections() fewer layers")
    figure = make_subplots(
        len(layers), 1, shared_xaxes=True, vertical_spacing=0.3 / (len(layers) + 2),
        subplot_titles=[f"layer {layer:g}" for layer in layers] if len(layers) > 1 else None,
    )  # fmt: skip
    for row, layer in enumerate(layers, start=1):
        said = given[given["layer"] == layer].sort_values(["turn", "place"], ignore_index=True)
        _add_layer(figure, said, row)
    starts = said.index[said["turn"] != said["turn"].shift()]
    for start in starts[1:]:
        figure.add_vline(start - 0.5, line={"color": FLOOR, "dash": "dot", "width": 1})
    named = starts[:: -(-len(starts) // _MOST_TICKS)]
    turns = [f"turn {turn:g}" for turn in said["turn"][named]]
    figure.update_xaxes(tickvals=named, ticktext=turns, showgrid=False)
    figure.update_xaxes(title_text="tokens that were said", row=len(layers))
    figure.update_yaxes(title_text="projection")
    return titled(
        figure,
        "Projection over the conversation",
        "bars: mean of a message; dots: its tokens",
        "read unsteered",
        height=300 + 160 * len(layers),
        min_width=WIDE,
    )


def _add_layer(figure: go.Figure, said: pd.DataFrame, row: int) -> None:
    for role in dict.fromkeys(said["role"]):
        color = _COLORS.get(role, FLOOR)
        of_role = said[said["role"] == role]
        figure.add_scatter(
            x=of_role.index,
            y=of_role["projection"],
            mode="markers",
            marker={"color": faded(color, 0.5), "size": 5},
            customdata=[
                [plain(repr(token)), f"{turn:g}"]
                for token, turn in zip(of_role["token"], of_role["turn"], strict=True)
            ],
            hovertemplate="turn %{customdata[1]}, %{customdata[0]}: %{y:.3f}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
        ends: list[float | None] = []
        means: list[float | None] = []
        for _, message in of_role.groupby("turn"):
            ends += [message.index[0] - 0.4, message.index[-1] + 0.4, None]
            means += [message["projection"].mean()] * 2 + [None]
        figure.add_scatter(
            x=ends,
            y=means,
            name=plain(role),
            mode="lines",
            line={"color": color, "width": 4},
            hovertemplate=f"{plain(role)}: mean %{{y:.3f}}<extra></extra>",
            legendgroup=role,
            showlegend=row == 1,
            row=row,
            col=1,
        )
