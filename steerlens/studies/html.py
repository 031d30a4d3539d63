"""Figures, tables and texts → one HTML page that works offline, by keyboard and in the dark."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from steerlens.dashboards.theme import DARK, TEMPLATE, TITLE_HEIGHT

MOST_ROWS = 50
"""Rows of a table that a page shows."""
LONGEST_CELL = 2000
"""Characters of a text that a table shows."""


@dataclass(frozen=True)
class Listing:
    """A table, of which the first cell of each row is its heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    """Behind a summary that opens it."""

    @classmethod
    def of(
        cls, table: pd.DataFrame, caption: str, *, most: int = MOST_ROWS, folded: bool = False
    ) -> "Listing":
        """The first rows of a table, numbers with four digits; how many are left out is said."""
        rows = tuple(
            tuple(_cell(value) for value in row)
            for row in table.head(most).itertuples(index=False, name=None)
        )
        cut = f" (the first {most} of {len(table):,} rows)" if len(table) > most else ""
        return cls(caption + cut, tuple(map(str, table.columns)), rows, folded)


@dataclass(frozen=True)
class Code:
    """Commands or other text that is shown as it is."""

    text: str


Block: TypeAlias = go.Figure | Listing | Code | str
"""What a section is made of; a string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """One self-contained page; all text is escaped.

    Figures take the reader's colour scheme; their sliders and menus become the page's own controls,
    which keyboards and screen readers can use.

    >>> "<h1>Mine</h1>" in page("Mine", "All of it.", [Section("One", ["A paragraph."])])
    True
    """
    shown = [
        (f"section-{number}", section.title, [_block(block) for block in section.blocks])
        for number, section in enumerate(sections, start=1)
        if section.blocks
    ]
    templates = {"light": TEMPLATE.to_plotly_json(), "dark": DARK.to_plotly_json()}
    return _PAGE.render(
        title=title,
        lead=lead,
        sections=shown,
        templates=_json_for_html(json.dumps(templates)),
        plotly=get_plotlyjs(),
        has_figures=any(block["kind"] == "figure" for _, _, blocks in shown for block in blocks),
    )


def _block(block: Block) -> dict[str, Any]:
    if isinstance(block, go.Figure):
        return {"kind": "figure", **_figure(block)}
    kind = {Listing: "listing", Code: "code", str: "paragraph"}[type(block)]
    return {"kind": kind, "it": block}


def _figure(figure: go.Figure) -> dict[str, Any]:
    """A figure without title and controls, and these as text."""
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
    title, caption = layout.title.text or "figure", layout.title.subtitle.text or ""
    below = 90 if layout.sliders else 0
    bare.update_layout(
        template=None,
        title=None,
        height=height - TITLE_HEIGHT - below,
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
    """What a control's step changes: traces that are seen, the title, the caption."""
    return {
        "label": unescape(label),
        "visible": list(args[0]["visible"]),
        "title": unescape(args[1].get("title.text", "")),
        "caption": unescape(args[1].get("title.subtitle.text", "")),
    }


