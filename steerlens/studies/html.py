"""Figures, tables and texts → one HTML page: offline, keyboard-accessible, light and dark."""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from steerlens.dashboards.theme import (
    BREAK,
    DARK,
    FADED_ON_DARK,
    ON_DARK,
    TEMPLATE,
    TITLE_HEIGHT,
)

MOST_ROWS = 50
"""Rows that a page shows of a table."""
LONGEST_CELL = 2000
"""Characters that a table shows of a text."""


@dataclass(frozen=True)
class Listing:
    """A table; the first cell of each row is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    """Collapsed until its caption is clicked."""

    @classmethod
    def of(
        cls, table: pd.DataFrame, caption: str, *, most: int = MOST_ROWS, folded: bool = False
    ) -> "Listing":
        """The first rows of a table, numbers with four digits.

        Args:
            caption: Gets the number of rows appended if some are left out.
            most: Rows to show.
            folded: Whether it starts collapsed.

        >>> Listing.of(pd.DataFrame({"F1": [0.87654]}), "Scores").rows
        (('0.8765',),)
        """
        rows = tuple(
            tuple(_cell(value) for value in row)
            for row in table.head(most).itertuples(index=False, name=None)
        )
        cut = f" (the first {most} of {len(table):,} rows)" if len(table) > most else ""
        return cls(caption + cut, tuple(map(str, table.columns)), rows, folded)


@dataclass(frozen=True)
class Code:
    """Commands or other preformatted text."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks collapsed behind a summary; their figures are drawn when it is opened."""

    summary: str
    blocks: Sequence["Block"]


Block: TypeAlias = go.Figure | Listing | Code | Fold | str
"""One element of a section; a string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading with its blocks."""

    title: str
    blocks: Sequence[Block]
    about: str = ""
    """What the section shows, in a sentence."""
    folded: bool = False
    """Collapsed until its heading is clicked."""
    foldable: bool = True
    """Whether its heading can be clicked."""


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """One self-contained page; all text is escaped.

    Figures follow the reader's colour scheme; their sliders and menus become HTML controls, which
    work with keyboards and screen readers.

    Args:
        title: Of the page.
        lead: Text below the title.
        sections: Those without blocks are left out.

    >>> "<h1>Mine</h1>" in page("Mine", "All of it.", [Section("One", ["A paragraph."])])
    True
    """
    rendered = [
        (f"section-{number}", section, [_block(block) for block in section.blocks])
        for number, section in enumerate(sections, start=1)
        if section.blocks
    ]
    theme = {
        "templates": {"light": TEMPLATE.to_plotly_json(), "dark": DARK.to_plotly_json()},
        "solid": ON_DARK,
        "faded": FADED_ON_DARK,
    }
    return _TEMPLATES.get_template("page.html.jinja").render(
        title=title,
        lead=lead,
        sections=rendered,
        look=_json_for_html(json.dumps(theme)),
        plotly=_packed_plotly(),
        has_figures=any(map(_has_figures, sections)),
    )


def _has_figures(part: Section | Fold) -> bool:
    return any(
        isinstance(block, go.Figure) or (isinstance(block, Fold) and _has_figures(block))
        for block in part.blocks
    )


@cache
def _packed_plotly() -> str:
    """Plotly's JavaScript, compressed to two fifths of its size; browsers unpack it."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _block(block: Block) -> dict[str, Any]:
    if isinstance(block, go.Figure):
        return {"kind": "figure", **_figure(block)}
    if isinstance(block, Fold):
        return {"kind": "fold", "it": block, "blocks": [_block(inner) for inner in block.blocks]}
    kind = {Listing: "listing", Code: "code", str: "paragraph"}[type(block)]
    return {"kind": kind, "it": block}


def _figure(figure: go.Figure) -> dict[str, Any]:
    """A figure without title and controls, and these as data for the page's HTML."""
    bare = go.Figure(figure)
    layout = bare.layout
    height = layout.height or 450
    controls = [
        {
            "label": unescape((slider.currentvalue.prefix or "").strip()),
            "active": slider.active or 0,
            "kind": "slider",
            "steps": [_step(step.label, step.args) for step in slider.steps],
        }
        for slider in layout.sliders
    ] + [
        {
            "label": "show",
            "active": menu.active or 0,
            "kind": "menu",
            "steps": [_step(button.label, button.args) for button in menu.buttons],
        }
        for menu in layout.updatemenus
    ]
    title, caption = layout.title.text or "figure", _unbroken(layout.title.subtitle.text)
    top = (layout.meta or {}).get("title_height", TITLE_HEIGHT)
    below = 70 if layout.sliders else 0
    bare.update_layout(
        template=None,
        title=None,
        height=height - top - below,
        margin={"t": 70},
        legend={"y": 1},
    )
    layout.sliders = layout.updatemenus = ()
    return {
        "title": unescape(title),
        "caption": unescape(caption),
        "height": layout.height,
        "width": (layout.meta or {}).get("min_width", 0),
        "controls": controls,
        "json": _json_for_html(bare.to_json()),
        "steps": _json_for_html(json.dumps([control["steps"] for control in controls])),
    }


def _step(label: str, args: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one step of a control sets: visible traces, title, caption."""
    return {
        "label": unescape(label),
        "visible": list(args[0]["visible"]),
        "title": unescape(args[1].get("title.text", "")),
        "caption": unescape(_unbroken(args[1].get("title.subtitle.text"))),
    }


def _unbroken(note: str | None) -> str:
    """A note without Plotly's line breaks: HTML wraps it."""
    return (note or "").replace(BREAK, " ")


def _json_for_html(text: str) -> str:
    """JSON escaped so that no `</script>` in it ends the script."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + " …"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
