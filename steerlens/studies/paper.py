"""Figures and tables for papers: column widths, one font size, and the numbers beside each."""

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
"""Inches of one column, and of a page of two."""
POINTS = 8
"""Size of all text."""
FORMATS = ("svg", "pdf", "png")
_PIXELS = 96
"""CSS pixels in an inch."""
_PNG_SCALE = 3
"""Makes 288 dots an inch."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DRAWN = ("x", "y", "z", "q1", "median", "q3", "lowerfence", "upperfence")
"""The numbers of a trace that are seen."""


class NoBrowserWarning(UserWarning):
    """No Chromium was found, which draws the pictures; pages were written instead."""


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
                f"width={self.width!r}, height={self.height}: the width is one of "
                f"{', '.join(WIDTHS)}, the height in inches, at most 11"
            )


@dataclass(frozen=True)
class LatexTable:
    """Numbers for a booktabs table."""

    data: pd.DataFrame
    caption: str = ""
    """LaTeX, so that it may hold maths; the data are text, and escaped."""
    label: str = ""

    def __post_init__(self) -> None:
        loose = re.search(r"(?<!\\)[%#&]", self.caption)
        if loose:
            raise SteerlensError(
                f"got the caption {self.caption!r}; expected LaTeX, in which {loose[0]!r} means "
                f"something else than itself: write '\\{loose[0]}'"
            )


def regenerate(
    scripts: PathLike, study: PathLike, out: PathLike, formats: Sequence[str] = ("svg",)
) -> list[Path]:
    """Run every script of a directory on a study's results; what was written.

    A script `name.py` has a function `make(study)` that returns a `Plate` or a `LatexTable`; from
    it come `name.svg` (or the formats asked for) and `name.csv`, or `name.tex` and `name.csv`.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise SteerlensError(f"formats {list(formats)} came; choose of {', '.join(FORMATS)}")
    found = sorted(Path(scripts).glob("*.py"))
    if not found:
        raise SteerlensError(f"there is no figure script (*.py) in {str(scripts)!r}")
    out = require_writable(out)
    results = read_study(study)
    made = {script.stem: _made(script, results) for script in found}
    written = []
    for name, one in made.items():
        data = drawn_data(one.figure) if isinstance(one, Plate) else one.data
        text = data.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        written.append(write_text(out / f"{name}.csv", text))
        if isinstance(one, LatexTable):
            written.append(write_text(out / f"{name}.tex", latex(one)))
    plates = {name: one for name, one in made.items() if isinstance(one, Plate)}
    return written + export(plates, out, formats)


def export(plates: Mapping[str, Plate], out: PathLike, formats: Sequence[str]) -> list[Path]:
    """Draw plates in one run of a headless Chromium; without one, warn and write pages instead."""
    out = require_writable(out)
    if not plates:
        return []
    browser = find_browser()
    if browser is None:
        warnings.warn(
            "no Chromium was found, so pages (.html) were written instead of pictures; install "
            "chromium, or let BROWSER_PATH name a Chrome",
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
                drawing.write_text(_settled(drawing.read_text(encoding="utf-8")), encoding="utf-8")
        return [write_atomically(path, drawings[path].replace) for path in jobs]
    except Exception as error:  # whatever a browser that does not start makes the libraries raise
        raise SteerlensError(
            f"{browser!r} could not draw the figures ({type(error).__name__}: {error}); let "
            "BROWSER_PATH name a Chromium that starts"
        ) from error
    finally:
        for drawing in drawings.values():
            drawing.unlink(missing_ok=True)


def find_browser() -> str | None:
    """The Chromium that BROWSER_PATH names, or the first on the path."""
    found = (shutil.which(name) for name in _BROWSERS)
    return os.environ.get("BROWSER_PATH") or next(filter(None, found), None)


def for_paper(plate: Plate) -> go.Figure:
    """The figure at its size in print, without title and controls; only what is seen now."""
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
    """What a figure shows, one row a mark: its panel, its trace, its numbers and their interval."""
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
    """A booktabs table; text is escaped, numbers have three digits.

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


def _made(script: Path, study: Study) -> Plate | LatexTable:
    make = runpy.run_path(str(script)).get("make")
    if not callable(make):
        raise SteerlensError(
            f"{str(script)!r} has no function make(study); a figure script returns a Plate or a "
            "LatexTable from it"
        )
    made = make(study)
    if not isinstance(made, Plate | LatexTable):
        raise SteerlensError(
            f"make(study) of {str(script)!r} returned a {type(made).__name__}; "
            "needed is a Plate or a LatexTable"
        )
    return made


def _settled(svg: str) -> str:
    """Plotly's random ids numbered as they come, so that equal figures are equal files."""
    ids = list(dict.fromkeys(re.findall(r"(?:trace|clip|-legend-)([0-9a-f]{6})", svg)))
    places = re.compile(rf"(trace|clip|legend|defs-|[\"#]p|-)({'|'.join(ids) or '$'})")
    return places.sub(lambda found: f"{found[1]}{ids.index(found[2]):06x}", svg)


def _job(path: Path, figure: go.Figure, ending: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "format": ending,
        "width": figure.layout.width,
        "height": figure.layout.height,
        "scale": _PNG_SCALE if ending == "png" else 1,
    }
    return {"fig": figure, "path": path, "opts": options}
