"""The import table of the package: which folder imports from which.

    python figures/diagrams/folders.py   # writes docs/images/folders.svg

Rows import from columns. Both are in the order of the architecture, so an import upward would lie
above the diagonal; `tests/repository/test_folders.py` refuses any.
"""

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "images" / "folders.svg"
CELL, LEFT, TOP = 30, 170, 116
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1d2733 }
.ground { fill: #ffffff; stroke: #d5dbe1 } .grid { fill: none; stroke: #d5dbe1 }
.own { fill: #e3e8ed } .uses { fill: #2f6fb3 } .count { fill: #ffffff; font-size: 12px }
@media (prefers-color-scheme: dark) {
  text { fill: #e8edf2 } .ground { fill: #161b22; stroke: #39424d } .grid { stroke: #39424d }
  .own { fill: #2c3640 } .uses { fill: #3d85cf } .count { fill: #ffffff }
}
"""


def floors() -> list[str]:
    """The folders and root modules in the order that the test of folders states."""
    source = (ROOT / "tests" / "repository" / "test_folders.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise SystemExit("tests/repository/test_folders.py has no list ORDER")


def imports() -> Counter[tuple[str, str]]:
    """How many modules of one floor import from another: (importer, imported) → modules."""
    found: Counter[tuple[str, str]] = Counter()
    package = ROOT / "steerlens"
    for path in package.rglob("*.py"):
        place = path.relative_to(package)
        if place.name == "__init__.py" and len(place.parts) == 1:
            continue
        floor = place.parts[0].removesuffix(".py")
        used = re.findall(
            r"^\s*(?:from|import) steerlens\.(\w+)", path.read_text(), flags=re.MULTILINE
        )
        found.update({(floor, other) for other in used if other != floor})
    return found


def drawn() -> str:
    """The table as SVG."""
    names, uses = floors(), imports()
    shown = [name for name in names if name != "errors"]  # everybody uses it
    side = CELL * len(shown)
    width, height = LEFT + side + 24, TOP + side + 24
    parts = [
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" class="ground"/>'
    ]
    for row, name in enumerate(shown):
        y = TOP + CELL * row
        parts.append(f'<text x="{LEFT - 10}" y="{y + 20}" text-anchor="end">{name}</text>')
        x = LEFT + CELL * row + 19
        parts.append(f'<text transform="translate({x} {TOP - 10}) rotate(-60)">{name}</text>')
        for column, other in enumerate(shown):
            kind = "own" if row == column else "uses" if uses[name, other] else "grid"
            place = f'x="{LEFT + CELL * column}" y="{y}" width="{CELL}" height="{CELL}"'
            parts.append(f'<rect {place} class="{kind}"/><rect {place} class="grid"/>')
            if kind == "uses":
                middle = LEFT + CELL * column + CELL / 2
                parts.append(
                    f'<text x="{middle}" y="{y + 19}" class="count" text-anchor="middle">'
                    f"{uses[name, other]}</text>"
                )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Which folder imports from which; no import goes upward.">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    OUT.write_text(drawn())
    print(OUT)
