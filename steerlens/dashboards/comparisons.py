"""Rates and means of groups beside each other → figures."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.results import (
    growth,
    shares,
)
from steerlens.dashboards.tables import (
    RATES,
    SATURATION,
    SENTIMENT,
    binned,
    checked,
    merged,
    notes_on,
    require_few,
)
from steerlens.dashboards.theme import (
    LINES,
    WIDE,
    add_band,
    error_bars,
    line_style,
    plain,
    titled,
)
from steerlens.errors import SteerlensError
from steerlens.evaluation.evaluation import Evaluation


def sentiment(table: pd.DataFrame) -> go.Figure:
    """Sentiment of each arm, and beside it how coherent its text is.

    Takes the columns arm, polarity, low, high, bits_per_character, n. Text that the unsteered model
    finds unlikely (many bits) has fallen apart, whatever its words say.
    """
    given = checked(table, SENTIMENT)
    twice = given.loc[given.duplicated("arm"), "arm"].unique()
    if len(twice):
        raise SteerlensError(f"{', '.join(twice[:5])} came more than once; give one row an arm")
    require_few(len(given), "arms", "keep the arms to compare")
    figure = make_subplots(1, 2, subplot_titles=["sentiment", "coherence"], horizontal_spacing=0.14)
    names = [plain(arm) for arm in given["arm"]]
    colors = [LINES[index % len(LINES)] for index in range(len(given))]
    for column, (value, error) in enumerate(
        (
            (
                "polarity",
                error_bars(given["polarity"], given["low"], given["high"]),
            ),
            ("bits_per_character", None),
        ),
        start=1,
    ):
        figure.add_bar(
            x=names,
            y=given[value],
            error_y=error,
            marker={"color": colors},
            showlegend=False,
            customdata=given["n"],
            hovertemplate="%{x}: %{y:.3f}, n = %{customdata:.0f}<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_yaxes(title_text="polarity", zeroline=True, row=1, col=1)
    figure.update_yaxes(title_text="bits per character (fewer: more coherent)", row=1, col=2)
    notes = notes_on(given, given, SENTIMENT)
    return titled(figure, "Sentiment and coherence", *notes, "95 % intervals", min_width=WIDE)


def saturation(result: pd.DataFrame) -> go.Figure:
    """How a measure grows with the number of training pairs, one line a measure.

    Args:
        result: a table of pairs, measure, value, low, high, n, or the `saturation` of a CAST table.
    """
    given = checked(growth(result), SATURATION)
    rows = merged(binned(given, "pairs"), ["measure", "pairs"], "value").sort_values("pairs")
    figure = go.Figure()
    measures = dict(list(rows.groupby("measure", sort=False)))
    require_few(len(measures), "measures", "filter the table first")
    for index, (measure, part) in enumerate(measures.items()):
        style = line_style(index)
        add_band(figure, part["pairs"], part["low"], part["high"], style["line"]["color"],
                 legendgroup=measure, showlegend=False)  # fmt: skip
        figure.add_scatter(
            x=part["pairs"],
            y=part["value"],
            name=plain(measure),
            legendgroup=measure,
            showlegend=True,
            customdata=part["n"],
            hovertemplate="%{x:.0f} pairs: %{y:.3f}, n = %{customdata:.0f}",
            **style,
        )
    figure.update_xaxes(title="training pairs", type="log", tickvals=_few(rows["pairs"]))
    figure.update_yaxes(title="rate")
    return titled(
        figure,
        "What more training pairs bring",
        *notes_on(given, rows, SATURATION),
        "bands: 95 % intervals, or the range of draws",
    )


def rates(result: Evaluation | pd.DataFrame, measure: str | None = None) -> go.Figure:
    """Rates with their intervals, grouped by part; the demo's results, for one.

    Args:
        result: an evaluation by judges that say yes or no; the `rates` of a CAST table; or a table
            of part, group, measure, value, low, high, n.
        measure: which of its measures; the first, unless said otherwise.
    """
    given = checked(shares(result), RATES)
    measure = given["measure"].iloc[0] if measure is None else measure
    rows = given[given["measure"] == measure]
    if rows.empty:
        known = ", ".join(dict.fromkeys(given["measure"]))
        raise SteerlensError(f"no row measures {measure!r}; the table has {known}")
    rows = merged(rows, ["part", "group"], "value")
    require_few(rows["group"].nunique(), "groups", "filter the table first")
    figure = go.Figure()
    width, starts = _slots(rows)
    for index, (group, part) in enumerate(rows.groupby("group", sort=False)):
        figure.add_bar(
            x=[plain(name) for name in part["part"]],
            y=part["value"],
            name=plain(group),
            showlegend=True,
            error_y=error_bars(part["value"], part["low"], part["high"]),
            width=width,
            offset=[starts[name, group] for name in part["part"]],
            marker={
                "color": LINES[index % len(LINES)],
                "pattern": {
                    "shape": ("", "/", ".", "x", "-", "+")[index % 6],
                    "size": 7,
                    "fillmode": "overlay",
                    "solidity": 0.15,
                },
            },
            customdata=part["n"],
            hovertemplate="%{x}: %{y:.1%}, n = %{customdata:.0f}",
        )
    figure.update_yaxes(title=f"share {plain(measure)}", range=[0, 1.05], tickformat=".0%")
    return titled(
        figure, f"Replies {plain(measure)}", *notes_on(rows, rows, RATES), "95 % intervals"
    )


def _slots(rows: pd.DataFrame) -> tuple[float, dict[tuple[str, str], float]]:
    """The width of a bar, and where each begins: a part's own groups stand about its tick."""
    own = {part: list(names) for part, names in rows.groupby("part", sort=False)["group"]}
    width = 0.8 / max(map(len, own.values()))
    starts = {
        (part, group): (place - len(groups) / 2) * width
        for part, groups in own.items()
        for place, group in enumerate(groups)
    }
    return width, starts


def _few(numbers: pd.Series, most: int = 10) -> list[float]:
    """Some of the values, evenly chosen, as places for ticks."""
    distinct = np.sort(numbers.unique())
    return distinct[:: -(-len(distinct) // most)].tolist()
