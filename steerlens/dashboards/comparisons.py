"""Rates and means of groups, compared → figures."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.results import growth, shares
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
    """Sentiment of each arm in one panel, coherence of its text in the other.

    Text that the unsteered model finds unlikely (many bits per character) is incoherent, whatever
    its sentiment.

    Args:
        table: Columns arm, polarity, low, high, bits_per_character, n; one row per arm, as
            `Sentiment.arms` gives them.

    >>> arms = {"arm": ["unsteered", "+ joy"], "polarity": [0.1, 0.6], "low": [0, 0.5], "n": 50}
    >>> sentiment(pd.DataFrame({**arms, "high": [0.2, 0.7], "bits_per_character": 1.5})).data[0].y
    array([0.1, 0.6])
    """
    given = checked(table, SENTIMENT)
    repeated = given.loc[given.duplicated("arm"), "arm"].unique()
    if len(repeated):
        raise SteerlensError(
            f"got the arms {', '.join(repeated[:5])} more than once; expected one row per arm"
        )
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
    """How measures change with the number of training pairs, one line per measure.

    Args:
        result: Columns pairs, measure, value, low, high, n; or the `saturation` of a `CastTable`.

    >>> curve = {"pairs": [4, 8], "measure": "F1", "value": [0.6, 0.8], "n": 60}
    >>> saturation(pd.DataFrame({**curve, "low": [0.5, 0.7], "high": [0.7, 0.9]})).data[1].name
    'F1'
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
    figure.update_xaxes(title="training pairs", type="log", tickvals=_ticks(rows["pairs"]))
    figure.update_yaxes(title="rate")
    return titled(
        figure,
        "Gain from more training pairs",
        *notes_on(given, rows, SATURATION),
        "bands: 95 % intervals, or the range of draws",
    )


def rates(result: Evaluation | pd.DataFrame, measure: str | None = None) -> go.Figure:
    """Rates with their intervals as bars, grouped by part.

    Args:
        result: An evaluation with a judge that scores 1 or 0; the `rates` of a `CastTable`; or a
            table with the columns part, group, measure, value, low, high, n (the demo's results).
        measure: The measure to show; default: the first.

    >>> row = {"part": "I", "group": "all", "measure": "refused", "value": 0.5, "n": 20}
    >>> rates(pd.DataFrame([{**row, "low": 0.3, "high": 0.7}])).layout.yaxis.title.text
    'share refused'
    """
    given = checked(shares(result), RATES)
    measure = given["measure"].iloc[0] if measure is None else measure
    rows = given[given["measure"] == measure]
    if rows.empty:
        known = ", ".join(dict.fromkeys(given["measure"]))
        raise SteerlensError(f"got measure={measure!r}; expected one of the table's: {known}")
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
    """The width of a bar, and the offset of each: a part's groups are centred on its tick."""
    groups_of = {part: list(names) for part, names in rows.groupby("part", sort=False)["group"]}
    width = 0.8 / max(map(len, groups_of.values()))
    starts = {
        (part, group): (index - len(groups) / 2) * width
        for part, groups in groups_of.items()
        for index, group in enumerate(groups)
    }
    return width, starts


def _ticks(numbers: pd.Series, most: int = 10) -> list[float]:
    """At most `most` of the values, evenly chosen."""
    distinct = np.sort(numbers.unique())
    return distinct[:: -(-len(distinct) // most)].tolist()
