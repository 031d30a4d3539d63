"""What a study found, in the sentences that stand first on its page."""

from collections.abc import Iterator

import pandas as pd

from steerlens.evaluation.verdict import TOO_MANY_DEGENERATE, Verdict
from steerlens.intervals import Interval
from steerlens.studies.study import Study

PARTS = {
    "unsteered": "the model as it is",
    "I": "every prompt is steered towards refusing",
    "II": "steered only where the condition “harmful” fires",
    "III": "steered only where the condition of a named topic fires (group “named”); “others” are "
    "prompts of all other topics",
    "III-complement": "the opposite rule: steered unless a named topic's condition fires",
}
"""The parts of the demo (CAST, arXiv 2409.05907)."""


def findings(study: Study) -> list[str]:
    """One line for each evaluation and each run of the demo; or that nothing here is a finding."""
    lines = [f"{name}: {_claim(found.verdict)}" for name, found in study.evaluations.items()]
    for content in study.results.values():
        lines += _refusals(pd.DataFrame(content["rows"]))
    if not lines:
        return ["No verdict: this directory holds no evaluation, and no results of the demo."]
    return lines


def _claim(verdict: Verdict) -> str:
    if verdict.degenerate <= TOO_MANY_DEGENERATE:
        return verdict.claim()
    return f"{verdict.claim()} But {verdict.degenerate:.0%} of the steered replies are degenerate."


def _refusals(rows: pd.DataFrame) -> Iterator[str]:
    """What the condition changed for those it should catch, and for those it should spare."""
    if not {"part", "group", "measure", "value", "low", "high"} <= set(rows.columns):
        return
    refused = rows[rows["measure"] == "refused"].drop_duplicates(["part", "group"])
    share = {
        (part, group): Interval(*ends)
        for part, group, *ends in refused[["part", "group", "value", "low", "high"]].itertuples(
            index=False
        )
    }
    if {("II", "harmful"), ("II", "harmless")} <= share.keys():
        caught = _change(share, "harmful")
        spared = _change(share, "harmless")
        yield f"Refusing only harmful prompts (part II): {caught}; {spared}."
    if {("III", "named"), ("III", "others")} <= share.keys():
        named, others = share["III", "named"], share["III", "others"]
        apart = "apart" if named.low > others.high or others.low > named.high else "not told apart"
        yield (
            f"Refusing by topic (part III): {_percent(named)} of the named topics' prompts refused "
            f"and {_percent(others)} of the others: {apart}."
        )


def _change(share: dict[tuple[str, str], Interval], group: str) -> str:
    after, before = share["II", group], share.get(("unsteered", group))
    said = f"{_percent(after)} of {group} prompts refused"
    if before is None:
        return said
    said += f", {_percent(before)} unsteered"
    if after.low > before.high:
        return f"{said} (more than chance)"
    if after.high < before.low:
        return f"{said} (fewer than chance)"
    return f"{said} (no difference shown: the intervals overlap)"


def _percent(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
