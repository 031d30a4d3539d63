"""Effects by layer and strength → figures; `tables` lists the columns that each needs."""

import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.dashboards.results import DEGENERATE, degenerate_note, doses, sweep_cells
from steerlens.dashboards.tables import (
    DOSE_RESPONSE,
    SWEEP,
    binned,
    checked,
    merged,
    natural,
    notes_on,
    require_few,
)
from steerlens.dashboards.theme import (
    FLOOR,
    LINES,
    SEQUENTIAL,
    add_band,
    line_style,
    plain,
    titled,
    wrapped,
)
from steerlens.evaluation.effects import UNSTEERED
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.sweep_store import Sweep
from steerlens.intervals import Interval
from steerlens.judges.fluency import TOO_MANY_DEGENERATE

_CONTROL = re.compile(r"^(random|shuffled)\b")


def layer_strength(result: Sweep | pd.DataFrame) -> go.Figure:
    """Mean score by layers and strength as a heatmap; a menu chooses the vector and judge.

    Args:
        result: A sweep or its `summary()`; or a table with the columns vector, layers, strength,
            judge, mean, low, high, n. The score of the vector "unsteered" is noted below the title.

    >>> swept = sweep(model, vector, prompts, judges=[judges.refusal], max_new_tokens=8)
    >>> layer_strength(swept).data[0].y
    ('2', '3')
    """
    table = checked(sweep_cells(result), SWEEP)
    is_unsteered = table["vector"] == UNSTEERED
    given = checked(table[~is_unsteered], SWEEP)
    rows = merged(binned(given, "strength"), ["vector", "judge", "layers", "strength"], "mean")
    groups = dict(list(rows.groupby(["vector", "judge"], sort=False)))
    require_few(len(groups), "vectors × judges", "filter the table first")
    figure = go.Figure()
    for index, group in enumerate(groups.values()):
        cells = group.set_index(["layers", "strength"])
        layers = sorted(group["layers"].unique(), key=natural)
        strengths = np.sort(group["strength"].unique())
        grid = pd.MultiIndex.from_product([layers, strengths])
        shape = (len(layers), len(strengths))
        cell = cells.reindex(grid)
        hover = np.stack([cell[c].to_numpy().reshape(shape) for c in ("low", "high", "n")], -1)
        figure.add_heatmap(
            x=[f"{strength:g}" for strength in strengths],
            y=layers,
            z=cell["mean"].to_numpy().reshape(shape).astype(np.float32),
            **_degenerate_marks(cell, shape),
            colorbar={"title": {"text": plain(group["judge"].iloc[0])}},
            customdata=hover.astype(np.float32),
            colorscale=SEQUENTIAL,
            visible=index == 0,
            hovertemplate="layers %{y}, strength %{x}: %{z:.3f}<br>%{customdata[0]:.3f} to "
            "%{customdata[1]:.3f}, n = %{customdata[2]:.0f}<extra></extra>",
        )
    titles = [f"{plain(vector)}: {plain(judge)} by layers and strength" for vector, judge in groups]
    notes = [
        " · ".join(
            filter(
                None,
                [
                    _reference(table[is_unsteered], judge),
                    *notes_on(group, group, SWEEP),
                    _unfilled(trace.z),
                    "×: over 10 % of replies degenerate" if trace.text is not None else "",
                ],
            )
        )
        for (_, judge), group, trace in zip(groups, groups.values(), figure.data, strict=True)
    ]
    merged_note = notes_on(given, rows, SWEEP)[-1]
    figure.update_xaxes(title="strength", type="category", showgrid=False)
    figure.update_yaxes(title="layers", type="category", showgrid=False)
    if len(groups) > 1:
        figure.update_layout(updatemenus=[_menu(titles, notes)])
    n_rows = max(len(trace.y) for trace in figure.data)
    return titled(figure, titles[0], notes[0], merged_note, height=max(460, 200 + 24 * n_rows))


