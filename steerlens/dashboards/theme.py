"""The common style of all figures: colours, light and dark templates, titles and notes."""

import math
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

POSITIVE, NEGATIVE = "#D55E00", "#0072B2"
"""In every figure, orange is along a vector or its positive side, blue is against it."""
SIGNS = "orange: {}; blue: {}"
"""The note on figures whose colours show a sign, to be filled with what the two mean."""
CHOSEN = "#009E73"
"""The layer, threshold or strength that was chosen."""
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's colours, distinguishable with colour blindness."""
FLOOR = "#8c8c8c"
"""Controls, and reference lines."""
DIVERGING = [[0.0, NEGATIVE], [0.5, "#f7f7f7"], [1.0, POSITIVE]]
PALE_DIVERGING = [[0.0, "#86bcdf"], [0.5, "#f7f7f7"], [1.0, "#f0ae86"]]
"""Under text in `INK`: a contrast of at least 7 to 1 everywhere."""
INK = "#1a1a1a"
ON_DARK = {
    "#0072B2": "#5AA9E6", "#E69F00": "#F2B640", "#009E73": "#35C79A", "#CC79A7": "#E59AC4",
    "#56B4E9": "#A9DDF9", "#D55E00": "#F5813F", "#8c8c8c": "#a3a3a3", "#f7f7f7": "#262a31",
    "#86bcdf": "#0b4a75", "#f0ae86": "#8a3f0c", INK: "#f2f2f2",
}  # fmt: skip
"""Each colour on a dark background: lighter lines, and colour scales with a dark middle."""
SEQUENTIAL = "Cividis"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")

HEIGHT = 460
"""Default height in pixels."""
WIDE = 640
"""Pixels that two panels, or tokens along an axis, need to be legible."""
TITLE_HEIGHT = 72
"""Pixels above the legend for the title and one line of notes."""
LINE_HEIGHT = 17
"""Pixels of each further line of notes."""
LONGEST_LINE = 100
"""Characters in one line of notes."""
BREAK = "<br>"
"""Plotly's line break."""


def _template(ink: str, page: str, grid: str) -> go.layout.Template:
    axis = {
        "showgrid": True,
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        "automargin": True,
    }
    return go.layout.Template(
        layout=go.Layout(
            font={"family": "Helvetica, Arial, sans-serif", "size": 14, "color": ink},
            colorway=LINES,
            paper_bgcolor=page,
            plot_bgcolor=page,
            xaxis=axis,
            yaxis=axis,
            title={
                "x": 0.02,
                "y": 1,
                "yanchor": "top",
                "yref": "container",
                "pad": {"t": 20},
                "font": {"size": 17},
                "subtitle": {"font": {"size": 12.5, "color": ink}},
            },
            legend={
                "orientation": "h",
                "yref": "container",
                "yanchor": "top",
                "xref": "container",
                "xanchor": "left",
                "x": 0.02,
            },
            hoverlabel={"align": "left"},
            margin={"t": 130, "b": 60, "l": 70, "r": 30},
        ),
        data={
            "heatmap": [
                go.Heatmap(hoverongaps=False, colorbar={"thickness": 14, "outlinewidth": 0})
            ]
        },
    )


TEMPLATE = _template(INK, "#ffffff", "#e5e5e5")
"""Light, and for print."""
DARK = _template("#e8e8e8", "#16181c", "#34383f")


def titled(
    figure: go.Figure, title: str, *notes: str, height: int = HEIGHT, min_width: int = 0
) -> go.Figure:
    """The figure with the light template, its title, and its notes below the title.

    Args:
        notes: Empty ones are left out.
        height: In pixels.
        min_width: Pixels below which a page scrolls the figure sideways.

    >>> titled(go.Figure(), "Title", "one note", "", "another").layout.title.subtitle.text
    'one note · another'
    """
    note = wrapped(" · ".join(filter(None, notes)))
    extra = LINE_HEIGHT * note.count(BREAK)
    height, top = height + extra, TITLE_HEIGHT + extra
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "subtitle": {"text": note}},
        height=height,
        meta={"min_width": min_width, "title_height": top},
        legend={"y": 1 - top / height},
    )
    if extra:
        figure.update_layout(margin={"t": 130 + extra})
    return figure


