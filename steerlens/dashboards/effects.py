"""Measured effects → figures, from tidy tables; which columns each needs is in `tables`."""

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots

from steerlens.dashboards.tables import (
    DOSE_RESPONSE,
    PARETO,
    RATES,
    SATURATION,
    SENTIMENT,
    SWEEP,
    binned,
    checked,
    merged,
    natural,
    notes_on,
)
from steerlens.dashboards.theme import (
    CHOSEN,
    FLOOR,
    LINES,
    SEQUENTIAL,
    WIDE,
    add_band,
    error_bars,
    line_style,
    plain,
    titled,
)
from steerlens.errors import SteerlensError

MOST_CHOICES = 24
"""Entries of a menu, and panels of a figure, that a reader can still use."""
MOST_POINTS = 400
"""Settings in a scatter beside the front; more are taken together on a grid."""
_CONTROL = re.compile(r"^(random|shuffled)\b")


def layer_strength(table: pd.DataFrame) -> go.Figure:
    """Effect over layers and strengths; a menu chooses among vectors and judges.

    Takes a sweep summary: vector, layers, strength, judge, mean, low, high, n.
    """
    given = checked(table, SWEEP)
    rows = merged(binned(given, "strength"), ["vector", "judge", "layers", "strength"], "mean")
    groups = dict(list(rows.groupby(["vector", "judge"], sort=False)))
    _require_few(len(groups), "vectors × judges", "filter the table first")
    figure = go.Figure()
    for index, group in enumerate(groups.values()):
        cells = group.set_index(["layers", "strength"])
        layers = sorted(group["layers"].unique(), key=natural)
        strengths = np.sort(group["strength"].unique())
        grid = pd.MultiIndex.from_product([layers, strengths])
        shape = (len(layers), len(strengths))
        whole = cells.reindex(grid)
        hover = np.stack([whole[c].to_numpy().reshape(shape) for c in ("low", "high", "n")], -1)
        figure.add_heatmap(
            x=[f"{strength:g}" for strength in strengths],
            y=layers,
            z=whole["mean"].to_numpy().reshape(shape).astype(np.float32),
            customdata=hover.astype(np.float32),
            colorscale=SEQUENTIAL,
            visible=index == 0,
            hovertemplate="layers %{y}, strength %{x}: %{z:.3f}<br>%{customdata[0]:.3f} to "
            "%{customdata[1]:.3f}, n = %{customdata[2]:.0f}<extra></extra>",
        )
    titles = [f"{plain(vector)}: {plain(judge)} by layers and strength" for vector, judge in groups]
    notes = [
        " · ".join(filter(None, [*notes_on(group, group, SWEEP), _unfilled(trace.z)]))
        for group, trace in zip(groups.values(), figure.data, strict=True)
    ]
    together = notes_on(given, rows, SWEEP)[-1]
    figure.update_xaxes(title="strength", type="category", showgrid=False)
    figure.update_yaxes(title="layers", type="category", showgrid=False)
    if len(groups) > 1:
        figure.update_layout(updatemenus=[_menu(titles, notes)])
    n_rows = max(len(trace.y) for trace in figure.data)
    return titled(figure, titles[0], notes[0], together, height=max(460, 200 + 24 * n_rows))


def dose_response(table: pd.DataFrame) -> go.Figure:
    """Effect over strength beside its controls, one panel a judge: the effect, then side effects.

    Takes a dose-response table: arm, strength, judge, mean, low, high, n. Arms called "random 1",
    "shuffled 2" and so on are drawn as one floor each, from the lowest end to the highest;
    "unsteered" as a level.
    """
    given = checked(table, DOSE_RESPONSE)
    rows = merged(binned(given, "strength"), ["arm", "judge", "strength"], "mean")
    judges = list(dict.fromkeys(rows["judge"]))
    _require_few(len(judges), "judges", "filter the table first")
    figure = make_subplots(
        len(judges),
        1,
        shared_xaxes=True,
        subplot_titles=[plain(judge) for judge in judges],
        vertical_spacing=0.25 / len(judges),
    )
    arms = [arm for arm in dict.fromkeys(rows["arm"]) if not _CONTROL.match(arm)]
    for panel, judge in enumerate(judges, start=1):
        of_judge = rows[rows["judge"] == judge]
        for kind in ("random", "shuffled"):
            _add_floor(figure, of_judge, kind, panel)
        for index, arm in enumerate(arms):
            _add_arm(figure, of_judge[of_judge["arm"] == arm], arm, index, panel, of_judge)
        figure.update_yaxes(title_text=plain(judge), row=panel, col=1)
    figure.update_xaxes(title_text="strength", row=len(judges), col=1)
    return titled(
        figure,
        "Dose and response",
        *notes_on(given, rows, DOSE_RESPONSE),
        "bands: 95 % intervals; of controls, from the lowest end to the highest",
        height=200 + 280 * len(judges),
    )


