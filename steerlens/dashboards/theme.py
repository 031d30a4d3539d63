"""One look for every figure: colours, templates for light, dark and paper, and captions."""

import math
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

POSITIVE, NEGATIVE = "#D55E00", "#0072B2"
"""Everywhere: orange along a vector, or of its positive side; blue against it, or negative."""
SIGNS = "orange: {}; blue: {}"
"""Says so; each figure whose colours have a sign fills it in."""
CHOSEN = "#009E73"
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's colours, told apart by colour-blind readers."""
FLOOR = "#8c8c8c"
"""Of controls: what happens without the concept."""
DIVERGING = [[0.0, NEGATIVE], [0.5, "#f7f7f7"], [1.0, POSITIVE]]
PALE_DIVERGING = [[0.0, "#86bcdf"], [0.5, "#f7f7f7"], [1.0, "#f0ae86"]]
"""Under text in `INK`, which has at least seven times the contrast on all of it."""
INK = "#1a1a1a"
ON_DARK = {
    "#0072B2": "#5AA9E6", "#E69F00": "#F2B640", "#009E73": "#35C79A", "#CC79A7": "#E59AC4",
    "#56B4E9": "#A9DDF9", "#D55E00": "#F5813F", "#8c8c8c": "#a3a3a3", "#f7f7f7": "#262a31",
    "#86bcdf": "#0b4a75", "#f0ae86": "#8a3f0c", INK: "#f2f2f2",
}  # fmt: skip
"""What each colour becomes on a dark ground: lighter lines, and maps with a dark middle."""
SEQUENTIAL = "Cividis"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")

HEIGHT = 460
"""Pixels, unless a figure needs more."""
WIDE = 640
"""Pixels that panels side by side, or tokens along an axis, need to be read."""
TITLE_HEIGHT = 72
"""Pixels at the top of a figure, before its legend; each more line of its note adds some."""
LINE_HEIGHT = 17
LONGEST_LINE = 100
"""Characters of a note in one line."""
BREAK = "<br>"


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
    """Dress a figure: the light template, its title, and below it whatever notes are not empty.

    Pages scroll a figure sideways where the window is narrower than its `min_width`, in pixels.
    """
    note = wrapped(" · ".join(filter(None, notes)))
    more = LINE_HEIGHT * note.count(BREAK)
    height, top = height + more, TITLE_HEIGHT + more
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "subtitle": {"text": note}},
        height=height,
        meta={"min_width": min_width, "title_height": top},
        legend={"y": 1 - top / height},
    )
    if more:
        figure.update_layout(margin={"t": 130 + more})
    return figure


def wrapped(note: str) -> str:
    """A note in lines that fit a notebook's width: Plotly breaks none by itself."""
    lines = wrap(note, LONGEST_LINE, break_long_words=False, break_on_hyphens=False)
    return BREAK.join(lines)


def dark(figure: go.Figure) -> go.Figure:
    """The same figure on a dark ground."""
    layout = go.Layout(figure.layout).update(template=None)
    return go.Figure(
        [_recoloured(trace.to_plotly_json()) for trace in figure.data],
        _recoloured(layout.to_plotly_json()),
    ).update_layout(template=DARK)


def _recoloured(value: Any) -> Any:
    """Every colour as it is on a dark ground; other text stays."""
    if isinstance(value, dict):
        return {name: _recoloured(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_recoloured(one) for one in value]
    if not isinstance(value, str):
        return value
    begun, comma, opacity = value.rpartition(",")
    return ON_DARK.get(value) or FADED_ON_DARK.get(begun, begun) + comma + opacity


def plain(text: object) -> str:
    """Text that Plotly shows as it is, instead of reading its tags and entities."""
    return escape(str(text), quote=False)


def line_style(index: int) -> dict[str, Any]:
    """Lines that differ in colour, dash and marker, so that they do in grey too.

    Beyond six, colours come again with other dashes and markers.
    """
    round_, place = divmod(index, len(LINES))
    look = (place + round_) % len(LINES)
    return {
        "mode": "lines+markers",
        "line": {"color": LINES[place], "dash": _DASHES[look]},
        "marker": {"color": LINES[place], "symbol": _SYMBOLS[look], "size": 8},
    }


def faded(color: str, opacity: float = 0.2) -> str:
    """A hexadecimal colour as one that shows what is below it."""
    return f"{_rgba(color)},{opacity})"


def _rgba(color: str) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue}"


FADED_ON_DARK = {_rgba(old): _rgba(new) for old, new in ON_DARK.items()}
"""`ON_DARK` for what `faded` makes, up to its opacity."""


def add_band(figure: go.Figure, x: Any, low: Any, high: Any, color: str, **options: Any) -> None:
    """The area between `low` and `high`, from those points where both are known."""
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
    """Plotly's form of an interval about a value."""
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
    """Whole numbers, few enough to be read."""
    span = max(layers) - min(layers) + 1
    return {"title": {"text": "layer"}, "dtick": max(1, math.ceil(span / 16))}


def layer_slider(labels: Sequence[object], active: int, steps: Sequence[list[Any]]) -> list[dict]:
    """One step a layer, each updating the traces and the layout as its arguments say."""
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
    """A colour range about zero that a few outliers (an attention sink) do not use up."""
    known = np.abs(values[np.isfinite(values)])
    return float(np.quantile(known, share)) or 1.0 if len(known) else 1.0
