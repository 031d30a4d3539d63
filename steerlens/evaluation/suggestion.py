"""Which layers to steer, and how strongly: the most effect at equal side effect."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import MET, Calibration, at_kl_budget
from steerlens.evaluation.effects import STEERED, UNSTEERED, paired_effects
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


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The layers and strength with the most effect at equal side effect, with the evidence."""

    steering: Steering
    table: pd.DataFrame
    """One row per candidate, best first: `layers`, `strength`, `kl_p95`, `status`, `n`, `unsteered`
    and `steered` mean scores, `effect` with its interval, `raised`, `lowered`, `degeneration`."""
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
    kl_budget: float = 1.0,
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

    Candidates are windows of consecutive layers. Each is calibrated to the KL budget, then all
    reply to the prompts in one batch. A candidate beyond the budget of degenerate replies is never
    better than one within. The best of many candidates looks better than it is: `evaluate` it on
    other prompts.

    Args:
        prompts: Texts, chats, passages or token ids, to be replied to.
        judge: Its score is what the steering should raise.
        kl_budget: 95th percentile of KL(unsteered ‖ steered) per token, in nats.
        degenerate_budget: Largest share of degenerate replies, or that of the unsteered model if
            it is larger.
        layers: Layers to choose from; default: all of the vector.
        widths: Numbers of consecutive layers that are steered together.
        raises: False if the score should fall.
        texts: Neutral texts for the KL; default: 24 of those of steerlens.
        seed: Of the bootstrap intervals.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If no candidate can meet the budget.

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
    relative = vector.norms is not None
    each = [Steering(vector, window, relative=relative) for window in windows]
    calibrations = at_kl_budget(model, each, kl_budget, texts, 0.02, **run)
    candidates = dict(zip(windows, calibrations, strict=True))
    met = _require_met(candidates, kl_budget)
    cells = [None, *(candidate.steering for candidate in met.values())]
    replies = generate(
        model,
        prompts * len(cells),
        stacked(cells, len(prompts)),
        max_new_tokens=max_new_tokens,
        **run,
    )
    n = len(prompts)
    allowed = max(degenerate_budget, degeneration(replies[:n]).mean())
    table = _measured(candidates, met, judge, list(replies), seed)
    table = table.assign(broken=table["degeneration"] > allowed).sort_values(
        ["broken", "effect"], ascending=[True, not raises], na_position="last", kind="stable",
        ignore_index=True,
    )  # fmt: skip
    table = table.drop(columns="broken")
    best = candidates[table["layers"].iloc[0]].steering
    return Suggestion(best, table, kl_budget, judge.name)


_Candidates = dict[tuple[int, ...], Calibration]
"""Calibrations by the layers that are steered."""


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


def _measured(
    candidates: _Candidates, met: _Candidates, judge: Judge, replies: Sequence[str], seed: int
) -> pd.DataFrame:
    """One row per candidate; `replies` are unsteered, then those of each that met the budget."""
    scores = judge(replies).reshape(1 + len(met), -1)
    broken = degeneration(replies).reshape(1 + len(met), -1).mean(axis=1)
    cell_of = {window: cell for cell, window in enumerate(met, start=1)}
    rows = []
    for window, each in candidates.items():
        row = {"layers": window, "strength": each.strength, "kl_p95": each.kl}
        row["status"] = each.status
        if window in met:
            cell = cell_of[window]
            row |= _paired(judge.name, scores[0], scores[cell], seed)
            row["degeneration"] = broken[cell]
        rows.append(row)
    return pd.DataFrame(rows)


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