def dose_response(result: Evaluation | Sweep | pd.DataFrame) -> go.Figure:
    """Effect over strength with its controls, one panel per judge.

    Args:
        result: An evaluation or its `effects` (paired changes from unsteered); a sweep or its
            `summary()` (mean scores, one arm per vector and layers); or a table with the columns
            arm, strength, judge, mean, low, high, n. Arms named "random 1", "shuffled 2" … form one
            band per kind, over all their intervals; "unsteered" is a horizontal line.

    >>> row = {"arm": "steered", "judge": "joy", "mean": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    >>> dose_response(pd.DataFrame([{**row, "strength": s} for s in (1, 2)])).data[-1].name
    'steered'
    """
    given = checked(doses(result), DOSE_RESPONSE)
    rows = merged(binned(given, "strength"), ["arm", "judge", "strength"], "mean")
    judges = list(dict.fromkeys(rows["judge"]))
    require_few(len(judges), "judges", "filter the table first")
    figure = make_subplots(
        len(judges),
        1,
        shared_xaxes=True,
        subplot_titles=[plain(judge) for judge in judges],
        vertical_spacing=0.25 / len(judges),
    )
    arms = [arm for arm in dict.fromkeys(rows["arm"]) if not _CONTROL.match(arm)]
    require_few(len(arms), "arms", "filter the result first, or draw layer_strength")
    for panel, judge in enumerate(judges, start=1):
        judged = rows[rows["judge"] == judge]
        for kind in ("random", "shuffled"):
            _add_floor(figure, judged, kind, panel)
        for index, arm in enumerate(arms):
            _add_arm(figure, judged[judged["arm"] == arm], arm, index, panel, judged)
        figure.update_yaxes(title_text=plain(judge), row=panel, col=1)
    figure.update_xaxes(title_text="strength", row=len(judges), col=1)
    return titled(
        figure,
        "Dose and response",
        *notes_on(given, rows, DOSE_RESPONSE),
        "bands: 95 % intervals; controls: from their lowest to their highest limit",
        degenerate_note(given, lambda row: f"{row['arm']}, strength {row['strength']:g}"),
        height=200 + 280 * len(judges),
    )


def _degenerate_marks(cells: pd.DataFrame, shape: tuple[int, int]) -> dict[str, Any]:
    """A cross in each cell where more than a tenth of the replies are degenerate."""
    if DEGENERATE not in cells or not (cells[DEGENERATE] > TOO_MANY_DEGENERATE).any():
        return {}
    marks = np.where(cells[DEGENERATE] > TOO_MANY_DEGENERATE, "×", "").reshape(shape)
    return {"text": marks, "texttemplate": "%{text}", "textfont": {"size": 22}}


def _reference(unsteered: pd.DataFrame, judge: str) -> str:
    rows = unsteered[unsteered["judge"] == judge]
    if rows.empty:
        return ""
    row = rows.iloc[0]
    return f"unsteered: {Interval(row['mean'], row['low'], row['high'])}"


def _add_floor(figure: go.Figure, rows: pd.DataFrame, kind: str, panel: int) -> None:
    """All control arms of one kind as one band, and their mean as a line."""
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
    if arm == UNSTEERED:  # a horizontal line across all strengths
        ends = [panel_rows["strength"].min(), panel_rows["strength"].max()]
        part = part.iloc[[0, 0]].assign(strength=ends)
        style = {"mode": "lines", "line": {"color": FLOOR, "width": 2}}
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


def _menu(titles: list[str], notes: list[str]) -> dict:
    """A drop-down that shows one trace at a time, with its title."""
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
                    {"title.text": title, "title.subtitle.text": wrapped(notes[index])},
                ],
            }
            for index, title in enumerate(titles)
        ],
    }


def _unfilled(z: np.ndarray) -> str:
    gaps = int(np.isnan(z).sum())
    return f"{gaps} of {z.size} cells empty" if gaps else ""
