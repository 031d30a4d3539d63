"""The tables of measurements on SmolLM2 in README and docs, from the results beside this script.

    steerlens demo --out out/demo && cp out/demo/results.json figures/smollm2/
    steerlens axbench DIR --out out/axbench     # DIR: a directory of AxBench
    python figures/smollm2/tables.py out/axbench/results.json   # keeps its means over concepts
    steerlens compare demo-data/refusal.json demo-data/questions.json --part train \
        --prompts-part validation --model smollm2 --out out/compare
    cp out/compare/comparison.csv figures/smollm2/
    python figures/smollm2/styles.py out/styles STATEMENTS.jsonl   # see there
    python figures/smollm2/tables.py                            # writes all tables

A test fails where a document says anything else.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from steerlens.intervals import Interval
from steerlens.studies.axbench_page import detection_leaderboard, steering_leaderboard
from steerlens.studies.demo_words import GROUPS, HEADINGS, Cells, cells_of, percent
from steerlens.studies.quickstart import rules_of_topics

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARTS = {
    "unsteered": "unsteered",
    "I": "always steered",
    "II": "steered if harmful",
    "II-difference": "the same, difference of means",
}


def _markdown(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    heads = list(heads)
    lines = [f"| {' | '.join(map(str, row))} |\n" for row in (heads, *rows)]
    return "".join([lines[0], "|" + "---|" * len(heads) + "\n", *lines[1:]])


def _demo(measure: str = "refused") -> Cells:
    return cells_of(json.loads((HERE / "results.json").read_text())["rows"], measure)


def _heads(cells: Cells, part: str, groups: Iterable[str]) -> list[str]:
    numbers = (f"{HEADINGS.get(group, group)}, n = {cells[part, group][1]}" for group in groups)
    return ["refused", *numbers]


def _row(told: str, cells: Cells, part: str, groups: Iterable[str]) -> list[str]:
    return [told, *(percent(cells[part, group][0]) for group in groups)]


def demo() -> str:
    """Who was refused, with 95 % intervals."""
    cells, groups = _demo(), GROUPS[:3]  # the others are topics
    rows = [_row(told, cells, part, groups) for part, told in PARTS.items()]
    rows.append(_row("*where the condition fires*", _demo("fired"), "II", groups))
    return _markdown(_heads(cells, "II", groups), rows)


def topics() -> str:
    """Which topics were refused by a rule and by its complement."""
    cells, groups = _demo(), GROUPS[3:]
    rows = [_row(f"`{rule}`", cells, part, groups) for part, rule in rules_of_topics().items()]
    return _markdown(_heads(cells, "III", groups), rows)


def _axbench() -> pd.DataFrame:
    return pd.read_csv(HERE / "axbench.csv", dtype={"layer": str, "n": "Int64"}).astype(object)


def _frame(table: pd.DataFrame) -> str:
    return _markdown(table, table.astype(object).where(table.notna(), "").to_numpy().tolist())


def detection() -> str:
    """AUROC of each arm, the mean over concepts."""
    return _frame(detection_leaderboard(_axbench()))


def steering() -> str:
    """Scores of each arm, the mean over concepts."""
    return _frame(steering_leaderboard(_axbench()))


def _compared(row: Any, value: float) -> tuple[str, str, str]:
    return (
        percent(Interval(value, row.low, row.high)),
        percent(Interval(row.degenerate, row.degenerate_low, row.degenerate_high)),
        "" if math.isnan(row.kl) else f"{row.kl:.2f}",
    )


def comparison() -> str:
    """Refused and broken replies by method, at most one budget of side effects."""
    table = pd.read_csv(HERE / "comparison.csv")
    rows = [
        (row.method.replace("_", " "), *_compared(row, row.score)) for row in table.itertuples()
    ]
    return _markdown(["", f"refused, n = {table['n'].iloc[0]}", "degenerate", "KL, nats"], rows)


def styles() -> str:
    """What each method does for a style, a language and a persona, within the same budgets."""
    table = pd.read_csv(HERE / "styles.csv", dtype={"layer": "Int64"}).query("method != 'judge'")
    parts = [_style(measure, part) for measure, part in table.groupby("measure", sort=False)]
    return _markdown(["", "within", "", "degenerate", "KL, nats"], chain.from_iterable(parts))


def _style(measure: str, part: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    yield f"**{measure}**, n = {part['n'].iloc[0]}", "", "", "", ""
    steered = part["strength"] > 0
    for row in pd.concat([part[~steered], part[steered]]).itertuples():
        told, budgets = row.method.replace("_", " "), ""
        if row.strength > 0:
            told += f", layer {row.layer}"
            budgets = "both budgets" if row.degenerate_budget < 1 else "KL alone"
        yield told, budgets, *_compared(row, row.value)


TABLES = {
    "README.md": [demo],
    "docs/index.md": [demo, topics],
    "docs/evaluating.md": [detection, steering],
    "docs/learning.md": [comparison, styles],
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
