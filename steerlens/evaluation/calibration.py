"""The strength that spends a side-effect budget; the layers with the most effect within it."""

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
from steerlens.judges.judging import Judge, require_judges
from steerlens.layer_text import as_layers
from steerlens.models.engine import RunOptions
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable, TokenRow, as_prompts, tokenize
from steerlens.steering.batch_plans import stacked
from steerlens.steering.generation import generate
from steerlens.steering.steering import Steering, require_steering
from steerlens.vectors.vector import SteeringVector

GRID = 2.0 ** np.arange(-6, 2)
"""First strengths tried, in norms of the residual stream; if none brackets the budget, the grid
is moved by a factor of 256."""
ROUNDS = 16
"""Most batches: two for the grid, then a bracket of a factor of 2 halved to under 0.01 %."""
N_TEXTS = 24
"""Neutral texts that `suggest` calibrates on, unless others are given."""
MET, NEVER, ALWAYS = "met", "never exceeded", "always exceeded"


@dataclass(frozen=True, eq=False)
class Calibration:
    """A steering at the greatest strength within a KL budget, and the strengths tried."""

    steering: Steering
    """At the strength that was found."""
    strength: float
    """The steering coefficient; for strengths by layer, the factor they are multiplied by."""
    kl: float
    """95th percentile of KL(unsteered ‖ steered) per token at this strength, in nats."""
    kl_budget: float
    status: str
    """ "met"; or "never exceeded" or "always exceeded": no strength tried brackets the budget."""
    tried: pd.DataFrame
    """Columns `strength` and `kl_p95`, weakest first."""

    def __repr__(self) -> str:
        return (
            f"Calibration(strength {self.strength:.4g}: KL p95 {self.kl:.3g} nats per token, "
            f"budget {self.kl_budget:g} {self.status})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the strength found, and every strength tried."""
        rows = self.tried.itertuples(index=False, name=None)
        return card(
            f"Calibration: strength {self.strength:.4g}",
            {
                "KL, 95th percentile": f"{self.kl:.3g} nats per token",
                "budget": f"{self.kl_budget:g} {self.status}",
                "steering": repr(self.steering),
            },
            Rows(list(self.tried.columns), rows, len(self.tried), "All strengths tried", True),
        )


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

    KL(unsteered ‖ steered) is teacher-forced on neutral text. It need not grow with strength: the
    result is the lower side of the first crossing that a grid of factors of 2 shows.

    Args:
        steering: The sign of its strength is kept; strengths by layer keep their ratios.
        kl_budget: In nats per token.
        texts: Neutral texts (read without chat template); default: those of steerlens.
        tolerance: How far below the budget the result may lie, as a share of it.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    Raises:
        SteerlensError: If no strength tried reaches the budget, or all exceed it.

    >>> calibrate_strength(model, steering, kl_budget=1.0, texts=prompts).status
    'met'
    """
    require_steering(steering)
    [calibration] = _calibrated(model, [steering], kl_budget, texts, tolerance, **run)
    status, tried = calibration.status, calibration.tried
    if status != MET:
        span = f"{tried.strength.iloc[0]:.3g} to {tried.strength.iloc[-1]:.3g}"
        least, most = tried.kl_p95.min(), tried.kl_p95.max()
        advice = "give a larger budget" if status == ALWAYS else "give a smaller budget"
        if not most:
            advice = "the steering changes nothing in these texts: does its condition fire on them?"
        raise SteerlensError(
            f"got a KL budget of {kl_budget:g} nats, which is {status}: {steering} has a KL p95 of "
            f"{least:.3g} to {most:.3g} at strengths {span}; {advice}"
        )
    return calibration


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
    """`calibrate_strength` for each layer steered alone, all layers in one batch.

    A layer that cannot meet the budget raises nothing: its `status` says so.

    Args:
        steering: With one number as strength; its sign is kept.
        kl_budget: 95th percentile of KL per token, in nats.
        texts: Neutral texts (read without chat template); default: those of steerlens.
        layers: Default: those of the steering.
        tolerance: How far below the budget a result may lie, as a share of it.
        run: `batch_size`, `progress`, `engine`, as in `RunOptions`.

    >>> by_layer = calibrate_layers(model, steering, texts=prompts, layers=[2, 3])
    >>> [by_layer[layer].status for layer in (2, 3)]
    ['met', 'met']
    """
    require_steering(steering)
    numbers = steering.layers_steered if layers is None else tuple(as_layers(layers))
    if torch.as_tensor(steering.strength).ndim:
        raise SteerlensError(
            f"got {steering} with strengths by layer; expected one number to calibrate each layer"
        )
    each = [replace(steering, layers=[layer]) for layer in numbers]
    calibrations = _calibrated(model, each, kl_budget, texts, tolerance, **run)
    return dict(zip(numbers, calibrations, strict=True))


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
    reply to the prompts in one batch. The best of many candidates looks better than it is:
    `evaluate` it on other prompts.

    Args:
        prompts: Texts, chats, passages or token ids, to be replied to.
        judge: Its score is what the steering should raise.
        kl_budget: 95th percentile of KL(unsteered ‖ steered) per token, in nats.
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
    texts = neutral_texts()[:N_TEXTS] if texts is None else texts
    relative = vector.norms is not None
    each = [Steering(vector, window, relative=relative) for window in windows]
    calibrations = _calibrated(model, each, kl_budget, texts, 0.02, **run)
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
    table = _measured(candidates, met, judge, list(replies), seed).sort_values(
        "effect", ascending=not raises, na_position="last", kind="stable", ignore_index=True
    )
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


def _calibrated(
    model: Model,
    steerings: Sequence[Steering],
    kl_budget: float,
    texts: Sequence[Readable] | None,
    tolerance: float,
    **run: Unpack[RunOptions],
) -> list[Calibration]:
    """All steerings in lockstep: the strengths they try next are rows of one batch."""
    if not kl_budget > 0 or not tolerance > 0:
        raise SteerlensError(
            f"got kl_budget={kl_budget} and tolerance={tolerance}; expected both above 0"
        )
    rows = tokenize(model, neutral_texts() if texts is None else texts, chat=False)
    tried: list[dict[float, float]] = [{} for _ in steerings]
    for _ in range(ROUNDS):
        wanted = [
            _next_strengths(_unit_strength(steering), kls, kl_budget, tolerance)
            for steering, kls in zip(steerings, tried, strict=True)
        ]
        if not any(wanted):
            break
        trials = [
            _with_strength(steering, strength)
            for steering, strengths in zip(steerings, wanted, strict=True)
            for strength in strengths
        ]
        measured = iter(_percentiles(model, rows, trials, **run))
        for kls, strengths in zip(tried, wanted, strict=True):
            kls.update({strength: next(measured) for strength in strengths})
    return [_result(one, kls, kl_budget) for one, kls in zip(steerings, tried, strict=True)]


def _next_strengths(
    unit: float, tried: dict[float, float], budget: float, tolerance: float
) -> list[float]:
    """The strengths to try next; none once the budget is bracketed closely, or never will be."""
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
    """The geometric middle of a bracket, and where a power law through its ends is the target."""
    middle = (low * high) ** 0.5
    if not (0 < tried[low] < target < tried[high] < np.inf):
        return [middle]
    fraction = np.log(target / tried[low]) / np.log(tried[high] / tried[low])
    return sorted({middle, float(low * (high / low) ** fraction)})


def _first_exceeding(tried: dict[float, float], budget: float) -> tuple[list[float], int]:
    strengths = sorted(tried)
    exceeding = (index for index, strength in enumerate(strengths) if tried[strength] > budget)
    return strengths, next(exceeding, len(strengths))


def _result(steering: Steering, tried: dict[float, float], budget: float) -> Calibration:
    strengths, first = _first_exceeding(tried, budget)
    greatest = strengths[max(first - 1, 0)]
    status = ALWAYS if first == 0 else NEVER if first == len(strengths) else MET
    calibrated, sign = _with_strength(steering, greatest), _sign(steering)
    table = pd.DataFrame({
        "strength": [sign * strength for strength in strengths],
        "kl_p95": [tried[strength] for strength in strengths],
    })  # fmt: skip
    return Calibration(calibrated, sign * greatest, tried[greatest], budget, status, table)


def _percentiles(
    model: Model, rows: Sequence[TokenRow], steerings: Sequence[Steering], **run: Unpack[RunOptions]
) -> list[float]:
    forced = teacher_forced(model, rows, [as_text(steering) for steering in steerings], **run)
    return kl_percentiles(forced).tolist()


def _with_strength(steering: Steering, strength: float) -> Steering:
    """Keeps the sign of one number, and the ratios of strengths by layer."""
    given = torch.as_tensor(steering.strength)
    scaled = _sign(steering) * strength if given.ndim == 0 else given * strength
    return replace(steering, strength=scaled)


def _sign(steering: Steering) -> float:
    given = torch.as_tensor(steering.strength)
    return -1.0 if given.ndim == 0 and given < 0 else 1.0


def _unit_strength(steering: Steering) -> float:
    """The strength that adds about one mean activation norm."""
    vector = steering.vector.at(steering.layers_steered)
    lengths = vector.directions.norm(dim=1)
    if steering.relative or vector.norms is None or not lengths.all():
        return 1.0
    return float((vector.norms / lengths).mean())
