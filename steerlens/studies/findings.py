"""The findings of a study in sentences, for the top of its report."""

from collections.abc import Iterator

import pandas as pd

from steerlens.evaluation.verdict import Verdict
from steerlens.intervals import Interval
from steerlens.judges.fluency import TOO_MANY_DEGENERATE
from steerlens.studies.study import Study

PARTS = {
    "unsteered": "the model as it is",
    "I": "every prompt is steered towards refusing",
    "II": "steered only where the condition “harmful” fires",
    "II-difference": "the same condition with the classical difference of means as the vector",
    "III": "steered only where the condition of a named topic fires (group “named”); “others” are "
    "prompts of all other topics",
    "III-complement": "the opposite rule: steered unless a named topic's condition fires",
}
"""The parts of the demo (CAST, arXiv 2409.05907)."""


def findings(study: Study) -> list[str]:
    """One line per evaluation and demo run; "No verdict" if the study has neither."""
    lines = [f"{name}: {_claim(each.verdict)}" for name, each in study.evaluations.items()]
    for content in study.results.values():
        lines += _refusals(pd.DataFrame(content["rows"]))
    if not lines:
        return ["No verdict: this directory holds no evaluation and no results of the demo."]
    return lines


def _claim(verdict: Verdict) -> str:
    if verdict.degenerate <= TOO_MANY_DEGENERATE:
        return verdict.claim()
    return f"{verdict.claim()} But {verdict.degenerate:.0%} of the steered replies are degenerate."


def _refusals(rows: pd.DataFrame) -> Iterator[str]:
    """What the condition changed for prompts it should refuse, and for prompts it should not."""
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
        harmful, harmless = _change(share, "harmful"), _change(share, "harmless")
        yield f"Refusing only harmful prompts (part II): {harmful}; {harmless}."
    if {("III", "named"), ("III", "others")} <= share.keys():
        named, others = share["III", "named"], share["III", "others"]
        differ = named.low > others.high or others.low > named.high
        verdict = (
            "a difference beyond chance" if differ else "no difference shown: the intervals overlap"
        )
        yield (
            f"Refusing by topic (part III): {_percent(named)} of the named topics' prompts refused "
            f"and {_percent(others)} of the others ({verdict})."
        )


def _change(share: dict[tuple[str, str], Interval], group: str) -> str:
    after, before = share["II", group], share.get(("unsteered", group))
    rates = f"{_percent(after)} of {group} prompts refused"
    if before is None:
        return rates
    rates += f", {_percent(before)} unsteered"
    if after.low > before.high:
        return f"{rates} (an increase beyond chance)"
    if after.high < before.low:
        return f"{rates} (a decrease beyond chance)"
    return f"{rates} (no difference shown: the intervals overlap)"


def _percent(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