def pareto(table: pd.DataFrame, *, kl_unit: str = "nats per token") -> go.Figure:
    """Effect against KL to the unsteered model; the settings that no other beats are joined.

    Takes the columns name, strength, effect, low, high, kl.
    """
    given = checked(table, PARETO).dropna(subset=["kl"])
    rows = given.dropna(subset=["effect"])
    if rows.empty:
        raise SteerlensError("no row has both an effect and a kl; there is nothing to draw")
    best = pareto_front(rows["kl"].to_numpy(), rows["effect"].to_numpy())
    front, others = rows[best].sort_values("kl"), rows[~best]
    thinned = _on_a_grid(others)
    figure = go.Figure()
    for part, name, color, mode in (
        (thinned, "settings", LINES[0], "markers"),
        (front, "Pareto front", CHOSEN, "lines+markers"),
    ):
        figure.add_scatter(
            x=part["kl"],
            y=part["effect"],
            error_y=error_bars(part["effect"], part["low"], part["high"]),
            mode=mode,
            name=name,
            showlegend=True,
            marker={
                "color": color,
                "size": 9,
                "symbol": "circle" if part is thinned else "diamond",
            },
            line={"color": color, "shape": "hv"},
            customdata=np.stack([part["name"].map(plain), part["strength"].map("{:g}".format)], -1),
            hovertemplate="%{customdata[0]}, strength %{customdata[1]}<br>effect %{y:.3f}, "
            "KL %{x:.4f}<extra></extra>",
        )
    figure.update_xaxes(title=f"KL to the unsteered model ({plain(kl_unit)})", rangemode="tozero")
    figure.update_yaxes(title="effect")
    empty = len(table) - len(rows)
    return titled(
        figure,
        "Effect against side effect",
        f"{len(rows):,} settings, {int(best.sum())} on the front",
        f"{empty} empty (NaN)" if empty else "",
        f"the other {len(others):,} averaged on a grid" if len(thinned) < len(others) else "",
    )


def pareto_front(
    kl: Float[np.ndarray, " setting"], effect: Float[np.ndarray, " setting"]
) -> Bool[np.ndarray, " setting"]:
    """Which settings no other beats: at least the effect for at most the KL, one of them better.

    >>> pareto_front(np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.9]))
    array([ True, False,  True])
    """
    order = np.lexsort([-effect, kl])
    best = np.zeros(len(kl), dtype=bool)
    highest, at = -np.inf, np.nan
    for place in order:
        if effect[place] > highest or (effect[place] == highest and kl[place] == at):
            best[place] = True
            highest, at = effect[place], kl[place]
    return best


