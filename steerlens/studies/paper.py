"""Figures and tables for papers: column widths, one font size, and a CSV of each one's data."""

import os
import re
import runpy
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from steerlens.errors import SteerlensError, import_extra
from steerlens.files import PathLike, require_writable, write_atomically, write_text
from steerlens.studies.study import Study, read_study

WIDTHS = {"single": 3.25, "double": 6.75}
"""Widths in inches of one column, and of two."""
POINTS = 8
"""Size of all text, in points."""
FORMATS = ("svg", "pdf", "png")
_PIXELS = 96
"""CSS pixels per inch."""
_PNG_SCALE = 3
"""288 dots per inch."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DRAWN = ("x", "y", "z", "q1", "median", "q3", "lowerfence", "upperfence")
"""The attributes of a trace that hold visible numbers."""


class NoBrowserWarning(UserWarning):
    """No Chromium was found to draw pictures; HTML pages were written instead."""


@dataclass(frozen=True)
class Plate:
    """A figure at its size in print."""

    figure: go.Figure
    width: str = "single"
    """ "single" or "double"."""
    height: float = 2.4
    """Inches."""

    def __post_init__(self) -> None:
        if self.width not in WIDTHS or not 0 < self.height <= 11:
            raise SteerlensError(
                f"got width={self.width!r} and height={self.height}; expected one of "
                f"{', '.join(WIDTHS)} and more than 0 to 11 inches"
            )


@dataclass(frozen=True)
class LatexTable:
    """A table for booktabs."""

    data: pd.DataFrame
    """Its text is escaped."""
    caption: str = ""
    """LaTeX, which is not escaped, so that it may contain maths."""
    label: str = ""
    """For `\\ref`."""

    def __post_init__(self) -> None:
        loose = re.search(r"(?<!\\)[%#&]", self.caption)
        if loose:
            raise SteerlensError(
                f"got the caption {self.caption!r}; expected LaTeX, in which {loose[0]!r} is a "
                f"special character: write '\\{loose[0]}'"
            )


def regenerate(
    scripts: PathLike, study: PathLike, out: PathLike, formats: Sequence[str] = ("svg",)
) -> list[Path]:
    """Run every figure script of a directory on a study's results; returns the files written.

    A script `name.py` defines `make(study)`, which returns a `Plate` or a `LatexTable`. A plate is
    written as `name.csv` and a picture in each format, a table as `name.csv` and `name.tex`.

    Args:
        scripts: Directory of the scripts.
        study: Directory of results, as `read_study` reads it.
        out: Directory to write to.
        formats: Of the pictures: "svg", "pdf", "png".

    >>> [path.name for path in regenerate("figures", "figures/study", "out")]  # doctest: +SKIP
    ['cosines.csv', 'refusals.csv', 'results.csv', 'results.tex', ..., 'thresholds.svg']
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise SteerlensError(f"got formats={list(formats)}; expected some of {', '.join(FORMATS)}")
    paths = sorted(Path(scripts).glob("*.py"))
    if not paths:
        raise SteerlensError(f"got {str(scripts)!r}, which holds no figure script (*.py)")
    out = require_writable(out)
    results = read_study(study)
    outputs = {script.stem: _run_script(script, results) for script in paths}
    written = []
    for name, output in outputs.items():
        data = drawn_data(output.figure) if isinstance(output, Plate) else output.data
        text = data.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        written.append(write_text(out / f"{name}.csv", text))
        if isinstance(output, LatexTable):
            written.append(write_text(out / f"{name}.tex", latex(output)))
    plates = {name: output for name, output in outputs.items() if isinstance(output, Plate)}
    return written + export(plates, out, formats)


def export(plates: Mapping[str, Plate], out: PathLike, formats: Sequence[str]) -> list[Path]:
    """Draw plates with a headless Chromium; without one, warn and write HTML pages instead.

    Args:
        plates: By file name without ending.
        out: Directory to write to.
        formats: "svg", "pdf", "png".

    >>> figure = dashboards.vector_cosines({"refuse": vector, "opposite": -vector}, to="refuse")
    >>> [path.name for path in export({"cosines": Plate(figure)}, "out", ["svg"])]  # doctest: +SKIP
    ['cosines.svg']
    """
    out = require_writable(out)
    if not plates:
        return []
    browser = find_browser()
    if browser is None:
        warnings.warn(
            "got no Chromium on the PATH, so pages (.html) were written instead of pictures; "
            "install chromium, or set BROWSER_PATH to a Chrome",
            NoBrowserWarning,
            stacklevel=2,
        )
        return [
            write_text(out / f"{name}.html", for_paper(plate).to_html())
            for name, plate in plates.items()
        ]
    kaleido = import_extra("kaleido", "figures", "drawing pictures")
    jobs = {
        out / f"{name}.{ending}": (for_paper(plate), ending)
        for name, plate in plates.items()
        for ending in formats
    }
    drawings = {path: path.with_name(f".{path.name}") for path in jobs}
    try:
        kaleido.write_fig_from_object_sync(
            [_job(drawings[path], *job) for path, job in jobs.items()],
            cancel_on_error=True,
            kopts={"path": browser, "mathjax": False},
        )
        for path, drawing in drawings.items():
            if path.suffix == ".svg":
                svg = drawing.read_text(encoding="utf-8")
                drawing.write_text(_with_stable_ids(svg), encoding="utf-8")
        return [write_atomically(path, drawings[path].replace) for path in jobs]
    except Exception as error:  # the libraries raise anything if a browser does not start
        raise SteerlensError(
            f"{browser!r} could not draw the figures ({type(error).__name__}: {error}); set "
            "BROWSER_PATH to a Chromium that starts"
        ) from error
    finally:
        for drawing in drawings.values():
            drawing.unlink(missing_ok=True)