def _json_for_html(text: str) -> str:
    """JSON that no `</script>` inside it can end."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.4g}"
    text = str(value)
    return text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + " …"


_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{{ title }}</title>
<style>
:root { --ink: #1a1a1a; --page: #fff; --line: #d5d5d5; --soft: #f4f5f7; --link: #0058a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --page: #16181c; --line: #3d424b; --soft: #22252b; --link: #7cc0f5; }
}
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 Helvetica, Arial, sans-serif;
  color: var(--ink); background: var(--page); }
header, nav, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .6rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
h3 { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
a { color: var(--link); }
p, summary, label { overflow-wrap: anywhere; }
select { max-width: 100%; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 20px; top: 8px; padding: .4rem .8rem; background: var(--page); }
figure { margin: 1.6rem 0; }
figcaption p { margin: .1rem 0 .4rem; font-size: .88rem; opacity: .85; }
.control { display: flex; gap: .8rem; align-items: center; flex-wrap: wrap; margin: .4rem 0; }
.control input { flex: 1 1 160px; max-width: 420px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.wide { overflow-x: auto; overflow-y: hidden; }
table { border-collapse: collapse; font-size: .88rem; min-width: 50%; }
caption { text-align: left; font-weight: bold; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-bottom: 1px solid var(--line); min-width: 3.5rem;
  max-width: 28rem; overflow-wrap: break-word; }
tbody th { font-weight: normal; }
td { font-variant-numeric: tabular-nums; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
summary { cursor: pointer; padding: .3rem 0; }
:focus-visible { outline: 3px solid #e69f00; outline-offset: 2px; }
@media print { nav, .skip, .control { display: none; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
</header>
<nav aria-label="Sections">
<ul>
{% for id, heading, _ in sections %}
<li><a href="#{{ id }}">{{ heading }}</a></li>
{% endfor %}
</ul>
</nav>
<main id="main" tabindex="-1">
{% macro table(it) %}
<div class="scroll" role="region" aria-label="{{ it.caption }}" tabindex="0">
<table>
<caption>{{ it.caption }}</caption>
<thead><tr>
{% for column in it.columns %}<th scope="col">{{ column }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in it.rows %}
<tr>
{% for cell in row %}
{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% for id, heading, blocks in sections %}
{% set section = loop.index %}
<section id="{{ id }}" aria-labelledby="{{ id }}-title">
<h2 id="{{ id }}-title">{{ heading }}</h2>
{% for block in blocks %}
{% if block.kind == "figure" %}
{% set figure = id ~ "-" ~ loop.index %}
<figure aria-labelledby="{{ figure }}-title">
<figcaption>
<h3 id="{{ figure }}-title" aria-live="polite">{{ block.title }}</h3>
<p>{{ block.caption }}</p>
</figcaption>
{% for control in block.controls %}
<div class="control">
<label for="{{ figure }}-control-{{ loop.index }}">{{ control.label }}</label>
{% if control.kind == "slider" %}
<input type="range" id="{{ figure }}-control-{{ loop.index }}" min="0" step="1" \
max="{{ control.steps | length - 1 }}" value="{{ control.active }}" \
aria-valuetext="{{ control.steps[control.active].label }}">
<output for="{{ figure }}-control-{{ loop.index }}">\
{{ control.steps[control.active].label }}</output>
{% else %}
<select id="{{ figure }}-control-{{ loop.index }}">
{% for step in control.steps %}
<option value="{{ loop.index0 }}">{{ step.label }}</option>
{% endfor %}
</select>
{% endif %}
</div>
{% endfor %}
<div class="wide" tabindex="0" role="group" aria-labelledby="{{ figure }}-title">
<div class="plot" role="img" aria-label="{{ block.title }}. {{ block.caption }}" \
style="height: {{ block.height }}px; min-width: {{ block.width }}px"></div>
</div>
<script type="application/json" class="spec">{{ block.json | safe }}</script>
<script type="application/json" class="steps">{{ block.steps | safe }}</script>
</figure>
{% elif block.kind == "listing" and block.it.folded %}
<details><summary>{{ block.it.caption }}</summary>
{{ table(block.it) }}
</details>
{% elif block.kind == "listing" %}
{{ table(block.it) }}
{% elif block.kind == "code" %}
<pre tabindex="0"><code>{{ block.it.text }}</code></pre>
{% else %}
<p>{{ block.it }}</p>
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
<footer><p>Made by steerlens. Intervals are of 95 %.</p></footer>
{% if has_figures %}
<script>{{ plotly | safe }}</script>
<script type="application/json" id="templates">{{ templates | safe }}</script>
<script>
const told = element => JSON.parse(element.textContent);
const templates = told(document.getElementById("templates"));
const dark = matchMedia("(prefers-color-scheme: dark)");
const template = () => templates[dark.matches ? "dark" : "light"];
const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const figure = plot.closest("figure");
  const spec = told(figure.querySelector(".spec"));
  Plotly.newPlot(plot, spec.data, {...spec.layout, template: template()},
    {responsive: true, displaylogo: false});
  const steps = told(figure.querySelector(".steps"));
  figure.querySelectorAll(".control").forEach((control, index) => {
    const input = control.querySelector("input, select");
    input.addEventListener("input", () => {
      const step = steps[index][input.value];
      Plotly.restyle(plot, {visible: step.visible});
      if (step.title) figure.querySelector("h3").textContent = step.title;
      if (step.caption) figure.querySelector("figcaption p").textContent = step.caption;
      input.setAttribute("aria-valuetext", step.label);
      const output = control.querySelector("output");
      if (output) output.textContent = step.label;
    });
  });
}
dark.addEventListener("change", () =>
  plots.forEach(plot => Plotly.relayout(plot, {template: template()})));
</script>
{% endif %}
</body>
</html>
"""
)