def wrapped(note: str) -> str:
    """A note in lines that fit a notebook's width: Plotly does not wrap text."""
    lines = wrap(note, LONGEST_LINE, break_long_words=False, break_on_hyphens=False)
    return BREAK.join(lines)


def dark(figure: go.Figure) -> go.Figure:
    """The same figure on a dark background.

    Args:
        figure: Stays as it is.

    >>> figure = dashboards.explained_variance({"refuse": vector})
    >>> dark(figure).layout.template.layout.paper_bgcolor
    '#16181c'
    """
    layout = go.Layout(figure.layout).update(template=None)
    return go.Figure(
        [_recoloured(trace.to_plotly_json()) for trace in figure.data],
        _recoloured(layout.to_plotly_json()),
    ).update_layout(template=DARK)


def _recoloured(value: Any) -> Any:
    """A part of a figure with every colour as `ON_DARK` says; other text is kept."""
    if isinstance(value, dict):
        return {name: _recoloured(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_recoloured(item) for item in value]
    if not isinstance(value, str):
        return value
    color, comma, opacity = value.rpartition(",")
    return ON_DARK.get(value) or FADED_ON_DARK.get(color, color) + comma + opacity


def plain(text: object) -> str:
    """Text escaped, so that Plotly shows its tags and entities literally."""
    return escape(str(text), quote=False)


def line_style(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the line with this index; all three differ, for print in grey.

    After six lines the colours repeat with other dashes and markers.
    """
    cycle, color = divmod(index, len(LINES))
    shape = (color + cycle) % len(LINES)
    return {
        "mode": "lines+markers",
        "line": {"color": LINES[color], "dash": _DASHES[shape]},
        "marker": {"color": LINES[color], "symbol": _SYMBOLS[shape], "size": 8},
    }


def faded(color: str, opacity: float = 0.2) -> str:
    """A hexadecimal colour made translucent."""
    return f"{_rgba(color)},{opacity})"


def _rgba(color: str) -> str:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue}"


FADED_ON_DARK = {_rgba(old): _rgba(new) for old, new in ON_DARK.items()}
"""`ON_DARK` for the colours of `faded`, without their opacity."""


def add_band(figure: go.Figure, x: Any, low: Any, high: Any, color: str, **options: Any) -> None:
    """Add the area between `low` and `high`, at the points where both are finite."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    known = np.isfinite(low) & np.isfinite(high)
    x = np.asarray(x)[known]
    row = {name: options.pop(name) for name in ("row", "col") if name in options}
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([low[known], high[known][::-1]]),
            fill="toself",
            fillcolor=faded(color),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            **options,
        ),
        **row,
    )


def error_bars(value: Any, low: Any, high: Any) -> dict[str, Any]:
    """Intervals as Plotly's asymmetric error bars."""
    value, low, high = (np.asarray(numbers, dtype=float) for numbers in (value, low, high))
    return {
        "type": "data",
        "symmetric": False,
        "array": np.clip(high - value, 0, None),
        "arrayminus": np.clip(value - low, 0, None),
        "thickness": 1.5,
        "color": INK,
    }


def layer_axis(layers: Sequence[int]) -> dict[str, Any]:
    """An axis of layers with integer ticks, at most 16."""
    span = max(layers) - min(layers) + 1
    return {"title": {"text": "layer"}, "dtick": max(1, math.ceil(span / 16))}


def layer_slider(labels: Sequence[object], active: int, steps: Sequence[list[Any]]) -> list[dict]:
    """A slider with one step per layer; `steps` are the arguments of Plotly's "update"."""
    return [
        {
            "active": active,
            "currentvalue": {"prefix": "layer "},
            "pad": {"t": 50},
            "steps": [
                {"label": str(label), "method": "update", "args": step}
                for label, step in zip(labels, steps, strict=True)
            ],
        }
    ]


def symmetric_range(values: np.ndarray, share: float = 0.98) -> float:
    """Half the width of a colour range about zero, robust to outliers such as attention sinks."""
    known = np.abs(values[np.isfinite(values)])
    return float(np.quantile(known, share)) or 1.0 if len(known) else 1.0
