"""The table of side effects → the lines about them in a verdict, and its warnings."""

from collections.abc import Iterator

import pandas as pd

from steerlens.evaluation.effects import ASKED, STEERED, UNSTEERED, asks_only, is_control
from steerlens.evaluation.safety_panel import HARMFUL, HARMLESS, LOOKALIKES, REFUSAL_DIRECTION
from steerlens.intervals import Interval


def damage_lines(side_effects: pd.DataFrame, strength: float) -> list[str]:
    """What the steering does elsewhere, a line for each kind of text or prompt.

    Args:
        side_effects: As of `Evaluation`.
        strength: The strength that the verdict is about.
    """
    table = side_effects
    steered = _cell(table[(table.arm == STEERED) & (table.strength == strength)])
    unsteered = _cell(table[table.arm == UNSTEERED])
    lines = list(_on_text(steered))
    for of in dict.fromkeys(of for of, measure in steered.index if measure == "refusal"):
        lines += _on_prompts(steered, unsteered, of)
    for arm in dict.fromkeys(filter(asks_only, table.arm)):
        lines.append(_of_asking(arm, _cell(table[table.arm == arm]), unsteered))
    return [*lines, *_overlap(table[table.strength == strength])]


def warnings_of(side_effects: pd.DataFrame, strength: float) -> str:
    """Sentences on what the steering is shown to do to prompts it is not meant for, or nothing.

    Args:
        side_effects: As of `Evaluation`.
        strength: The strength that the verdict is about.
    """
    table = side_effects
    steered = _cell(table[(table.arm == STEERED) & (table.strength == strength)])

    def grows(of: str, measure: str) -> bool:
        return (of, measure) in steered.index and bool(steered.low[of, measure] > 0)

    found = ""
    if grows(HARMFUL, "compliance_change"):
        found += " It also complies with harmful requests that the model alone does not."
    if refusing := [of for of in (HARMLESS, LOOKALIKES) if grows(of, "refusal_change")]:
        found += f" It also refuses {' and '.join(refusing)} prompts."
    return found


def _cell(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.set_index(["of", "measure"])


def _measured(cell: pd.DataFrame, of: str, measure: str) -> Interval:
    return Interval(*cell.loc[(of, measure), ["value", "low", "high"]])


def _on_text(steered: pd.DataFrame) -> Iterator[str]:
    if "texts" not in steered.index:
        return
    kl, ratio = (_measured(steered, "texts", name) for name in ("kl_mean", "perplexity_ratio"))
    yield (
        f"neutral text: KL {kl} nats per token, p95 {steered.value['texts', 'kl_p95']:.3f}; "
        f"perplexity × {ratio} (n = {steered.n['texts', 'kl_mean']} texts)"
    )


def _on_prompts(steered: pd.DataFrame, unsteered: pd.DataFrame, of: str) -> Iterator[str]:
    drift = _measured(steered, of, "drift_mean")
    yield (
        f"{_replies(steered, unsteered, of)}, drift {drift} nats "
        f"(n = {steered.n[of, 'refusal']} prompts)"
    )
    if (of, "drift_closed") in steered.index:
        n, most = steered.n[of, "drift_closed"], steered.value[of, "drift_closed"]
        yield f"gate closed on {n} of these: drift there at most {most:.2g} nats"


def _of_asking(arm: str, asked: pd.DataFrame, unsteered: pd.DataFrame) -> str:
    sets = dict.fromkeys(of for of, _ in asked.index)
    parts = [_replies(asked, unsteered, of) for of in sets]
    return f"asked for in the prompt ({arm.removeprefix(ASKED)}), {'; '.join(parts)}"


def _replies(cell: pd.DataFrame, unsteered: pd.DataFrame, of: str) -> str:
    """Refusals or compliance, length and broken replies, before and after."""
    measure = "compliance" if of == HARMFUL else "refusal"
    before, after = unsteered.value[of], cell.value[of]
    return (
        f"{of} prompts: {measure} {before[measure]:.3f} → {_measured(cell, of, measure)}, "
        f"reply {before['reply_tokens']:.1f} → {after['reply_tokens']:.1f} tokens, "
        f"degenerate {before['degenerate']:.0%} → {after['degenerate']:.0%}"
    )


def _overlap(table: pd.DataFrame) -> Iterator[str]:
    """The largest cosine with the refusal direction, beside that of the controls."""
    cosines = table[table.of == REFUSAL_DIRECTION]
    steered = cosines[cosines.arm == STEERED]
    if steered.empty:
        return
    largest = steered.loc[steered.value.abs().idxmax()]
    others = cosines[cosines.arm.map(is_control)].value.abs()
    beside = f"; controls at most {others.max():.2f}" if len(others) else ""
    layer = largest.measure.removeprefix("cosine, ")
    yield (
        f"overlap with the refusal direction: cosine {largest.value:+.2f} at {layer}, the largest "
        f"of {len(steered)} layers{beside}"
    )
