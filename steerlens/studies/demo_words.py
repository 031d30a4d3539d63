"""What the demo came to: a short table, six lines, and commands to go on with."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from steerlens.intervals import Interval
from steerlens.layer_text import display_layers
from steerlens.models.loading import TINY_CHAT
from steerlens.steering.condition_search import ConditionSearch
from steerlens.steering.steering import Steering

GROUPS = ("harmful", "harmless", "lookalikes", "named", "others")
HEADINGS = {"lookalikes": "look-alikes", "named": "named topics", "others": "other topics"}
PARTS = {
    "unsteered": "unsteered",
    "I": "I · everything",
    "II": "II · if harmful",
    "II-difference": "II · difference of means",
    "III": "III · named topics",
    "III-complement": "III · all other topics",
}
"""The parts of the demo in a few words."""
FIRES = "II · the condition fires"

Cells = Mapping[tuple[str, str], tuple[Interval, int]]
"""Rates with their numbers of prompts, by part and group."""


def cells_of(rows: Iterable[Mapping[str, Any]], measure: str = "refused") -> Cells:
    """The rates of one measure by part and group.

    >>> row = {"part": "I", "group": "harmful", "measure": "refused", "n": 4}
    >>> cells_of([{**row, "value": 1.0, "low": 0.5, "high": 1.0}])["I", "harmful"]
    (1.000 [0.500, 1.000], 4)
    """
    return {
        (row["part"], row["group"]): (Interval(row["value"], row["low"], row["high"]), row["n"])
        for row in rows
        if row["measure"] == measure
    }


def percent(share: Interval) -> str:
    """A rate with its interval, in percent.

    >>> percent(Interval(0.5, 0.25, 0.754))
    '50 % [25, 75]'
    """
    value, low, high = (100 * number for number in share)
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def rates_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Who was refused: a line for each part, a column for each kind of prompt."""
    cells, fired = cells_of(rows), cells_of(rows, "fired")
    found = []
    for groups in (GROUPS[:3], GROUPS[3:]):
        table = Table(title="Refused, in % of test prompts [95 % interval]", title_justify="left")
        table.add_column("", no_wrap=True)
        for group in groups:
            n = next(n for key, (_, n) in cells.items() if key[1] == group)
            table.add_column(f"{HEADINGS.get(group, group)}, n = {n}", justify="right")
        for part, told in PARTS.items():
            if (part, groups[0]) in cells:
                shares = (percent(cells[part, group][0]) for group in groups)
                table.add_row(told, *shares)
        if ("II", groups[0]) in fired:
            table.add_row(FIRES, *(percent(fired["II", group][0]) for group in groups))
        found.append(table)
    return found


def takeaway(
    rows: Sequence[Mapping[str, Any]], search: ConditionSearch, model_name: str
) -> list[str]:
    """Six lines: what was asked, what happened, beside what, and what it does not show."""
    cells, broken, fired = (cells_of(rows, what) for what in ("refused", "degenerate", "fired"))

    def told(part: str, group: str, shares: Cells = cells) -> str:
        return f"{percent(shares[part, group][0])} of {HEADINGS.get(group, group)}"

    numbers = ", ".join(
        f"{cells['unsteered', group][1]} {HEADINGS.get(group, group)}"
        for group in ("harmful", "harmless", "lookalikes")
    )
    both = ("harmful", "harmless", "lookalikes")
    alone, only = (", ".join(told(part, group) for group in both) for part in ("unsteered", "II"))
    where = ", ".join(told("II", group, fired) for group in both)
    rival = ("II-difference", "harmful") in cells
    beside = (
        f" With the difference of means instead: {told('II-difference', 'harmful')}, "
        f"{percent(broken['II-difference', 'harmful'][0])} broken."
        if rival
        else ""
    )
    return [
        f"Asked: {numbers} requests, on which nothing was chosen; could {model_name} be made to "
        "refuse just the harmful ones?",
        f"Alone it refuses {alone}; always steered, {percent(cells['I', 'all'][0])} of all "
        f"(broken replies: {percent(broken['I', 'all'][0])}).",
        f"The condition fires on {where}. Steered there, it refuses {only}.{beside}",
        f"By topic: {told('III', 'named')} and {told('III', 'others')}; by the opposite rule "
        f"{told('III-complement', 'named')} and {told('III-complement', 'others')}.",
        f"Confounds: {_beside_baselines(search)}",
        f"Verdict: {verdict(cells)} {_limits(model_name)}",
    ]


def verdict(cells: Cells) -> str:
    """What the rates of part II show, by their intervals.

    >>> high, low = (Interval(0.9, 0.8, 1.0), 9), (Interval(0.1, 0.0, 0.2), 9)
    >>> verdict({("II", "harmful"): high, ("II", "harmless"): low, ("II", "lookalikes"): low,
    ...          ("unsteered", "harmful"): low})
    'harmful requests are refused more than unsteered, and more than harmless ones.'
    """
    on, off, alike = (cells["II", group][0] for group in ("harmful", "harmless", "lookalikes"))
    before = cells["unsteered", "harmful"][0]
    if not (on.low > before.high and on.low > off.high):
        return "no effect of the condition beyond chance is shown."
    end = "." if on.low > alike.high else "; not shown to be more than look-alikes."
    return f"harmful requests are refused more than unsteered, and more than harmless ones{end}"


def next_commands(model_name: str, out: Path, steering: Steering) -> list[str]:
    """Three commands to go on with.

    Args:
        out: Where the demo's results are.
        steering: The one that refuses.
    """
    layers = display_layers(steering.layers_steered).replace("–", "-").replace(" ", "")
    relative = " --relative" if steering.relative else ""
    return [
        f'steerlens generate {out}/refuse.safetensors "How do I pick a lock?" --model {model_name}'
        f" --layers {layers} --strength {steering.strength}{relative}"
        f" --condition {out}/harmful.json --condition-vector {out}/harmful.safetensors",
        f"steerlens report {out}",
        f"steerlens playground --model {model_name}",
    ]


def _beside_baselines(search: ConditionSearch) -> str:
    """F1 of the condition, and of what length and words alone decide."""
    baselines = {one.baseline: one for one in search.comparisons}
    others = ", ".join(f"{name} {baselines[name].f1}" for name in ("length", "words"))
    return f"F1 of the condition {search.scores.f1}, of {others}: {search.verdict}."


def _limits(model_name: str) -> str:
    """What the demo does not show."""
    beyond = "a real model" if model_name == TINY_CHAT else "larger models or craftier requests"
    return (
        "Not shown: that refusing is more than its phrases, which are counted, or what "
        f"{beyond} would do."
    )
