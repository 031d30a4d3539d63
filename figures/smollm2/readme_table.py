"""README's table of the demo on SmolLM2, from `results.json` beside this script.

    steerlens demo --out out/demo && cp out/demo/results.json figures/smollm2/
    python figures/smollm2/readme_table.py      # writes the table into README.md

A test fails where README says anything else.
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.DOTALL)
GROUPS = {"harmful": "harmful", "harmless": "harmless", "lookalikes": "look-alikes"}
PARTS = {
    "unsteered": "unsteered",
    "I": "always steered",
    "II": "steered if harmful",
    "II-difference": "the same, difference of means",
}


def table() -> str:
    """Who was refused, in percent with 95 % intervals."""
    rows = json.loads((HERE / "results.json").read_text())["rows"]
    found = {(row["part"], row["group"]): row for row in rows if row["measure"] == "refused"}
    heads = (f"{told}, n = {found['II', group]['n']}" for group, told in GROUPS.items())
    lines = [f"| refused, % | {' | '.join(heads)} |", "|---|---|---|---|"]
    for part, told in PARTS.items():
        shares = ([100 * found[part, group][end] for end in ("value", "low", "high")]
                  for group in GROUPS)  # fmt: skip
        cells = (f"{value:.0f} [{low:.0f}, {high:.0f}]" for value, low, high in shares)
        lines.append(f"| {told} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def written(readme: str) -> str:
    """README with the table in its place."""
    return BLOCK.sub(lambda block: block[1] + table() + block[2], readme)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
