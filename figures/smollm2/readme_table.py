"""README's table of the demo on SmolLM2, from `results.json` beside this script.

    steerlens demo --out out/demo && cp out/demo/results.json figures/smollm2/
    python figures/smollm2/readme_table.py      # writes the table into README.md

A test fails where README says anything else.
"""

import json
import re
from pathlib import Path

from steerlens.studies.demo_words import GROUPS, HEADINGS, cells_of, percent

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.DOTALL)
PARTS = {
    "unsteered": "unsteered",
    "I": "always steered",
    "II": "steered if harmful",
    "II-difference": "the same, difference of means",
}


def table() -> str:
    """Who was refused, with 95 % intervals."""
    cells = cells_of(json.loads((HERE / "results.json").read_text())["rows"])
    groups = GROUPS[:3]  # the others are topics
    heads = (f"{HEADINGS.get(group, group)}, n = {cells['II', group][1]}" for group in groups)
    lines = [f"| refused | {' | '.join(heads)} |", "|---|---|---|---|"]
    for part, told in PARTS.items():
        shares = (percent(cells[part, group][0]) for group in groups)
        lines.append(f"| {told} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def written(readme: str) -> str:
    """README with the table in its place."""
    return BLOCK.sub(lambda block: block[1] + table() + block[2], readme)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
