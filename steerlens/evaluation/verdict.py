"""Measured effects → a verdict of a few lines that a careful reviewer would accept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steerlens.display import shortened
from steerlens.errors import SteerlensError
from steerlens.evaluation.damage import damage_lines, warnings_of
from steerlens.evaluation.effects import (
    ASKED,
    ASKED_AND_STEERED,
    NEGATIVE,
    STEERED,
    UNSTEERED,
    asks_only,
    is_control,
)
from steerlens.intervals import Interval
from steerlens.judges.fluency import TOO_MANY_DEGENERATE, degenerate

FEW_PROMPTS = 50
"""Below so many prompts a verdict says what effect they could have shown."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What one judge's score at one strength supports; `str()` puts it in words."""

    effects: pd.DataFrame
    """As of `Evaluation`, and so are the others."""
    dose: pd.DataFrame
    side_effects: pd.DataFrame
    replies: pd.DataFrame
    settings: Mapping[str, Any]
    asked: pd.DataFrame
    """By how much the steering is ahead of asking for it; empty if nothing asked."""

    def __str__(self) -> str:
        measured = [*self._evidence(), *damage_lines(self.side_effects, self.strength)]
        evidence = [f"  {line}" for line in measured]
        return "\n".join([self.claim(), *evidence, *self._reservations()])

    @property
    def judge(self) -> str:
        """The first judge: its score is what the steering is meant to change."""
        return str(self.effects.judge.iloc[0])

    @property
    def strength(self) -> float:
        """The steering's own strength if it was run, otherwise the greatest."""
        return float(self.settings["strength"])

    def effect(self, arm: str = STEERED, judge: str | None = None) -> pd.Series:
        """The row of `effects` of an arm at this strength.

        Args:
            arm: "steered", "negative" or the name of a control.
            judge: Its name; default: the first.
        """
        table, judge = self.effects, judge or self.judge
        strength = -self.strength if arm == NEGATIVE else self.strength
        strength = 0.0 if asks_only(arm) else strength
        row = table[(table.judge == judge) & (table.arm == arm) & (table.strength == strength)]
        if row.empty:
            raise SteerlensError(
                f"got the arm {arm!r} and the judge {judge!r}; expected one of the arms "
                f"{', '.join(table.arm.unique())} and judges {', '.join(table.judge.unique())}"
            )
        return row.iloc[0]

    @property
    def controls(self) -> pd.DataFrame:
        """The rows of `effects` of the control arms, by the first judge at this strength."""
        table = self.effects
        is_main = (table.judge == self.judge) & (table.strength == self.strength)
        return table[table.arm.map(is_control) & is_main].reset_index(drop=True)

    def claim(self) -> str:
        """What the measurements support, in a sentence or two."""
        return self._claim() + warnings_of(self.side_effects, self.strength)

    def _claim(self) -> str:
        row, controls = self.effect(), self.controls
        if not row.n:
            return f"No verdict: {self.judge} gave no scores."
        ends = sorted(self._sign * end for end in (row.effect_low, row.effect_high))
        largest = (self._sign * controls.effect).max() if len(controls) else np.nan
        if np.isnan(ends).any():
            return "No interval: one prompt is not enough for a verdict."
        if ends[1] < 0:
            return "The wrong way: the steering does the opposite of what it is meant to do."
        if ends[0] <= 0:
            return "No effect shown: the interval contains 0."
        if np.isnan(largest):
            return "An effect, but no control to compare it with."
        if ends[0] <= largest:
            return "An effect, but not beyond the controls: its interval does not clear them all."
        beyond = "An effect beyond the controls: its interval clears the largest of them."
        return beyond + self._beside_asking()

    def _beside_asking(self) -> str:
        """Whether asking for it in the prompt does as much."""
        ends = self._sign * self._asked_here()[["ahead_low", "ahead_high"]]
        if ends.empty:
            return ""
        if (ends.max(axis=1) < 0).any():
            return " But asking for it in the prompt does more."
        if (ends.min(axis=1) <= 0).any():
            return " But it is not shown to be more than asking for it in the prompt does."
        return " It is more than asking for it in the prompt does."

    def _asked_here(self) -> pd.DataFrame:
        """The rows of `asked` of the first judge at this strength."""
        here = (self.asked.judge == self.judge) & (self.asked.strength == self.strength)
        return self.asked[here]

    @property
    def degenerate(self) -> float:
        """The share of steered replies at this strength that are empty or repeat themselves."""
        replies = self.replies
        steered = replies[(replies.arm == STEERED) & (replies.strength == self.strength)]
        return float(steered.reply.map(degenerate).mean())

    @property
    def _sign(self) -> int:
        return 1 if self.settings["raises"] else -1

    def _evidence(self) -> list[str]:
        row, judge, controls = self.effect(), self.judge, self.controls
        if not row.n:
            return []
        wrong, low, high = row[[f"{self._wrong}{end}" for end in ("", "_low", "_high")]]
        before = self.effects.query("judge == @judge and arm == @UNSTEERED")["mean"].iloc[0]
        lines = [
            f"{judge} {_change(row)} at strength {self.strength:g}: "
            f"{before:.3f} → {row['mean']:.3f} (n = {row.n} prompts, 95 % interval)"
        ]
        if row.n < FEW_PROMPTS:
            lines.append(_least_effect(row))
        kinds = controls.arm.str.replace(r"\s*\d+$", "", regex=True)  # "random" of "random 2"
        for kind, arms in controls.groupby(kinds, sort=False):
            gains = self._sign * arms.effect
            mean, largest = self._sign * gains.mean(), self._sign * gains.max()
            lines.append(f"{len(gains)} {kind}: mean {mean:+.3f}, largest {largest:+.3f}")
        lines.append(f"other sign: {_change(self.effect(NEGATIVE))}")
        for asked in self._asked_here().itertuples():
            alone, both = (
                self.effect(f"{ASKED}{asked.asking}{end}") for end in ("", ASKED_AND_STEERED)
            )
            lines.append(
                f"asked for in the prompt ({asked.asking}): {_change(alone)}, and steered "
                f"{_change(both)}; steering minus asking {asked.ahead:+.3f} "
                f"[{asked.ahead_low:+.3f}, {asked.ahead_high:+.3f}]"
            )
        lines.append(f"moved the wrong way: {wrong:.1%} [{low:.1%}, {high:.1%}] of prompts")
        dose = self.dose[self.dose.judge == judge].set_index("measure")
        if len(dose):
            slope, rho = (Interval(*dose.loc[m, ["value", "low", "high"]]) for m in dose.index)
            lines.append(f"dose: slope {slope} per unit of strength, monotone ρ {rho}")
        for other in self.settings["judges"]:
            if other != judge and other not in self.settings["failures"]:
                lines.append(f"{other} {_change(self.effect(judge=other))}")
        return lines

    @property
    def _wrong(self) -> str:
        return "lowered" if self._sign > 0 else "raised"

    def _reservations(self) -> list[str]:
        controls, replies = self.controls, self.replies
        steered = replies[(replies.arm == STEERED) & (replies.strength == self.strength)]
        empty, n = int((steered.reply.str.strip() == "").sum()), len(steered)
        lines = [
            f"{judge} failed, so some replies have no score from it: {reason}"
            for judge, reason in self.settings["failures"].items()
        ]
        lines += [f"{empty} of {n} steered replies are empty"] if empty else []
        lines += _few_replies(steered.reply, replies[replies.arm == UNSTEERED].reply)
        if self.degenerate > TOO_MANY_DEGENERATE:
            lines.append(
                f"{self.degenerate:.0%} of the steered replies are degenerate (empty or repeating "
                "themselves), and scores of broken text mean little: steer less, or fewer layers"
            )
        lines += list(self.settings["notes"])
        lines.append(
            f"{len(controls)} controls cannot show more than p = 1/{len(controls) + 1} by rank"
            if len(controls)
            else "no controls were run: any direction might do the same"
        )
        lines.append("other models, prompts and judges; no human has read these replies")
        return ["Not shown:", *(f"  {line}" for line in lines)]


def _few_replies(steered: pd.Series, unsteered: pd.Series) -> list[str]:
    """Whether the steering says few things only, where the model alone says many."""
    different = steered.nunique()
    if not different or 2 * different > unsteered.nunique():
        return []
    commonest = steered.value_counts()
    return [
        f"the steering is rather a phrase: {different} different replies to {len(steered)} prompts "
        f"(unsteered {unsteered.nunique()}), {commonest.iloc[0]} times "
        f"“{shortened(commonest.index[0], 80)}”"
    ]


def _least_effect(row: pd.Series) -> str:
    """The smallest effect that would probably have been found."""
    if np.isinf(row.detectable):
        return f"with {row.n} prompts, no effect is large enough to be found four times in five"
    return (
        f"with {row.n} prompts, an effect of {row.detectable:.3f} or more would be found four "
        "times in five; a smaller one may be missed"
    )


def _change(row: pd.Series) -> str:
    return f"{row.effect:+.3f} [{row.effect_low:+.3f}, {row.effect_high:+.3f}]"
