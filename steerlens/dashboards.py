"""Results → Plotly figures. Nothing here runs a model, shows or saves."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.search import Candidate, ConditionSearch, Similarities
from steerlens.vector import SteeringVector

POSITIVE, NEGATIVE, CHOSEN = "#0072B2", "#E69F00", "#D55E00"
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's colours, told apart by colour-blind readers and in print."""

_LAYOUT = go.Layout(
    font={"family": "Helvetica, Arial, sans-serif", "size": 14},
    colorway=LINES,
    plot_bgcolor="white",
    xaxis={"showgrid": True, "gridcolor": "#e5e5e5", "zeroline": False},
    yaxis={"showgrid": True, "gridcolor": "#e5e5e5", "zeroline": False},
    title={"x": 0.02, "y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 24}},
    legend={
        "orientation": "h",
        "yref": "container",
        "yanchor": "top",
        "y": 0.95,
        "xref": "container",
        "xanchor": "right",
        "x": 0.98,
    },
    margin={"t": 120, "b": 70, "l": 70, "r": 30},
)
TEMPLATE = go.layout.Template(layout=_LAYOUT)


def vector_cosines(vectors: Mapping[str, SteeringVector], to: str) -> go.Figure:
    """Cosine, at each layer, of several vectors to one of them."""
    figure = go.Figure(layout={"template": TEMPLATE})
    for index, (name, vector) in enumerate(vectors.items()):
        if name == to:
            continue
        figure.add_scatter(
            x=list(vector.layers),
            y=vector.cosine(vectors[to]).tolist(),
            name=name,
            mode="lines+markers",
            line={"color": LINES[index % len(LINES)]},
            hovertemplate=f"{name} · {to}<br>layer %{{x}}: cosine %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(
        title=f"Cosine of each vector to “{to}”, by layer",
        xaxis={"title": "layer", "dtick": 1},
        yaxis={"title": "cosine", "range": [-1.05, 1.05]},
    )
    return figure


def similarities_by_layer(*searches: ConditionSearch) -> go.Figure:
    """How positives and negatives are spread over each searched layer, one panel a condition."""
    columns = min(2, len(searches))
    rows = -(-len(searches) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[_title(search) for search in searches],
        vertical_spacing=0.3 / rows,
    )
    for index, search in enumerate(searches):
        _add_spread(figure, search, index // columns + 1, index % columns + 1, legend=index == 0)
    figure.update_layout(
        template=TEMPLATE,
        title="Similarity of prompts to the condition vector, by layer"
        "<br><sup>orange-red bar: the chosen layer and threshold</sup>",
        boxmode="group",
        height=160 + 380 * rows,
    )
    return figure


def threshold_sweep(search: ConditionSearch) -> go.Figure:
    """F1, precision and recall at every threshold that makes a difference; a slider for layers."""
    figure = make_subplots(
        1, 2, column_widths=[0.62, 0.38], subplot_titles=["scores over the threshold", "ROC"]
    )
    _add_sweep(figure, search, row=1)
    return figure.update_layout(template=TEMPLATE, height=620)


def condition_report(search: ConditionSearch) -> go.Figure:
    """One condition on one page: its spread by layer, and its threshold sweep below."""
    figure = make_subplots(
        2,
        2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        column_widths=[0.62, 0.38],
        subplot_titles=[_title(search), "scores over the threshold", "ROC"],
    )
    _add_spread(figure, search, 1, 1, legend=True)
    _add_sweep(figure, search, row=2)
    return figure.update_layout(template=TEMPLATE, boxmode="group", height=1000)


def _add_spread(
    figure: go.Figure, search: ConditionSearch, row: int, col: int, *, legend: bool
) -> None:
    for side, color in (("positive", POSITIVE), ("negative", NEGATIVE)):
        values = np.concatenate([getattr(part, side) for part in _parts(search)])
        figure.add_trace(
            go.Box(
                x=np.tile(search.layers, len(values)),
                y=values.ravel(),
                name=f"{side} prompts",
                legendgroup=side,
                offsetgroup=side,
                showlegend=legend,
                marker={"color": color, "size": 3},
                line={"width": 1.5},
                hovertemplate="layer %{x}: %{y:.3f}<extra>" + side + "</extra>",
            ),
            row=row,
            col=col,
        )
    best = search.candidates[0]
    for layer in best.layers:
        ends = {"x0": layer - 0.45, "x1": layer + 0.45, "y0": best.threshold, "y1": best.threshold}
        figure.add_shape(type="line", line={"color": CHOSEN, "width": 3}, row=row, col=col, **ends)
    figure.update_xaxes(title_text="layer", dtick=1, row=row, col=col)
    figure.update_yaxes(title_text=f"{_kind(search)} similarity", row=row, col=col)


def _add_sweep(figure: go.Figure, search: ConditionSearch, row: int) -> None:
    """Curves of every layer, of which a slider shows one."""
    singles = [candidate for candidate in search.candidates if len(candidate.layers) == 1]
    best = {candidate.layers[0]: candidate for candidate in reversed(singles)}
    shown = search.candidates[0].layers[0]
    n_before = len(figure.data)
    for layer in search.layers:
        _add_curves(figure, search, best[layer], row=row, visible=layer == shown)
    n_curves = (len(figure.data) - n_before) // len(search.layers)
    steps = [
        {
            "label": str(layer),
            "method": "update",
            "args": [
                {
                    "visible": [True] * n_before
                    + [other == layer for other in search.layers for _ in range(n_curves)]
                },
                {"title.text": _sweep_title(search, best[layer])},
            ],
        }
        for layer in search.layers
    ]
    slider = {
        "active": search.layers.index(shown),
        "currentvalue": {"prefix": "layer "},
        "pad": {"t": 60},
        "steps": steps,
    }
    figure.update_layout(title={"text": _sweep_title(search, best[shown])}, sliders=[slider])
    figure.update_xaxes(title_text="threshold", row=row, col=1)
    figure.update_yaxes(title_text="score", range=[-0.02, 1.02], row=row, col=1)
    figure.update_xaxes(title_text="false alarms", range=[-0.02, 1.02], row=row, col=2)
    figure.update_yaxes(title_text="recall", range=[-0.02, 1.02], row=row, col=2)


def _add_curves(
    figure: go.Figure, search: ConditionSearch, candidate: Candidate, *, row: int, visible: bool
) -> None:
    curve = search.curve(candidate.layers[0], candidate.side)
    for measure, name, color in (
        ("f1", "F1", LINES[0]),
        ("precision", "precision", LINES[1]),
        ("recall", "recall", LINES[2]),
    ):
        figure.add_scatter(
            x=curve.thresholds,
            y=getattr(curve, measure),
            name=name,
            line={"color": color},
            visible=visible,
            hovertemplate=f"{name} %{{y:.3f}} {candidate.side} %{{x:.4f}}<extra></extra>",
            row=row,
            col=1,
        )
    figure.add_scatter(
        x=[candidate.threshold],
        y=[candidate.f1],
        name="chosen",
        mode="markers",
        marker={"color": CHOSEN, "size": 12, "symbol": "diamond"},
        visible=visible,
        hovertemplate=f"{candidate.side} %{{x:.4f}}: F1 %{{y:.3f}}<extra>chosen</extra>",
        row=row,
        col=1,
    )
    figure.add_scatter(
        x=[0.0, *curve.false_alarms],
        y=[0.0, *curve.recall],
        name="ROC",
        showlegend=False,
        line={"color": LINES[3]},
        visible=visible,
        hovertemplate="false alarms %{x:.3f}, recall %{y:.3f}<extra></extra>",
        row=row,
        col=2,
    )


def _parts(search: ConditionSearch) -> tuple[Similarities, Similarities]:
    return search.chosen_on, search.scored_on


def _sweep_title(search: ConditionSearch, candidate: Candidate) -> str:
    n_positive, n_negative = map(len, search.chosen_on)
    return (
        f"{search.name or 'condition'}, layer {candidate.layers[0]}: fires {candidate.side} "
        f"{candidate.threshold:.4f}, F1 {candidate.f1:.3f}"
        f"<br><sup>on the {n_positive} + {n_negative} prompts that it was chosen on</sup>"
    )


def _title(search: ConditionSearch) -> str:
    n_positive, n_negative = (sum(map(len, sides)) for sides in zip(*_parts(search), strict=True))
    return f"{search.name or 'condition'} (n = {n_positive} + {n_negative})"


def _kind(search: ConditionSearch) -> str:
    return search.similarity.__name__.removesuffix("_similarity")
