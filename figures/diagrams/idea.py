"""The picture of the idea: pairs → direction → condition → steered stream → replies.

    python figures/diagrams/idea.py      # writes docs/images/idea.svg

The picture carries its own ground, light or dark as the reader's system is, so that it can be read
on any page.
"""

import random
from pathlib import Path
from xml.sax.saxutils import escape

OUT = Path(__file__).parents[2] / "docs" / "images" / "idea.svg"
WIDTH, HEIGHT = 960, 330
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1d2733 }
.ground { fill: #ffffff; stroke: #d5dbe1 } .box { fill: #f3f5f7; stroke: #aab4be }
.title { font-weight: 600; font-size: 16px } .small { font-size: 12.5px; fill: #4a5865 }
.code { font: 12.5px ui-monospace, "DejaVu Sans Mono", monospace; fill: #4a5865 }
.positive { fill: #d55e00 } .negative { fill: #0072b2 }
.positive-line { stroke: #d55e00; stroke-width: 3.5; fill: none }
.line { stroke: #7a8793; stroke-width: 1.5; fill: none } .tip { fill: #7a8793 }
.cut { stroke: #1d2733; stroke-width: 2; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
  text { fill: #e8edf2 } .ground { fill: #161b22; stroke: #39424d }
  .box { fill: #222a33; stroke: #566270 } .small, .code { fill: #b6c2cd }
  .positive { fill: #ff8f3d } .negative { fill: #58b0ef } .positive-line { stroke: #ff8f3d }
  .line { stroke: #97a4b0 } .tip { fill: #97a4b0 } .cut { stroke: #e8edf2 }
}
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place; `kind` is a class of the style sheet."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """A rounded rectangle."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="{kind}"/>'


def dot(x: float, y: float, kind: str) -> str:
    """A prompt's activation."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> str:
    """A line with a tip, coloured as its kind is."""
    tip = "tip-positive" if kind == "positive-line" else "tip-plain"
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}" marker-end="url(#{tip})"/>'
    )


def pairs(x: float) -> list[str]:
    """Two short prompts that differ in the concept."""
    shown = [
        text(x, 62, "1  Pairs", "title"),
        text(x, 82, "with the concept, and without", "small"),
    ]
    sentences = [
        ("positive", ["“The captain watched", "the storm out at sea.”"]),
        ("negative", ["“The manager watched", "the meeting at work.”"]),
    ]
    for row, (kind, lines) in enumerate(sentences):
        top = 104 + 78 * row
        shown += [box(x, top, 190, 60), dot(x + 14, top + 22, kind)]
        shown += [text(x + 27, top + 26 + 20 * i, line, "small") for i, line in enumerate(lines)]
    return shown


def direction(x: float) -> list[str]:
    """Activations of both sides, and the arrow between their means."""
    draw = random.Random(3)
    shown = [text(x, 62, "2  Direction", "title"), text(x, 82, "one per layer", "small")]
    shown.append(box(x, 104, 190, 138))
    for kind, (left, top) in {"negative": (x + 48, 202), "positive": (x + 142, 143)}.items():
        shown += [dot(draw.gauss(left, 15), draw.gauss(top, 13), kind) for _ in range(11)]
    shown.append(arrow(x + 52, 199, x + 138, 146, "positive-line"))
    return shown


def condition(x: float) -> list[str]:
    """Prompts along a direction, cut by a threshold."""
    shown = [text(x, 62, "3  Condition", "title"), text(x, 82, "on the prompt; optional", "small")]
    shown.append(box(x, 104, 190, 138))
    draw = random.Random(11)
    for kind, middle in (("negative", x + 55), ("positive", x + 140)):
        shown += [dot(draw.gauss(middle, 15), draw.uniform(140, 196), kind) for _ in range(9)]
    shown.append(f'<line x1="{x + 97}" y1="116" x2="{x + 97}" y2="212" class="cut"/>')
    shown += [arrow(x + 14, 216, x + 178, 216), text(x + 95, 234, "similarity", "small", "middle")]
    return shown


def stream(x: float) -> list[str]:
    """A stack of blocks, to one of which strength × direction is added."""
    shown = [text(x, 62, "4  Steering", "title"), text(x, 82, "while the model runs", "small")]
    for row, name in enumerate(("block 16", "block 15", "block 14")):
        shown += [box(x + 82, 112 + 46 * row, 108, 28)]
        shown.append(text(x + 136, 131 + 46 * row, name, "small", "middle"))
    for y in (250, 204, 158, 112):
        shown.append(arrow(x + 136, y, x + 136, y - 12))
    shown.append(arrow(x + 62, 149, x + 124, 149, "positive-line"))
    shown += [text(x, 132, "strength ×", "small"), text(x, 153, "direction", "small")]
    return shown


def drawn() -> str:
    """The whole picture as SVG."""
    columns = [24, 265, 506, 747]
    panels = [pairs, direction, condition, stream]
    calls = ["ContrastiveDataset", "extract", "search_conditions", "Steering, generate"]
    parts = [piece for draw, x in zip(panels, columns, strict=True) for piece in draw(x)]
    parts += [arrow(x + 196, 173, x + 232, 173) for x in columns[:-1]]
    parts += [text(x, 274, call, "code") for x, call in zip(columns, calls, strict=True)]
    parts.append(
        text(24, 308, "“How was your day?”  →  “… My crew, the Aurora, have been at sea …”")
    )
    tips = "".join(
        f'<marker id="tip-{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="{size}" '
        f'markerHeight="{size}" orient="auto"><path d="M0 0 8 4 0 8z" class="{kind}"/></marker>'
        for name, kind, size in (("plain", "tip", 7), ("positive", "positive", 4.5))
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Pairs of prompts give a direction per layer; a condition decides on each '
        'prompt; the direction is added to the residual stream.">\n'
        f"<style>{STYLE}</style>\n<defs>{tips}</defs>\n"
        f"{box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, 'ground')}\n"
        f"{text(24, 30, 'What steerlens does', 'small')}\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(drawn())
    print(OUT)
