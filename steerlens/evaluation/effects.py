"""Scores of every prompt under every arm → paired effects, slopes and doses, with intervals."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from steerlens.intervals import means, paired_rates, rate

UNSTEERED, STEERED, NEGATIVE = ARMS = ("unsteered", "steered", "negative")
"""Every other arm is a control."""


def paired_effects(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per judge × arm × strength: its mean score, and the paired change from unsteered.

    `mean`, `effect` with `_low` and `_high`; `n` prompts; `raised` and `lowered`, the shares of
    prompts whose score went up and down, with Wilson's intervals. Scores of 0 and 1 get Wilson's
    and Newcombe's intervals, others bootstrap intervals over prompts.
    """
    found = [_effects_of(judge, _scores(table, judge), seed) for judge in table.judge.unique()]
    return pd.concat(found, ignore_index=True)


def prompt_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """One row per judge × prompt: `slope` of score over strength, and Spearman's `rho`.

    Over −strength, 0 and strength, by least squares (Tan et al. 2024, arXiv 2407.12404). A score
    that never changes has a slope and rho of 0; a prompt that lacks a score has no row.
    """
    found = []
    for judge in table.judge.unique():
        scores = _scores(table, judge)
        own = scores.loc[:, [arm in (UNSTEERED, STEERED, NEGATIVE) for arm, _ in scores]].dropna()
        doses = np.array([strength for _, strength in own], dtype=float)
        values = own.to_numpy(dtype=float)
        slopes, rhos = _slopes(doses, values), _correlations(doses, values)
        found.append(
            pd.DataFrame({"judge": judge, "prompt": own.index, "slope": slopes, "rho": rhos})
        )
    return pd.concat(found, ignore_index=True)


def mean_doses(slopes: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per judge × measure: mean `slope` and `rho` over prompts, with intervals.

    The mean rho says how monotone the dose is: it is Page's L (1963) on a scale of −1 to 1.
    """
    rows = []
    for judge, own in slopes.groupby("judge", sort=False):
        measured = means(own[["slope", "rho"]].to_numpy(), seed=seed)
        for measure, value in zip(("slope", "rho"), measured, strict=True):
            rows.append({"judge": judge, "measure": measure, **asdict(value), "n": len(own)})
    return pd.DataFrame(rows, columns=["judge", "measure", "value", "low", "high", "n"])


def _scores(table: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Prompt × (arm, strength), in the order in which they were run: unsteered first."""
    own = table[table.judge == judge]
    order = list(dict.fromkeys(zip(own.arm, own.strength, strict=True)))
    return own.pivot(index="prompt", columns=["arm", "strength"], values="score")[order]


def _effects_of(judge: str, scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    values = scores.to_numpy(dtype=float)
    known = ~np.isnan(values)
    changes = values - values[:, :1]  # NaN where either is
    averages, effects = means(values, seed=seed), means(changes, seed=seed)
    binary = np.isin(values[known], (0, 1)).all()
    rows = []
    for column, (arm, strength) in enumerate(scores):
        both = ~np.isnan(changes[:, column])
        n, moved = int(both.sum()), changes[both, column]
        if binary:
            before, after = values[both, 0] == 1, values[both, column] == 1
            averages[column] = rate(int(values[both, column].sum()), n)
            effects[column] = paired_rates(before, after)
        row: dict[str, Any] = {"judge": judge, "arm": arm, "strength": strength, "n": n}
        row |= averages[column].columns("mean")
        if arm != UNSTEERED:
            row |= effects[column].columns("effect")
            row |= rate(int((moved > 0).sum()), n).columns("raised")
            row |= rate(int((moved < 0).sum()), n).columns("lowered")
        rows.append(row)
    return pd.DataFrame(rows)


def _slopes(
    doses: Float[np.ndarray, " dose"], scores: Float[np.ndarray, "prompt dose"]
) -> Float[np.ndarray, " prompt"]:
    centred = doses - doses.mean()
    return (scores - scores.mean(axis=1, keepdims=True)) @ centred / (centred @ centred)


def _correlations(
    doses: Float[np.ndarray, " dose"], scores: Float[np.ndarray, "prompt dose"]
) -> Float[np.ndarray, " prompt"]:
    """Spearman's ρ of each row; 0 where nothing changes."""
    ranks = rankdata(scores, axis=1) - (len(doses) + 1) / 2
    order = rankdata(doses) - (len(doses) + 1) / 2
    lengths = np.sqrt((ranks**2).sum(axis=1) * (order @ order))
    return np.divide(ranks @ order, lengths, out=np.zeros(len(scores)), where=lengths > 0)
