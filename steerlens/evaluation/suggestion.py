"""Which layers to steer, and how strongly: the most effect at equal side effect."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import (
    KL_BUDGET,
    MET,
    N_TEXTS,
    NEAR,
    Calibration,
    at_kl_budget,
    with_whole_replies,
)
from steerlens.evaluation.effects import STEERED, UNSTEERED, paired_effects
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.evaluation.whole_replies import FEW_DEGENERATE
from steerlens.judges.builtin import degeneration
from steerlens.judges.judging import Judge, require_judges
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, as_prompts
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

FINALISTS = 3
"""Candidates that are calibrated exactly, and reply to all prompts."""
QUICK_PROMPTS = 4
"""Prompts of the first round."""
QUICK_TEXTS = 3
"""Neutral texts of the rounds' rough calibration."""
QUITE_NEAR = 0.5
"""How far below the KL budget a rough calibration may lie: in strength, a quarter or so."""
DROPPED = "dropped"
"""The status of candidates that were compared on a few prompts only."""


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The layers and strength with the most effect at equal side effect, with the evidence."""

    steering: Steering
    table: pd.DataFrame
    """One row per candidate, best first: `layers`, `strength`, `kl_p95`, `status`, `n`, `unsteered`
    and `steered` mean scores, `effect` with its interval, `raised`, `lowered`, `degeneration`. A
    status of "dropped": it was compared on the first `n` prompts only, roughly calibrated."""
    kl_budget: float
    """95th percentile of KL per token that each candidate may reach, in nats."""
    judge: str
    """Name of the judge whose score is the effect."""

    def __str__(self) -> str:
        best = self.table.iloc[0]
        return (
            f"{self.steering}: {self.judge} {best.effect:+.3f} [{best.effect_low:+.3f}, "
            f"{best.effect_high:+.3f}] (n = {best.n:.0f}) at KL p95 {best.kl_p95:.3g} nats per "
            f"token; the best of {len(self.table)} on these prompts, so evaluate() it on others"
        )

    def __repr__(self) -> str:
        return f"Suggestion({self})"

    def _repr_html_(self) -> str:
        """For notebooks: the best candidate in words, and a table of all."""
        rows = self.table.itertuples(index=False, name=None)
        table = Rows(list(self.table.columns), rows, len(self.table), "All candidates, best first")
        return card("Suggestion", {"steer with": repr(self.steering)}, str(self), table)


def neighbours(layers: Sequence[int], widths: Iterable[int]) -> list[tuple[int, ...]]:
    """All windows of consecutive layers, of each width.

    >>> neighbours([3, 4, 5], widths=(1, 2))
    [(3,), (4,), (5,), (3, 4), (4, 5)]
    """
    return [
        tuple(layers[first : first + width])
        for width in dict.fromkeys(widths)
        for first in range(len(layers) - width + 1)
    ]


def suggest(
    model: Model,
    vector: SteeringVector,
    prompts: Sequence[Readable],
    judge: Judge,
    *,
    kl_budget: float = KL_BUDGET,
    degenerate_budget: float = FEW_DEGENERATE,
    layers: Iterable[int] | None = None,
    widths: Sequence[int] = (1, 2),
    raises: bool = True,
    texts: Sequence[Readable] | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Suggestion:
    """Which layers to steer, and how strongly: by effect on the judge's score at equal side effect.

    Candidates are windows of consecutive layers. Where there are more than six, they are first
    calibrated roughly and compared on a few prompts in rounds: each drops two thirds and doubles
    the prompts. The last three are calibrated to the KL budget, and reply to all prompts. A
    candidate beyond the budget of degenerate replies is never better than one within; if the best
    one is beyond, its strength is lowered. Ties go to the middle layers. The best of many
    candidates looks better than it is: `evaluate` it on other prompts.

    Args:
        model: The model that is to be steered.
        vector: The vector to steer with.
        prompts: Texts, chats, passages or token ids, to be replied to.
        judge: Its score is what the steering should raise.
        kl_budget: 95th percentile of KL(unsteered ‖ steered) per token, in nats.
        degenerate_budget: Largest share of degenerate replies, or that of the unsteered model if
            it is larger. 1: KL alone decides.
        layers: Layers to choose from; default: all of the vector.
        widths: Numbers of consecutive layers that are steered together.
        raises: False if the score should fall.
        texts: Neutral texts for the KL; default: 24 of those of steerlens.
        max_new_tokens: Length of the replies; in the rounds, half of it.
        seed: Of the bootstrap intervals.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If no candidate can meet the budgets.

    >>> suggest(model, vector, prompts, judges.refusal, texts=prompts).table.status[0]
    'met'
    """
    numbers = vector.layers if layers is None else vector.at(layers).layers
    windows = neighbours(numbers, widths)
    if not windows:
        raise SteerlensError(
            f"got widths={list(widths)}; expected at least one of 1 to {len(numbers)}, the number "
            f"of layers to choose from ({', '.join(map(str, numbers))})"
        )
    prompts, [judge] = as_prompts(prompts), require_judges([judge])
    texts = list(neutral_texts()[:N_TEXTS] if texts is None else texts)
    relative = vector.norms is not None
    each = {window: Steering(vector, window, relative=relative) for window in windows}
    middle = (numbers[0] + numbers[-1]) / 2
    contest = _Contest(model, judge, raises, degenerate_budget, middle, seed, run)
    dropped: list[pd.DataFrame] = []
    if len(each) > 2 * FINALISTS:
        each, dropped = contest.rounds(each, prompts, kl_budget, texts, max_new_tokens)
    calibrations = at_kl_budget(model, list(each.values()), kl_budget, texts, NEAR, **run)
    candidates = dict(zip(each, calibrations, strict=True))
    met = _require_met(candidates, kl_budget)
    table, allowed = contest.compared(met, prompts, max_new_tokens)
    rest = pd.DataFrame(
        [_row(window, one) for window, one in candidates.items() if window not in met]
    )
    best = met[table["layers"].iloc[0]]
    if table["degeneration"].iloc[0] > allowed:
        best = with_whole_replies(model, best, prompts, degenerate_budget, max_new_tokens, **run)
        lowered, _ = contest.compared({best.steering.layers_steered: best}, prompts, max_new_tokens)
        table = pd.concat([lowered, table.iloc[1:]])
    table = pd.concat([part for part in (table, rest, *dropped) if len(part)], ignore_index=True)
    return Suggestion(best.steering, table, kl_budget, judge.name)


_Candidates = dict[tuple[int, ...], Calibration]
"""Calibrations by the layers that are steered."""


@dataclass(frozen=True, eq=False)
class _Contest:
    """How candidates are compared."""

    model: Model
    judge: Judge
    raises: bool
    degenerate_budget: float
    middle: float
    """The layer that ties go to, as steering often works best there."""
    seed: int
    run: RunOptions

    def rounds(
        self,
        each: dict[tuple[int, ...], Steering],
        prompts: Sequence[Readable],
        kl_budget: float,
        texts: Sequence[Readable],
        max_new_tokens: int,
    ) -> tuple[dict[tuple[int, ...], Steering], list[pd.DataFrame]]:
        """The finalists, and the rows of those that each round dropped, the last round first."""
        calibrations = at_kl_budget(
            self.model, list(each.values()), kl_budget, texts[:QUICK_TEXTS], QUITE_NEAR, **self.run
        )
        candidates = dict(zip(each, calibrations, strict=True))
        left = _require_met(candidates, kl_budget)
        unmet = [_row(window, one) for window, one in candidates.items() if window not in left]
        dropped, n_prompts = [pd.DataFrame(unmet)], QUICK_PROMPTS
        while len(left) > FINALISTS:
            table, _ = self.compared(left, prompts[:n_prompts], -(-max_new_tokens // 2))
            kept = max(FINALISTS, len(left) // 3)
            dropped.insert(0, table.iloc[kept:].assign(status=DROPPED))
            left = {window: left[window] for window in sorted(table["layers"].iloc[:kept])}
            n_prompts *= 2
        return {window: each[window] for window in left}, dropped

    def compared(
        self, candidates: _Candidates, prompts: Sequence[Readable], max_new_tokens: int
    ) -> tuple[pd.DataFrame, float]:
        """One row per candidate, the best first, and the share of broken replies allowed."""
        cells = [None, *(candidate.steering for candidate in candidates.values())]
        replies = list(
            generate(
                self.model,
                list(prompts) * len(cells),
                stacked(cells, len(prompts)),
                max_new_tokens=max_new_tokens,
                **self.run,
            )
        )
        scores = self.judge(replies).reshape(len(cells), -1)
        broken = degeneration(replies).reshape(len(cells), -1).mean(axis=1)
        allowed = max(self.degenerate_budget, float(broken[0]))
        table = pd.DataFrame([
            {
                **_row(window, one),
                **_paired(self.judge.name, scores[0], scores[cell], self.seed),
                "degeneration": broken[cell],
            }
            for cell, (window, one) in enumerate(candidates.items(), start=1)
        ])  # fmt: skip
        # of a few replies, one may break
        table["broken"] = table["degeneration"] > max(allowed, 1 / len(prompts))
        table["off_middle"] = [abs(np.mean(window) - self.middle) for window in table["layers"]]
        table = table.sort_values(
            ["broken", "effect", "off_middle"], ascending=[True, not self.raises, True],
            na_position="last", ignore_index=True,
        )  # fmt: skip
        return table.drop(columns=["broken", "off_middle"]), allowed


def _row(window: tuple[int, ...], one: Calibration) -> dict[str, object]:
    return {"layers": window, "strength": one.strength, "kl_p95": one.kl, "status": one.status}


def _require_met(candidates: _Candidates, kl_budget: float) -> _Candidates:
    """The candidates that can spend the budget."""
    met = {window: each for window, each in candidates.items() if each.status == MET}
    if not met:
        statuses = ", ".join(f"{window}: {each.status}" for window, each in candidates.items())
        raise SteerlensError(
            f"got a KL budget of {kl_budget:g} nats, which none of {len(candidates)} candidates "
            f"meets ({statuses}); give another budget"
        )
    return met


def _paired(
    judge: str, before: Float[np.ndarray, " prompt"], after: Float[np.ndarray, " prompt"], seed: int
) -> dict[str, object]:
    cells = [(UNSTEERED, 0.0, before), (STEERED, 1.0, after)]
    table = pd.concat([
        pd.DataFrame({
            "judge": judge, "prompt": range(len(scores)), "arm": arm, "strength": strength,
            "score": scores,
        })
        for arm, strength, scores in cells
    ])  # fmt: skip
    unsteered, steered = (row for _, row in paired_effects(table, seed=seed).iterrows())
    kept = steered[["effect", "effect_low", "effect_high", "raised", "lowered"]].to_dict()
    return {"n": steered.n, "unsteered": unsteered["mean"], "steered": steered["mean"], **kept}
