"""Conditions → figures: similarities by layer, threshold sweeps, the gate along a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
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
from steerlens.layer_text import display_layers
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.conditions import Condition
from steerlens.steering.confounds import Comparison
from steerlens.steering.thresholds import Candidate, Curve, Similarities
from steerlens.steering.topics import TopicScores
from steerlens.steering.transcripts import GateTimeline

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
    """One condition in one figure: similarities by layer, the threshold sweep, the baselines.

    Args:
        search: Result of `search_conditions`.

    >>> search = search_conditions(model, vector, refusals.validation, progress=False)
    >>> condition_report(search).data[-1].name
    'baseline'
    """
    rows, titles = 2, [_title(search), "scores over the threshold", "ROC"]
    specs: list[list[dict[str, int] | None]] = [[{"colspan": 2}, None], [{}, {}]]
    if search.comparisons:
        rows, titles = 3, [*titles, f"beside baselines: {search.verdict}"]
        specs.append([{"colspan": 2}, None])
    figure = make_subplots(rows, 2, specs=specs, column_widths=[0.62, 0.38], subplot_titles=titles)
    _add_spread(figure, search, 1, 1, legend=True)
    title = _add_sweep(figure, search, row=2)
    if search.comparisons:
        _add_baselines(figure, search.comparisons, row=3)
    height = 1000 if rows == 2 else 1350
    return titled(figure.update_layout(boxmode="group"), *title, height=height, min_width=WIDE)


def _add_baselines(figure: go.Figure, comparisons: Sequence[Comparison], row: int) -> None:
    """F1 of the condition and of each baseline on the same prompts, with intervals."""
    names = [f"{one.baseline} (n = {one.n})" for one in comparisons]
    for name, color, values in (
        ("condition", CHOSEN, [one.condition for one in comparisons]),
        ("baseline", FLOOR, [one.f1 for one in comparisons]),
    ):
        figure.add_bar(
            x=names,
            y=[value.value for value in values],
            name=name,
            marker={"color": color},
            error_y={
                "array": [value.high - value.value for value in values],
                "arrayminus": [value.value - value.low for value in values],
            },
            hovertemplate="%{y:.3f}<extra>%{x}: " + name + "</extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(title_text="F1", range=[0, 1.05], row=row, col=1)


def topic_confusion(scores: TopicScores) -> go.Figure:
    """Prompts of each topic by the topic whose score is highest; right ones on the diagonal."""
    shares = scores.confusion / scores.confusion.sum(axis=1, keepdims=True)
    names = [plain(name) for name in scores.names]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=names,
            y=names,
            text=scores.confusion,
            texttemplate="%{text}",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": "share"},
            hovertemplate="of %{y}, read as %{x}: %{text}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="highest score")
    figure.update_yaxes(
        title_text="topic", title_standoff=20, autorange="reversed", automargin=True
    )
    worst = min(scores.f1, key=lambda name: scores.f1[name].value)
    return titled(
        figure,
        f"Topics told apart: {np.trace(scores.confusion)} of {scores.confusion.sum()} prompts",
        f"lowest F1 of a condition: {plain(worst)}, {scores.f1[worst]}",
        height=200 + 60 * len(names),
    )


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
    compared = condition.compared(timeline.similarity)
    names = [f"layer {layer}" for layer in condition.layers_read]
    if compared.shape[1] < len(names):
        names = [f"mean of layers {display_layers(condition.layers_read)}"]
    for index, name in enumerate(names):
        style = line_style(index)
        style["marker"]["symbol"] = [
            style["marker"]["symbol"] + ("" if fires else "-open") for fires in timeline.open
        ]
        figure.add_scatter(
            x=positions,
            y=compared[:, index].numpy(),
            customdata=[plain(repr(token)) for token in timeline.tokens],
            name=name,
            showlegend=True,
            hovertemplate=f"up to %{{customdata}}: %{{y:.4f}}<extra>{name}</extra>",
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
    figure.update_yaxes(title=condition.measure_told)
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
        if search.standard is not None:
            values = search.standard.standardised(torch.from_numpy(values)).numpy()
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
    bars = [(layer, layer) for layer in best.layers]
    if search.standard is not None:
        bars = [(best.layers[0], best.layers[-1])]
    for first, last in bars:
        ends = {"x0": first - 0.45, "x1": last + 0.45, "y0": best.threshold, "y1": best.threshold}
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
    if search.standard is not None:
        _add_curves(figure, search, search.candidates[0], row=row, visible=True)
        _label_sweep(figure, row)
        return _sweep_title(search, search.candidates[0])
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
    _label_sweep(figure, row)
    return _sweep_title(search, best[chosen_layer])


def _label_sweep(figure: go.Figure, row: int) -> None:
    figure.update_xaxes(title_text="threshold", row=row, col=1)
    figure.update_yaxes(title_text="score", range=[-0.02, 1.02], row=row, col=1)
    figure.update_xaxes(title_text="false alarms", range=[-0.02, 1.02], row=row, col=2)
    figure.update_yaxes(title_text="recall", range=[-0.02, 1.02], row=row, col=2)


def _add_curves(
    figure: go.Figure, search: ConditionSearch, candidate: Candidate, *, row: int, visible: bool
) -> None:
    layer = candidate.layers[0] if search.standard is None else None
    curve = _thinned(search.curve(layer, candidate.side))
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
    where = f"layer {candidate.layers[0]}"
    if search.standard is not None:
        where = f"mean of layers {display_layers(candidate.layers)}"
    n_positive, n_negative = map(len, search.chosen_on)
    return (
        f"{plain(search.name or 'condition')}, {where}: fires {candidate.side} "
        f"{candidate.threshold:.4f}, F1 {candidate.f1:.3f}",
        f"on the {n_positive} + {n_negative} prompts it was chosen on",
    )


def _title(search: ConditionSearch) -> str:
    n_positive, n_negative = (sum(map(len, sides)) for sides in zip(*_parts(search), strict=True))
    return f"{plain(search.name or 'condition')} (n = {n_positive} + {n_negative})"


def _kind(source: ConditionSearch | Condition) -> str:
    kind = source.similarity.__name__.removesuffix("_similarity")
    return kind if source.standard is None else f"standardised {kind}"
