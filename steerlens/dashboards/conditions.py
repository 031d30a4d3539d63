"""Conditions → figures: similarities by layer, threshold sweeps, the gate along a text."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.theme import (
    CHOSEN,
    FLOOR,
    LINES,
    NEGATIVE,
    POSITIVE,
    WIDE,
    layer_axis,
    layer_slider,
    line_style,
    plain,
    titled,
)
from steerlens.interpret.token_scans import GateTimeline
from steerlens.steering.condition_search import Candidate, ConditionSearch, Curve, Similarities
from steerlens.steering.conditions import Condition

MOST_POINTS = 4000
"""Most values of one box drawn as points; of more, only quartiles and whiskers are drawn."""
MOST_THRESHOLDS = 500
"""Most thresholds drawn in one curve; more are thinned evenly."""


def similarities_by_layer(*searches: ConditionSearch) -> go.Figure:
    """Similarities of positive and negative prompts at each searched layer, a panel per condition.

    Args:
        searches: Results of `search_conditions`.

    >>> search = search_conditions(model, vector, refusals.validation, progress=False)
    >>> [box.name for box in similarities_by_layer(search).data]
    ['positive prompts', 'negative prompts']
    """
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
    if columns > 1 and len(set(map(_kind, searches))) == 1:
        figure.update_yaxes(title_text="", col=2)  # the first column has the title
    return titled(
        figure.update_layout(boxmode="group"),
        "Similarity of prompts to the condition vector, by layer",
        "green bar: the chosen layer and threshold",
        height=160 + 380 * rows,
        min_width=WIDE if columns > 1 else 0,
    )


def threshold_sweep(search: ConditionSearch) -> go.Figure:
    """F1, precision and recall at every distinct threshold, and the ROC; a slider for layers.

    Args:
        search: Result of `search_conditions`.

    >>> search = search_conditions(model, vector, refusals.validation, progress=False)
    >>> threshold_sweep(search).layout.xaxis.title.text
    'threshold'
    """
    figure = make_subplots(
        1, 2, column_widths=[0.62, 0.38], subplot_titles=["scores over the threshold", "ROC"]
    )
    return titled(figure, *_add_sweep(figure, search, row=1), height=620, min_width=WIDE)


def condition_report(search: ConditionSearch) -> go.Figure:
    """One condition in one figure: similarities by layer above, the threshold sweep below.

    Args:
        search: Result of `search_conditions`.

    >>> search = search_conditions(model, vector, refusals.validation, progress=False)
    >>> condition_report(search).layout.sliders[0].currentvalue.prefix
    'layer '
    """
    figure = make_subplots(
        2,
        2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        column_widths=[0.62, 0.38],
        subplot_titles=[_title(search), "scores over the threshold", "ROC"],
    )
    _add_spread(figure, search, 1, 1, legend=True)
    title = _add_sweep(figure, search, row=2)
    return titled(figure.update_layout(boxmode="group"), *title, height=1000, min_width=WIDE)


def gate_timeline(timeline: GateTimeline) -> go.Figure:
    """A condition's similarity after each token; filled markers where it would fire.

    Args:
        timeline: Result of `interpret.gate_timeline`. The dotted line is the end of the prompt,
            where the gate is decided.

    >>> condition = Condition(vector, 2, above=0.0)
    >>> gate_timeline(interpret.gate_timeline(model, prompts[0], condition)).data[0].name
    'layer 2'
    """
    condition, positions = timeline.condition, list(range(len(timeline.tokens)))
    figure = go.Figure()
    for index, layer in enumerate(condition.layers_read):
        style = line_style(index)
        style["marker"]["symbol"] = [
            style["marker"]["symbol"] + ("" if fires else "-open") for fires in timeline.open
        ]
        figure.add_scatter(
            x=positions,
            y=timeline.similarity[:, index].numpy(),
            customdata=[plain(repr(token)) for token in timeline.tokens],
            name=f"layer {layer}",
            showlegend=True,
            hovertemplate=f"up to %{{customdata}}: %{{y:.4f}}<extra>layer {layer}</extra>",
            **style,
        )
    side = "above" if condition.above is not None else "below"
    figure.add_hline(condition.threshold, line={"color": CHOSEN, "width": 2})
    figure.add_vline(timeline.n_prompt - 1, line={"color": FLOOR, "dash": "dot"})
    figure.update_xaxes(
        title="prompt and reply up to this token",
        tickvals=positions,
        ticktext=[plain(token) for token in timeline.tokens],
        tickangle=-60,
    )
    figure.update_yaxes(title=f"{_kind(condition)} similarity")
    decided = "open" if timeline.open[timeline.n_prompt - 1] else "closed"
    return titled(
        figure,
        f"Gate of {plain(condition.name or 'the condition')} along the text: {decided}",
        f"filled: {side} {condition.threshold:.4f} (the bar)",
        "decided at the dotted line, the end of the prompt",
        height=520,
        min_width=WIDE,
    )


def _add_spread(
    figure: go.Figure, search: ConditionSearch, row: int, col: int, *, legend: bool
) -> None:
    for side, color in (("positive", POSITIVE), ("negative", NEGATIVE)):
        values = np.concatenate([getattr(part, side) for part in _parts(search)])
        figure.add_trace(
            go.Box(
                **_box_data(values, search.layers),
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
    figure.update_xaxes(row=row, col=col, **layer_axis(search.layers))
    figure.update_yaxes(title_text=f"{_kind(search)} similarity", row=row, col=col)


def _box_data(values: np.ndarray, layers: tuple[int, ...]) -> dict[str, Any]:
    """A box's data: all values; of more than `MOST_POINTS`, their quartiles and whiskers."""
    if values.size <= MOST_POINTS:
        return {"x": np.tile(layers, len(values)), "y": values.ravel()}
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    reach = 1.5 * (high - low)
    return {
        "x": np.array(layers),
        "q1": low,
        "median": middle,
        "q3": high,
        "lowerfence": np.where(values >= low - reach, values, np.inf).min(axis=0),
        "upperfence": np.where(values <= high + reach, values, -np.inf).max(axis=0),
    }