def sentiment(table: pd.DataFrame) -> go.Figure:
    """Sentiment of each arm, and beside it how coherent its text is.

    Takes the columns arm, polarity, low, high, bits_per_character, n. Text that the unsteered model
    finds unlikely (many bits) has fallen apart, whatever its words say.
    """
    given = checked(table, SENTIMENT)
    twice = given.loc[given.duplicated("arm"), "arm"].unique()
    if len(twice):
        raise SteerlensError(f"{', '.join(twice[:5])} came more than once; give one row an arm")
    _require_few(len(given), "arms", "keep the arms to compare")
    figure = make_subplots(1, 2, subplot_titles=["sentiment", "coherence"], horizontal_spacing=0.14)
    names = [plain(arm) for arm in given["arm"]]
    colors = [LINES[index % len(LINES)] for index in range(len(given))]
    for column, (value, error) in enumerate(
        (
            ("polarity", error_bars(given["polarity"], given["low"], given["high"])),
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


def saturation(table: pd.DataFrame) -> go.Figure:
    """How a measure grows with the number of training pairs, one line a measure.

    Takes the columns pairs, measure, value, low, high, n.
    """
    given = checked(table, SATURATION)
    rows = merged(binned(given, "pairs"), ["measure", "pairs"], "value").sort_values("pairs")
    figure = go.Figure()
    measures = dict(list(rows.groupby("measure", sort=False)))
    _require_few(len(measures), "measures", "filter the table first")
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
        "bands: 95 % intervals",
    )


def rates(table: pd.DataFrame, measure: str | None = None) -> go.Figure:
    """Rates with their intervals, grouped by part; the demo's results, for one.

    Takes the columns part, group, measure, value, low, high, n; `measure` is the first by default.
    """
    given = checked(table, RATES)
    measure = given["measure"].iloc[0] if measure is None else measure
    rows = given[given["measure"] == measure]
    if rows.empty:
        known = ", ".join(dict.fromkeys(given["measure"]))
        raise SteerlensError(f"no row measures {measure!r}; the table has {known}")
    rows = merged(rows, ["part", "group"], "value")
    _require_few(rows["group"].nunique(), "groups", "filter the table first")
    figure = go.Figure()
    for index, (group, part) in enumerate(rows.groupby("group", sort=False)):
        figure.add_bar(
            x=[plain(name) for name in part["part"]],
            y=part["value"],
            name=plain(group),
            showlegend=True,
            error_y=error_bars(part["value"], part["low"], part["high"]),
            marker={
                "color": LINES[index % len(LINES)],
                "pattern": {"shape": ("", "/", ".", "x", "-", "+")[index % 6], "size": 5},
            },
            customdata=part["n"],
            hovertemplate="%{x}: %{y:.1%}, n = %{customdata:.0f}",
        )
    figure.update_yaxes(title=f"share {plain(measure)}", range=[0, 1.05], tickformat=".0%")
    figure.update_layout(barmode="group")
    return titled(
        figure, f"Replies {plain(measure)}", *notes_on(rows, rows, RATES), "95 % intervals"
    )


def _add_floor(figure: go.Figure, rows: pd.DataFrame, kind: str, panel: int) -> None:
    """All arms of one kind of control as one band, and their mean as a line."""
    controls = rows[[str(arm).startswith(kind) for arm in rows["arm"]]]
    if controls.empty:
        return
    floor = controls.groupby("strength").agg(
        mean=("mean", "mean"), low=("low", "min"), high=("high", "max")
    )
    n_arms = controls["arm"].nunique()
    color = FLOOR if kind == "random" else LINES[3]
    x = floor.index.to_numpy()
    add_band(figure, x, floor["low"], floor["high"], color, legendgroup=kind, showlegend=False,
             row=panel, col=1)  # fmt: skip
    figure.add_scatter(
        x=x,
        y=floor["mean"],
        name=f"{kind} ({n_arms} arm{'s' * (n_arms > 1)})",
        legendgroup=kind,
        showlegend=panel == 1,
        mode="lines",
        line={"color": color, "dash": "dot" if kind == "random" else "dashdot"},
        hovertemplate=f"{kind}, strength %{{x:g}}: %{{y:.3f}}<extra></extra>",
        row=panel,
        col=1,
    )


def _add_arm(
    figure: go.Figure,
    part: pd.DataFrame,
    arm: str,
    index: int,
    panel: int,
    panel_rows: pd.DataFrame,
) -> None:
    if part.empty:
        return
    style = line_style(index)
    part = part.sort_values("strength")
    if arm == "unsteered":  # a level, drawn across all strengths
        level = part.iloc[[0, 0]].assign(
            strength=[panel_rows["strength"].min(), panel_rows["strength"].max()]
        )
        part, style = level, {"mode": "lines", "line": {"color": FLOOR, "width": 2}}
    add_band(figure, part["strength"], part["low"], part["high"], style["line"]["color"],
             legendgroup=arm, showlegend=False, row=panel, col=1)  # fmt: skip
    figure.add_scatter(
        x=part["strength"],
        y=part["mean"],
        name=plain(arm),
        legendgroup=arm,
        showlegend=panel == 1,
        customdata=part[["low", "high", "n"]].to_numpy(),
        hovertemplate="strength %{x:g}: %{y:.3f}<br>%{customdata[0]:.3f} to %{customdata[1]:.3f}, "
        "n = %{customdata[2]:.0f}",
        row=panel,
        col=1,
        **style,
    )


def _on_a_grid(rows: pd.DataFrame, steps: int = 20) -> pd.DataFrame:
    """Many points as the means of their cells on a `steps` × `steps` grid."""
    if len(rows) <= MOST_POINTS:
        return rows
    cells = [pd.cut(rows[column], steps, labels=False) for column in ("kl", "effect")]
    numbers = rows.groupby(cells)[["strength", "effect", "low", "high", "kl"]].mean()
    counts = rows.groupby(cells).size()
    return numbers.assign(name=[f"{count} settings" for count in counts])


def _menu(titles: list[str], notes: list[str]) -> dict:
    """A drop-down that shows one trace at a time, under its own title."""
    return {
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
        "buttons": [
            {
                "label": title.removesuffix(" by layers and strength"),
                "method": "update",
                "args": [
                    {"visible": [other == index for other in range(len(titles))]},
                    {"title.text": title, "title.subtitle.text": notes[index]},
                ],
            }
            for index, title in enumerate(titles)
        ],
    }


def _few(numbers: pd.Series, most: int = 10) -> list[float]:
    """Some of the values, evenly chosen, as places for ticks."""
    distinct = np.sort(numbers.unique())
    return distinct[:: -(-len(distinct) // most)].tolist()


def _unfilled(z: np.ndarray) -> str:
    gaps = int(np.isnan(z).sum())
    return f"{gaps} of {z.size} cells empty" if gaps else ""


def _require_few(count: int, what: str, advice: str) -> None:
    if count > MOST_CHOICES:
        raise SteerlensError(f"{count} {what} came, more than {MOST_CHOICES}; {advice}")
