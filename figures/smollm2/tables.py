"""The tables of measurements on SmolLM2 in README and docs, from the results beside this script.

    steerlens demo --out out/demo && cp out/demo/results.json figures/smollm2/
    steerlens axbench DIR --out out/axbench     # DIR: a directory of AxBench
    python figures/smollm2/tables.py out/axbench/results.json   # keeps its means over concepts
    steerlens compare demo-data/refusal.json demo-data/questions.json --part train \
        --prompts-part validation --model smollm2 --out out/compare \
        --methods mean_difference,pca_pairwise,linear_discriminant,reply_likelihood,bipo
    cp out/compare/comparison.csv figures/smollm2/
    python figures/smollm2/tables.py                            # writes all tables

A test fails where a document says anything else.
"""

import json
import re
import sys
from pathlib import Path

import pandas as pd

from steerlens.intervals import Interval
from steerlens.studies.axbench_page import detection_leaderboard, steering_leaderboard
from steerlens.studies.demo_words import GROUPS, HEADINGS, cells_of, percent
from steerlens.studies.quickstart import rules_of_topics

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARTS = {
    "unsteered": "unsteered",
    "I": "always steered",
    "II": "steered if harmful",
    "II-difference": "the same, difference of means",
}


def demo() -> str:
    """Who was refused, with 95 % intervals."""
    rows = json.loads((HERE / "results.json").read_text())["rows"]
    cells, fired = cells_of(rows), cells_of(rows, "fired")
    groups = GROUPS[:3]  # the others are topics
    heads = (f"{HEADINGS.get(group, group)}, n = {cells['II', group][1]}" for group in groups)
    lines = [f"| refused | {' | '.join(heads)} |", "|---|---|---|---|"]
    for part, told in PARTS.items():
        shares = (percent(cells[part, group][0]) for group in groups)
        lines.append(f"| {told} | {' | '.join(shares)} |")
    shares = (percent(fired["II", group][0]) for group in groups)
    lines.append(f"| *where the condition fires* | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def topics() -> str:
    """Which topics were refused by a rule and by its complement."""
    cells = cells_of(json.loads((HERE / "results.json").read_text())["rows"])
    groups = GROUPS[3:]
    heads = (f"{HEADINGS[group]}, n = {cells['III', group][1]}" for group in groups)
    lines = [f"| refused | {' | '.join(heads)} |", "|---|---|---|"]
    for part, rule in rules_of_topics().items():
        shares = (percent(cells[part, group][0]) for group in groups)
        lines.append(f"| `{rule}` | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _axbench() -> pd.DataFrame:
    return pd.read_csv(HERE / "axbench.csv", dtype={"layer": str, "n": "Int64"}).astype(object)


def _markdown(table: pd.DataFrame) -> str:
    filled = table.astype(object).where(table.notna(), "")
    rows = [list(filled), ["---"] * len(filled.columns), *filled.to_numpy().tolist()]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def detection() -> str:
    """AUROC of each arm, the mean over concepts."""
    return _markdown(detection_leaderboard(_axbench()))


def steering() -> str:
    """Scores of each arm, the mean over concepts."""
    return _markdown(steering_leaderboard(_axbench()))


def comparison() -> str:
    """Refused and broken replies by method, at most one budget of side effects."""
    rows = pd.read_csv(HERE / "comparison.csv")
    lines = [
        f"| | refused, n = {rows['n'].iloc[0]} | degenerate | KL, nats |",
        "|---|---|---|---|",
    ]
    for row in rows.itertuples():
        refused = percent(Interval(row.score, row.low, row.high))
        broken = percent(Interval(row.degenerate, row.degenerate_low, row.degenerate_high))
        lines.append(f"| {row.method.replace('_', ' ')} | {refused} | {broken} | {row.kl:.2f} |")
    return "\n".join(lines) + "\n"


TABLES = {
    "README.md": [demo],
    "docs/index.md": [demo, topics],
    "docs/evaluating.md": [detection, steering],
    "docs/learning.md": [comparison],
}


def written(document: str) -> str:
    """The text of a document with the tables in their places."""
    text = (ROOT / document).read_text()
    for table in TABLES[document]:
        name = table.__name__
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, places = block.subn(rf"\g<1>{table()}\g<2>", text)
        assert places == 1, f"{document} has {places} places for the table {name}"
    return text


def keep(results: Path) -> None:
    """Keep the means over concepts of a run of AxBench, without those by layer."""
    rows = pd.DataFrame(json.loads(results.read_text())["rows"])
    by_layer = rows["measure"].str.match(r"auroc (validation )?\(")
    rows[(rows["concept"] == "all") & ~by_layer].to_csv(
        HERE / "axbench.csv", index=False, float_format="%.6f"
    )


if __name__ == "__main__":
    for results in sys.argv[1:]:
        keep(Path(results))
    for document in TABLES:
        (ROOT / document).write_text(written(document))