def _add_sweep(figure: go.Figure, search: ConditionSearch, row: int) -> tuple[str, str]:
    """Add the curves of every layer, one shown by a slider; returns that one's title and note."""
    singles = [candidate for candidate in search.candidates if len(candidate.layers) == 1]
    best = {candidate.layers[0]: candidate for candidate in reversed(singles)}
    chosen_layer = search.candidates[0].layers[0]
    n_before = len(figure.data)
    for layer in search.layers:
        _add_curves(figure, search, best[layer], row=row, visible=layer == chosen_layer)
    n_curves = (len(figure.data) - n_before) // len(search.layers)
    steps = []
    for layer in search.layers:
        title, note = _sweep_title(search, best[layer])
        visible = [True] * n_before
        visible += [other == layer for other in search.layers for _ in range(n_curves)]
        steps.append([{"visible": visible}, {"title.text": title, "title.subtitle.text": note}])
    figure.update_layout(
        sliders=layer_slider(search.layers, search.layers.index(chosen_layer), steps)
    )
    figure.update_xaxes(title_text="threshold", row=row, col=1)
    figure.update_yaxes(title_text="score", range=[-0.02, 1.02], row=row, col=1)
    figure.update_xaxes(title_text="false alarms", range=[-0.02, 1.02], row=row, col=2)
    figure.update_yaxes(title_text="recall", range=[-0.02, 1.02], row=row, col=2)
    return _sweep_title(search, best[chosen_layer])


def _add_curves(
    figure: go.Figure, search: ConditionSearch, candidate: Candidate, *, row: int, visible: bool
) -> None:
    curve = _thinned(search.curve(candidate.layers[0], candidate.side))
    for measure, name, color, dash in (
        ("f1", "F1", LINES[0], "solid"),
        ("precision", "precision", LINES[1], "dash"),
        ("recall", "recall", LINES[3], "dot"),
    ):
        figure.add_scatter(
            x=curve.thresholds,
            y=getattr(curve, measure),
            name=name,
            line={"color": color, "dash": dash},
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
        line={"color": LINES[4]},
        visible=visible,
        hovertemplate="false alarms %{x:.3f}, recall %{y:.3f}<extra></extra>",
        row=row,
        col=2,
    )


def _parts(search: ConditionSearch) -> tuple[Similarities, Similarities]:
    return search.chosen_on, search.scored_on


def _thinned(curve: Curve) -> Curve:
    """At most `MOST_THRESHOLDS` thresholds, including the first, the last and the best."""
    n = len(curve.thresholds)
    if n <= MOST_THRESHOLDS:
        return curve
    even = np.linspace(0, n - 1, MOST_THRESHOLDS - 1).round().astype(int)
    kept = np.unique([*even, curve.f1.argmax()])
    return Curve(*(values[kept] for values in curve))


def _sweep_title(search: ConditionSearch, candidate: Candidate) -> tuple[str, str]:
    n_positive, n_negative = map(len, search.chosen_on)
    return (
        f"{plain(search.name or 'condition')}, layer {candidate.layers[0]}: fires {candidate.side} "
        f"{candidate.threshold:.4f}, F1 {candidate.f1:.3f}",
        f"on the {n_positive} + {n_negative} prompts it was chosen on",
    )


def _title(search: ConditionSearch) -> str:
    n_positive, n_negative = (sum(map(len, sides)) for sides in zip(*_parts(search), strict=True))
    return f"{plain(search.name or 'condition')} (n = {n_positive} + {n_negative})"


def _kind(source: ConditionSearch | Condition) -> str:
    return source.similarity.__name__.removesuffix("_similarity")
