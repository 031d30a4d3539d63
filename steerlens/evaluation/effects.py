"""Scores by prompt and arm → paired effects, slopes over strength and their means."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from steerlens.intervals import detectable, means, paired_rates, rate

UNSTEERED, STEERED, NEGATIVE = ARMS = ("unsteered", "steered", "negative")
ASKED, ASKED_AND_STEERED = "asked: ", ", and steered"
"""What the name of an arm begins with whose prompts ask for the effect, and ends with if it is
steered as well."""


def is_control(arm: str) -> bool:
    """Whether an arm is another vector, to compare the steering with.

    >>> is_control("random 1"), is_control("steered"), is_control("asked: system")
    (True, False, False)
    """
    return arm not in ARMS and not arm.startswith(ASKED)


def paired_effects(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per judge × arm × strength: the mean score, and its paired change from unsteered.

    The columns are `mean` and `effect` with `_low` and `_high`; `n` prompts; `raised` and
    `lowered`, the shares of prompts whose score went up and down, with Wilson intervals;
    `detectable`, the smallest effect that n prompts would show. Scores that are all 0 or 1 get
    Wilson and Newcombe intervals, others bootstrap intervals over prompts.

    Args:
        table: Columns judge, prompt, arm, strength, score: each judge × prompt × arm × strength
            once, the arm "unsteered" first. NaN scores are left out.
        seed: Of the bootstrap.

    >>> arms = {"arm": ["unsteered", "unsteered", "steered", "steered"], "strength": [0, 0, 1, 1]}
    >>> scores = {"judge": "joy", "prompt": [0, 1, 0, 1], "score": [0.1, 0.3, 0.6, 0.8]}
    >>> paired_effects(pd.DataFrame({**scores, **arms}), seed=0).effect.round(3).tolist()
    [nan, 0.5]
    """
    by_judge = [_effects_of(judge, _scores(table, judge), seed) for judge in table.judge.unique()]
    return pd.concat(by_judge, ignore_index=True)


def asks_only(arm: str) -> bool:
    """Whether an arm's prompts ask for the effect, and nothing is steered.

    >>> asks_only("asked: system"), asks_only("asked: system, and steered")
    (True, False)
    """
    return arm.startswith(ASKED) and not arm.endswith(ASKED_AND_STEERED)


def ahead_of_asking(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per judge × asking × strength: the steered score minus that of asking alone.

    The columns are `n`, and `ahead` with `_low` and `_high`; intervals as in `paired_effects`.

    Args:
        table: As for `paired_effects`, with arms whose names begin with "asked: ".
        seed: Of the bootstrap.

    >>> arms = {"arm": ["asked: plainly", "steered"], "strength": [0, 1], "score": [0.2, 0.5]}
    >>> ahead_of_asking(pd.DataFrame({"judge": "joy", "prompt": 0, **arms}), seed=0).ahead.tolist()
    [0.3]
    """
    found = []
    for judge in table.judge.unique():
        scores = _scores(table, judge)
        steered = [arm for arm in scores if arm[0] == STEERED]
        for asking in (arm for arm in scores if asks_only(arm[0])):
            effects = _effects_of(judge, scores[[asking, *steered]], seed).iloc[1:]
            found.append(effects.assign(asking=asking[0].removeprefix(ASKED)))
    columns = ["judge", "asking", "strength", "n", "effect", "effect_low", "effect_high"]
    rows = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    return rows[columns].rename(columns=lambda name: name.replace("effect", "ahead"))


def prompt_slopes(table: pd.DataFrame) -> pd.DataFrame:
    """One row per judge × prompt: least-squares `slope` of score over strength, Spearman's `rho`.

    The doses are the arms unsteered, steered and negative (Tan et al. 2024, arXiv 2407.12404). A
    score that never changes has a slope and rho of 0; a prompt that lacks a score has no row.

    Args:
        table: As for `paired_effects`.

    >>> arms = {"arm": ["unsteered", "steered", "negative"], "strength": [0, 1, -1]}
    >>> table = pd.DataFrame({"judge": "joy", "prompt": 0, "score": [0.5, 0.7, 0.3], **arms})
    >>> prompt_slopes(table).round(3).to_dict("records")
    [{'judge': 'joy', 'prompt': 0, 'slope': 0.2, 'rho': 1.0}]
    """
    by_judge = []
    for judge in table.judge.unique():
        scores = _scores(table, judge)
        dosed = scores.loc[:, [arm in ARMS for arm, _ in scores]].dropna()
        doses = np.array([strength for _, strength in dosed], dtype=float)
        values = dosed.to_numpy(dtype=float)
        slopes, rhos = _slopes(doses, values), _correlations(doses, values)
        columns = {"judge": judge, "prompt": dosed.index, "slope": slopes, "rho": rhos}
        by_judge.append(pd.DataFrame(columns))
    return pd.concat(by_judge, ignore_index=True)


def mean_doses(slopes: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per judge × measure: mean `slope` and `rho` over prompts, with intervals.

    The mean rho measures how monotone the dose-response is: Page's L (1963) scaled to −1 to 1.

    Args:
        slopes: The table of `prompt_slopes`.
        seed: Of the bootstrap over prompts.

    >>> slopes = pd.DataFrame({"judge": "joy", "slope": [0.1, 0.3], "rho": [1.0, 1.0]})
    >>> mean_doses(slopes, seed=0).value.tolist()
    [0.2, 1.0]
    """
    rows = []
    for judge, prompts in slopes.groupby("judge", sort=False):
        measured = means(prompts[["slope", "rho"]].to_numpy(), seed=seed)
        for measure, value in zip(("slope", "rho"), measured, strict=True):
            rows.append({"judge": judge, "measure": measure, **asdict(value), "n": len(prompts)})
    return pd.DataFrame(rows, columns=["judge", "measure", "value", "low", "high", "n"])


def _scores(table: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Prompt × (arm, strength), in the order of the table: unsteered first."""
    rows = table[table.judge == judge]
    order = list(dict.fromkeys(zip(rows.arm, rows.strength, strict=True)))
    return rows.pivot(index="prompt", columns=["arm", "strength"], values="score")[order]


def _effects_of(judge: str, scores: pd.DataFrame, seed: int) -> pd.DataFrame:
    values = scores.to_numpy(dtype=float)
    known = ~np.isnan(values)
    changes = values - values[:, :1]  # NaN where either score is
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
            row["detectable"] = detectable(moved, binary=bool(binary))
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
    """Spearman's ρ of each prompt's scores with the doses; 0 if the scores never change."""
    ranks = rankdata(scores, axis=1) - (len(doses) + 1) / 2
    order = rankdata(doses) - (len(doses) + 1) / 2
    lengths = np.sqrt((ranks**2).sum(axis=1) * (order @ order))
    return np.divide(ranks @ order, lengths, out=np.zeros(len(scores)), where=lengths > 0)
