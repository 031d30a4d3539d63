"""The strength at a side-effect budget; and the layers that do most at equal side effect."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from steerlens.display import Rows, card
from steerlens.errors import SteerlensError
from steerlens.evaluation.effects import STEERED, UNSTEERED, paired_effects
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.evaluation.teacher_forcing import as_text, kl_percentiles, teacher_forced
from steerlens.judges.builtin import degeneration
from steerlens.judges.judging import Judge
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, TokenRow, tokenize
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering
from steerlens.vectors.vector import SteeringVector

GRID = 2.0 ** np.arange(-6, 2)
"""First strengths tried, in norms of the stream; where none brackets the budget, weaker or stronger
ones by a factor of 256."""
ROUNDS = 16
"""Batches at most: two for the grid, and a bracket of 2 halved to less than 0.01 %."""
N_TEXTS = 24
"""Neutral texts that many candidates are calibrated on, unless others are given."""
MET, NEVER, ALWAYS = "met", "never exceeded", "always exceeded"


@dataclass(frozen=True, eq=False)
class Calibration:
    """The plan at the strongest strength within a KL budget, and all that was tried to find it."""

    steering: Steering
    strength: float
    """Of strengths by layer: what they are multiplied by."""
    kl: float
    """95th percentile of KL(unsteered ‖ steered) per token at this strength, in nats."""
    kl_budget: float
    status: str
    """ "met", or "never exceeded" or "always exceeded" by any strength tried."""
    tried: pd.DataFrame
    """`strength` and its `kl_p95`, weakest first."""

    def __repr__(self) -> str:
        return (
            f"Calibration(strength {self.strength:.4g}: KL p95 {self.kl:.3g} nats per token, "
            f"budget {self.kl_budget:g} {self.status})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the strength found, and all that was tried."""
        rows = self.tried.itertuples(index=False, name=None)
        return card(
            f"Calibration: strength {self.strength:.4g}",
            {
                "KL, 95th percentile": f"{self.kl:.3g} nats per token",
                "budget": f"{self.kl_budget:g} {self.status}",
                "steering": repr(self.steering),
            },
            Rows(list(self.tried.columns), rows, len(self.tried), "All that was tried", True),
        )


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The layers and strength that did most at equal side effect, with the evidence."""

    steering: Steering
    table: pd.DataFrame
    """One row per candidate, best first: `layers`, `strength`, `kl_p95`, `status`, `n`, `unsteered`
    and `steered` mean scores, `effect` with its interval, `raised`, `lowered`, `degeneration`."""
    kl_budget: float
    judge: str

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
        """For notebooks: the best in words, and all candidates."""
        rows = self.table.itertuples(index=False, name=None)
        table = Rows(list(self.table.columns), rows, len(self.table), "All candidates, best first")
        return card("Suggestion", {"steer with": repr(self.steering)}, str(self), table)


def calibrate_strength(
    model: Model,
    steering: Steering,
    kl_budget: float = 1.0,
    texts: Sequence[Readable] | None = None,
    *,
    tolerance: float = 0.02,
    **run: Unpack[RunOptions],
) -> Calibration:
    """The strength at which the 95th percentile of KL per token reaches `kl_budget`, in nats.

    KL need not grow with strength: what is found is where the budget is first exceeded, as far as
    a grid of factors of 2 can see; its lower side, within `tolerance` of the budget. Teacher-forced
    on neutral text. Keeps the strength's sign. Raises if no strength reaches the budget, or all
    exceed it.

    >>> calibrate_strength(model, steering, kl_budget=1.0, texts=prompts).status
    'met'
    """
    [found] = _calibrated(model, [steering], kl_budget, texts, tolerance, **run)
    if found.status != MET:
        span = f"{found.tried.strength.iloc[0]:.3g} to {found.tried.strength.iloc[-1]:.3g}"
        least, most = found.tried.kl_p95.min(), found.tried.kl_p95.max()
        advice = "give a larger budget" if found.status == ALWAYS else "give a smaller budget"
        if not most:
            advice = "the plan changes nothing in these texts (does its condition fire on them?)"
        raise SteerlensError(
            f"the KL budget of {kl_budget:g} nats is {found.status}: {steering} has a KL p95 of "
            f"{least:.3g} to {most:.3g} at strengths {span}; {advice}"
        )
    return found


def calibrate_layers(
    model: Model,
    steering: Steering,
    kl_budget: float = 1.0,
    texts: Sequence[Readable] | None = None,
    *,
    layers: Iterable[int] | None = None,
    tolerance: float = 0.02,
    **run: Unpack[RunOptions],
) -> dict[int, Calibration]:
    """`calibrate_strength` for each layer steered alone (default: the plan's), all in one batch.

    Does not raise where a layer cannot meet the budget: its `status` says so.
    """
    numbers = steering.layers_steered if layers is None else tuple(layers)
    if torch.as_tensor(steering.strength).ndim:
        raise SteerlensError(
            f"got {steering} with strengths by layer; expected one number to calibrate each layer"
        )
    plans = [replace(steering, layers=[layer]) for layer in numbers]
    found = _calibrated(model, plans, kl_budget, texts, tolerance, **run)
    return dict(zip(numbers, found, strict=True))


def neighbours(layers: Sequence[int], widths: Iterable[int]) -> list[tuple[int, ...]]:
    """All windows of neighbouring layers, of each width.

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
    layers: Iterable[int] | None = None,
    widths: Sequence[int] = (1, 2),
    raises: bool = True,
    texts: Sequence[Readable] | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Suggestion:
    """Which layers to steer, and how strongly: by effect on the judge's score at equal side effect.

    Candidates are windows of `widths` neighbours among `layers`. Each is calibrated to the KL
    budget, then all reply to the prompts in one batch. The best of many looks better than it is:
    `evaluate` it on other prompts. With `raises=False` the score should fall.

    >>> suggest(model, vector, prompts, judges.refusal, texts=prompts).table.status[0]
    'met'
    """
    numbers = vector.layers if layers is None else vector.at(layers).layers
    windows = neighbours(numbers, widths)
    if not windows:
        raise SteerlensError(f"widths={list(widths)} leave no window of the layers {numbers}")
    texts = neutral_texts()[:N_TEXTS] if texts is None else texts
    relative = vector.norms is not None
    plans = [Steering(vector, window, relative=relative) for window in windows]
    found = _calibrated(model, plans, kl_budget, texts, 0.02, **run)
    candidates = dict(zip(windows, found, strict=True))
    met = _require_met(candidates, kl_budget)
    cells = [None, *(one.steering for one in met.values())]
    replies = generate(
        model,
        list(prompts) * len(cells),
        stacked(cells, len(prompts)),
        max_new_tokens=max_new_tokens,
        **run,
    )
    table = _measured(candidates, met, judge, list(replies), seed).sort_values(
        "effect", ascending=not raises, na_position="last", kind="stable", ignore_index=True
    )
    best = candidates[table["layers"].iloc[0]].steering
    return Suggestion(best, table, kl_budget, judge.name)


_Candidates = dict[tuple[int, ...], Calibration]
"""By the layers that are steered."""


def _require_met(candidates: _Candidates, kl_budget: float) -> _Candidates:
    """The candidates that can spend the budget."""
    met = {window: one for window, one in candidates.items() if one.status == MET}
    if not met:
        raise SteerlensError(
            f"none of {len(candidates)} candidates meets the KL budget of {kl_budget:g} nats: "
            f"{', '.join(f'{window}: {one.status}' for window, one in candidates.items())}; "
            "give another budget"
        )
    return met


def _measured(
    candidates: _Candidates, met: _Candidates, judge: Judge, replies: Sequence[str], seed: int
) -> pd.DataFrame:
    """A row per candidate, from replies unsteered and then of each that met the budget."""
    scores = judge(replies).reshape(1 + len(met), -1)
    broken = degeneration(replies).reshape(1 + len(met), -1).mean(axis=1)
    cell_of = {window: cell for cell, window in enumerate(met, start=1)}
    rows = []
    for window, one in candidates.items():
        row = {"layers": window, "strength": one.strength, "kl_p95": one.kl, "status": one.status}
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
    first, row = (one for _, one in paired_effects(table, seed=seed).iterrows())
    kept = ["effect", "effect_low", "effect_high", "raised", "lowered"]
    return {"n": row.n, "unsteered": first["mean"], "steered": row["mean"], **row[kept].to_dict()}


def _calibrated(
    model: Model,
    plans: Sequence[Steering],
    kl_budget: float,
    texts: Sequence[Readable] | None,
    tolerance: float,
    **run: Unpack[RunOptions],
) -> list[Calibration]:
    """All plans in lockstep: the strengths that they try next are rows of one batch."""
    if not kl_budget > 0 or not tolerance > 0:
        raise SteerlensError(
            f"got kl_budget={kl_budget} and tolerance={tolerance}; expected both above 0"
        )
    rows = tokenize(model, neutral_texts() if texts is None else texts, chat=False)
    tried: list[dict[float, float]] = [{} for _ in plans]
    for _ in range(ROUNDS):
        wanted = [
            _next(_unit(plan), kls, kl_budget, tolerance)
            for plan, kls in zip(plans, tried, strict=True)
        ]
        if not any(wanted):
            break
        tries = [_at(p, s) for p, some in zip(plans, wanted, strict=True) for s in some]
        measured = iter(_percentiles(model, rows, tries, **run))
        for kls, some in zip(tried, wanted, strict=True):
            kls.update({strength: next(measured) for strength in some})
    return [_result(plan, kls, kl_budget) for plan, kls in zip(plans, tried, strict=True)]


def _next(unit: float, tried: dict[float, float], budget: float, tolerance: float) -> list[float]:
    """The strengths to try next; none if enough is known."""
    if not tried:
        return (unit * GRID).tolist()
    strengths, first = _first_exceeding(tried, budget)
    if 0 < first < len(strengths):
        low, high = strengths[first - 1 : first + 1]
        near = tried[low] >= (1 - tolerance) * budget or high / low < 1 + 1e-5
        return [] if near else _between(low, high, tried, (1 - tolerance / 2) * budget)
    if len(strengths) > len(GRID):
        return []  # the wider grid did not bracket it either
    return (unit * GRID * (256.0 if first else 1 / 256.0)).tolist()


def _between(low: float, high: float, tried: dict[float, float], target: float) -> list[float]:
    """The middle of a bracket, and where a power law through its ends meets the target."""
    middle = (low * high) ** 0.5
    if not (0 < tried[low] < target < tried[high] < np.inf):
        return [middle]
    part = np.log(target / tried[low]) / np.log(tried[high] / tried[low])
    return sorted({middle, float(low * (high / low) ** part)})


def _first_exceeding(tried: dict[float, float], budget: float) -> tuple[list[float], int]:
    strengths = sorted(tried)
    exceeding = (place for place, strength in enumerate(strengths) if tried[strength] > budget)
    return strengths, next(exceeding, len(strengths))


def _result(plan: Steering, tried: dict[float, float], budget: float) -> Calibration:
    strengths, first = _first_exceeding(tried, budget)
    found = strengths[max(first - 1, 0)]
    status = ALWAYS if first == 0 else NEVER if first == len(strengths) else MET
    steering, sign = _at(plan, found), _sign(plan)
    table = pd.DataFrame({
        "strength": [sign * strength for strength in strengths],
        "kl_p95": [tried[strength] for strength in strengths],
    })  # fmt: skip
    return Calibration(steering, sign * found, tried[found], budget, status, table)


def _percentiles(
    model: Model, rows: Sequence[TokenRow], plans: Sequence[Steering], **run: Unpack[RunOptions]
) -> list[float]:
    forced = teacher_forced(model, rows, [as_text(plan) for plan in plans], **run)
    return kl_percentiles(forced).tolist()


def _at(plan: Steering, strength: float) -> Steering:
    own = torch.as_tensor(plan.strength)
    return replace(plan, strength=_sign(plan) * strength if own.ndim == 0 else own * strength)


def _sign(plan: Steering) -> float:
    own = torch.as_tensor(plan.strength)
    return -1.0 if own.ndim == 0 and own < 0 else 1.0


def _unit(plan: Steering) -> float:
    """About the strength that adds one norm of the stream."""
    vector = plan.vector.at(plan.layers_steered)
    lengths = vector.directions.norm(dim=1)
    if plan.relative or vector.norms is None or not lengths.all():
        return 1.0
    return float((vector.norms / lengths).mean())
