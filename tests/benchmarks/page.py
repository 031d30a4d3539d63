"""Results → a table in the terminal, and one self-contained page."""

from collections.abc import Iterable, Sequence
from html import escape
from statistics import median
from typing import Any

import plotly.graph_objects as go
from contest import Outcome
from limits import Account
from plotly.subplots import make_subplots
from rich.table import Table

from steerlens.dashboards.theme import LINES, TEMPLATE

MARKS = {True: "✓", False: "✗", None: "–"}
COLUMNS = ("job", "against", "ours, s", "theirs, s", "ratio (min–max)", "aim", "", "agreement")


def cells(outcome: Outcome) -> tuple[str, ...]:
    """One row of the table."""
    aim = (
        f"≥ {outcome.at_least:g}× faster"
        if outcome.at_least is not None
        else f"≤ {outcome.at_most:g}× its time"
        if outcome.at_most is not None
        else "–"
    )
    if outcome.ratio is None:
        return (outcome.job, outcome.rival, "", "", "", aim, MARKS[None], outcome.agreement.text)
    low, high = min(outcome.ratios), max(outcome.ratios)
    agreement = outcome.agreement.text + (f"; {outcome.remark}" if outcome.remark else "")
    return (
        outcome.job,
        outcome.rival,
        f"{median(outcome.ours):.3g}",
        f"{median(outcome.theirs):.3g}",
        f"{outcome.ratio:.2f} ({low:.2f}–{high:.2f})",
        aim,
        MARKS[outcome.reached],
        f"{MARKS[outcome.agreement.holds]} {agreement}",
    )


def ratio_table(outcomes: Iterable[Outcome]) -> Table:
    return _table("Medians of interleaved runs", COLUMNS, map(cells, outcomes))


def account_table(accounts: Sequence[Account]) -> Table:
    kinds = list(accounts[0].shares)
    rows = [
        (
            one.job,
            f"{one.seconds:.3g}",
            f"{one.limit:.3g}",
            one.from_limit,
            *(f"{one.shares[kind]:.0%}" for kind in kinds),
        )
        for one in accounts
    ]
    title = "Our time, the machine's limit for the same work, and where the time goes"
    return _table(title, ("job", "s", "limit, s", "time / limit", *kinds), rows)


def growth_table(curves: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (
            curve["name"],
            ", ".join(f"{value:,}" for value in curve["values"]),
            ", ".join(f"{value:.3g}" for value in curve["seconds"]),
            f"{curve['exponents']['seconds']:.2f}",
            ", ".join(f"{value / 2**20:.0f}" for value in curve["bytes"]),
            f"{curve['exponents']['bytes']:.2f}",
        )
        for curve in curves
    ]
    columns = ("growth of", "sizes", "s", "exponent", "peak MiB beyond the model", "exponent")
    return _table("Growth: time and memory ∝ size to the exponent", columns, rows)


def gpu_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("job", "s", "CAST as published (A100), s", "TFLOP/s", "of matrix products' rate")
    return _table(
        f"{rows[0]['model']}: matrix products reach {rows[0]['peak_tflops']:.3g} TFLOP/s",
        columns,
        [
            (
                row["job"],
                f"{row['seconds']:.3g}",
                f"{row['published']:g}",
                f"{row['tflops']:.3g}",
                f"{row['utilisation']:.0%}",
            )
            for row in rows
        ],
    )


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def ratio_bars(outcomes: Sequence[Outcome], shares: bool) -> go.Figure:
    """One bar for each rival; whiskers from least to most, a mark at what is aimed at."""
    kept = [
        one for one in outcomes if one.ratio is not None and (one.at_most is not None) == shares
    ][::-1]
    names = [f"{one.job}<br><b>{escape(one.rival)}</b>" for one in kept]
    ratios = [one.ratio for one in kept]
    start = 0 if shares else 1  # a logarithmic bar grows from equality, either way
    figure = go.Figure(layout={"template": TEMPLATE})
    figure.add_bar(
        y=names,
        x=[ratio - start for ratio in ratios],
        base=start,
        orientation="h",
        name="median",
        error_x={
            "array": [max(one.ratios) - one.ratio for one in kept],
            "arrayminus": [one.ratio - min(one.ratios) for one in kept],
        },
        text=[f"{ratio:.2f}" for ratio in ratios],
        textposition="inside",
        insidetextanchor="start",
        textangle=0,
    )
    figure.add_scatter(
        y=names,
        x=[one.at_most if shares else one.at_least for one in kept],
        mode="markers",
        name="aimed at",
        marker={"symbol": "line-ns-open", "size": 22, "line": {"width": 3}, "color": LINES[5]},
    )
    title = (
        "Our time as a share of theirs (shorter is better; at 1 both take equally long)"
        if shares
        else "How many times as long the other one takes (longer is better; at 1 equally long)"
    )
    figure.update_layout(
        title=title,
        height=220 + 48 * len(kept),
        xaxis={"title": "ratio of times"} | ({} if shares else {"type": "log", "dtick": "D2"}),
        yaxis={"automargin": True, "title": None},
    )
    return figure