def find_browser() -> str | None:
    """The Chromium that BROWSER_PATH names, or else the first on the PATH; None without one."""
    paths = (shutil.which(name) for name in _BROWSERS)
    return os.environ.get("BROWSER_PATH") or next(filter(None, paths), None)


def for_paper(plate: Plate) -> go.Figure:
    """The figure at its size in print, without title and controls; only its visible traces."""
    figure = go.Figure(plate.figure)
    layout = figure.layout
    layout.sliders = layout.updatemenus = ()
    figure.data = [trace for trace in figure.data if trace.visible in (None, True)]
    size = POINTS / 72 * _PIXELS
    font = {"size": size}
    figure.update_layout(
        title=None,
        width=WIDTHS[plate.width] * _PIXELS,
        height=plate.height * _PIXELS,
        font=font,
        margin={"l": 4, "r": 6, "t": 40, "b": 4},
        legend={"y": 1, "x": 0, "font": font, "itemwidth": 30, "tracegroupgap": 2},
    )
    figure.update_annotations(font=font)
    for axes in (figure.update_xaxes, figure.update_yaxes):
        axes(title={"font": font, "standoff": 4}, automargin=True)
    figure.update_traces(line={"width": 1.3}, marker={"size": 4}, selector={"type": "scatter"})
    figure.update_traces(marker={"size": 7}, selector={"type": "scatter", "mode": "markers"})
    figure.update_traces(line={"width": 1}, marker={"size": 1.5}, selector={"type": "box"})
    figure.update_shapes(line={"width": 1.6})
    return figure


def drawn_data(figure: go.Figure) -> pd.DataFrame:
    """The data of a figure's visible traces: one row per mark, with panel, trace and interval.

    >>> figure = dashboards.vector_cosines({"refuse": vector, "opposite": -vector}, to="refuse")
    >>> list(drawn_data(figure).columns)
    ['panel', 'trace', 'x', 'y']
    """
    parts = []
    for trace in figure.data:
        is_band = "fill" in trace and trace.fill == "toself"
        if trace.visible not in (None, True) or is_band:
            continue
        columns = {name: trace[name] for name in _DRAWN if name in trace}
        columns = {name: values for name, values in columns.items() if values is not None}
        if trace.type == "heatmap":
            grid = np.asarray(columns["z"])
            x, y = np.meshgrid(np.asarray(columns["x"]), np.asarray(columns["y"]))
            columns = {"x": x.ravel(), "y": y.ravel(), "z": grid.ravel()}
        part = pd.DataFrame(columns)
        if "error_y" in trace and trace.error_y.array is not None:
            part["low"] = part["y"] - np.asarray(trace.error_y.arrayminus)
            part["high"] = part["y"] + np.asarray(trace.error_y.array)
        part.insert(0, "trace", trace.name or "")
        part.insert(0, "panel", (trace.xaxis or "x").removeprefix("x") or "1")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def latex(table: LatexTable) -> str:
    """A booktabs table in LaTeX; text is escaped, numbers have three decimals.

    >>> print(latex(LatexTable(pd.DataFrame({"part": ["a_b"], "rate": [0.5]}))))
    \\begin{table}
    \\centering
    \\begin{tabular}{lr}
    \\toprule
    part & rate \\\\
    \\midrule
    a\\_b & 0.500 \\\\
    \\bottomrule
    \\end{tabular}
    \\end{table}
    <BLANKLINE>
    """
    styled = table.data.style.hide(axis="index").format(precision=3, na_rep="--", escape="latex")
    return str(
        styled.format_index(escape="latex", axis="columns").to_latex(
            hrules=True,
            position_float="centering",
            caption=table.caption or None,
            label=table.label or None,
        )
    )


def _run_script(script: Path, study: Study) -> Plate | LatexTable:
    make = runpy.run_path(str(script)).get("make")
    if not callable(make):
        raise SteerlensError(
            f"got {str(script)!r} without a function make(study); expected one that returns a "
            "Plate or a LatexTable"
        )
    output = make(study)
    if not isinstance(output, Plate | LatexTable):
        raise SteerlensError(
            f"got {type(output).__name__} from make(study) of {str(script)!r}; expected a Plate or "
            "a LatexTable"
        )
    return output


def _with_stable_ids(svg: str) -> str:
    """Plotly's random ids replaced by their order, so that equal figures are equal files."""
    ids = list(dict.fromkeys(re.findall(r"(?:trace|clip|-legend-)([0-9a-f]{6})", svg)))
    uses = re.compile(rf"(trace|clip|legend|defs-|[\"#]p|-)({'|'.join(ids) or '$'})")
    return uses.sub(lambda match: f"{match[1]}{ids.index(match[2]):06x}", svg)


def _job(path: Path, figure: go.Figure, ending: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "format": ending,
        "width": figure.layout.width,
        "height": figure.layout.height,
        "scale": _PNG_SCALE if ending == "png" else 1,
    }
    return {"fig": figure, "path": path, "opts": options}