def share_bars(accounts: Sequence[Account]) -> go.Figure:
    """Where the time of each job goes."""
    figure = go.Figure(layout={"template": TEMPLATE})
    names = [f"{one.job}<br>{one.from_limit} × the limit" for one in accounts][::-1]
    for kind, colour in zip(accounts[0].shares, (*LINES, "#bbbbbb"), strict=True):
        figure.add_bar(
            y=names,
            x=[one.shares[kind] for one in accounts][::-1],
            orientation="h",
            name=kind,
            marker={"color": colour},
        )
    figure.update_layout(
        title="Where our time goes, and how many times the machine's limit it is",
        barmode="stack",
        height=260 + 48 * len(accounts),
        xaxis={"tickformat": ".0%", "title": "share of the time of a profiled run"},
        yaxis={"automargin": True},
        legend={"xref": "paper", "x": 0, "xanchor": "left", "y": 0.9, "traceorder": "normal"},
    )
    return figure


def growth_curves(curves: Sequence[dict[str, Any]]) -> go.Figure:
    """Time above, memory below; both axes logarithmic, so that a slope is an exponent."""
    titles = [
        f"{curve['name']}<br>{what} ∝ {curve['axis']}<sup>{curve['exponents'][key]:.2f}</sup>"
        for key, what in (("seconds", "time"), ("bytes", "memory"))
        for curve in curves
    ]
    figure = make_subplots(2, len(curves), subplot_titles=titles, vertical_spacing=0.24)
    for column, curve in enumerate(curves, start=1):
        for row, values in ((1, curve["seconds"]), (2, [b / 2**20 for b in curve["bytes"]])):
            figure.add_scatter(
                x=curve["values"],
                y=values,
                mode="lines+markers",
                showlegend=False,
                line={"color": LINES[row - 1]},
                row=row,
                col=column,
            )
            figure.update_xaxes(title=curve["axis"], type="log", row=row, col=column)
            figure.update_yaxes(type="log", row=row, col=column)
    figure.update_yaxes(title="seconds", row=1, col=1)
    figure.update_yaxes(title="MiB beyond the model", row=2, col=1)
    figure.update_layout(template=TEMPLATE, title="Growth of time and memory", height=760)
    return figure


def html(environment: dict[str, Any], figures: Sequence[go.Figure], tables: Sequence[Table]) -> str:
    """One page that needs nothing else."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>steerlens benchmarks</title>"
        "<style>body{font:14px Helvetica,Arial,sans-serif;max-width:1200px;margin:2em auto}"
        "table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;"
        "padding:.3em .6em;text-align:left;vertical-align:top}</style>"
        "<h1>steerlens benchmarks</h1>"
        "<p>Programs run in turn in one process, after a warm-up of each. A ratio is the median "
        "over rounds; it means something only where the results agree.</p>"
    ]
    facts = ", ".join(f"{name} {value}" for name, value in environment.items())
    parts.append(f"<p>{escape(facts)}</p>")
    parts += [
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    ]
    parts += map(_html_table, tables)
    return "\n".join(parts) + "</html>"


def _html_table(table: Table) -> str:
    def row(tag: str, texts: Iterable[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(str(text))}</{tag}>' for text in texts)}</tr>"

    head = row("th", (column.header for column in table.columns))
    columns = [list(column.cells) for column in table.columns]
    body = "".join(row("td", texts) for texts in zip(*columns, strict=True))
    return f"<h2>{escape(str(table.title))}</h2><table>{head}{body}</table>"
