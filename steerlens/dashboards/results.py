"""Results → the tidy tables that figures are drawn from, one function per figure.

Tidy tables are returned as they are: `tables` lists the columns that each figure needs.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from steerlens.dashboards.tables import PARETO, RATES, SATURATION, SWEEP, shortfall
from steerlens.errors import SteerlensError
from steerlens.evaluation.calibration import Calibration
from steerlens.evaluation.effects import NEGATIVE, STEERED, UNSTEERED
from steerlens.evaluation.evaluation import Evaluation
from steerlens.evaluation.suggestion import Suggestion
from steerlens.evaluation.sweep_store import Sweep
from steerlens.judges.fluency import TOO_MANY_DEGENERATE, degenerate

DEGENERATE = "degenerate"
"""The optional column of shares of replies that are empty or repeat themselves."""
Calibrations: TypeAlias = Calibration | Mapping[int, Calibration]
"""One calibration, or one per layer."""


def sweep_cells(result: Sweep | pd.DataFrame) -> pd.DataFrame:
    """For `layer_strength`: the cells of a sweep, or of its `summary()`."""
    table = result
    if isinstance(result, Sweep):
        table = _with_degenerate(result.summary(), result)
    return _positions_named(_require_table(table, "layer_strength", "a Sweep or its summary()"))


def doses(result: Evaluation | Sweep | pd.DataFrame) -> pd.DataFrame:
    """For `dose_response`: an evaluation or its `effects`, a sweep or its `summary()`.

    Evaluations give paired changes from unsteered ("change in …"), both signs as one line through
    0; sweeps give mean scores.
    """
    expected = "an Evaluation or its effects, a Sweep or its summary(), or a table"
    if isinstance(result, Evaluation):
        return _changes(result.effects, _degenerate_arms(result))
    table = sweep_cells(result) if isinstance(result, Sweep) else result
    table = _require_table(table, "dose_response", expected)
    if {"arm", "effect", "effect_low"} <= set(table.columns):
        return _changes(table, None)
    return _sweep_arms(table) if _fits(table, SWEEP) and "arm" not in table else table


def trade_offs(result: Evaluation | Suggestion | Sweep | pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """For `pareto`: the table, and the meaning of its column `kl` as an axis title.

    An evaluation has the KL of each arm on neutral text, a suggestion that of each candidate; a
    sweep has no neutral text, so the share of degenerate replies replaces KL.
    """
    nats = "KL to the unsteered model (nats per token)"
    if isinstance(result, Evaluation):
        return _evaluated(result), nats
    if isinstance(result, Suggestion):
        named = {"kl_p95": "kl", "effect_low": "low", "effect_high": "high"}
        table = result.table.rename(columns=named)
        names = [f"layers {', '.join(map(str, layers))}" for layers in table["layers"]]
        return table.assign(name=names), "KL to the unsteered model (95th percentile, nats)"
    if isinstance(result, Sweep):
        return _swept_effects(result), "share of degenerate replies"
    expected = "an Evaluation, a Suggestion, a Sweep or a table"
    table = _require_table(result, "pareto", expected)
    if not _fits(table, PARETO) and {"arm", "effect_low"} <= set(table.columns):
        raise SteerlensError(
            "got the effects of an evaluation, which hold no side effects; give pareto the "
            "evaluation itself"
        )
    return table, nats


def shares(result: Evaluation | pd.DataFrame) -> pd.DataFrame:
    """For `rates`: an evaluation with judges of 0 or 1, a study's results, or CAST's table."""
    if isinstance(result, Evaluation):
        return _binary_rates(result)
    table = _require_table(result, "rates", "an Evaluation, or a table of rates")
    if not _fits(table, RATES) and {"steering", "group", "refused"} <= set(table.columns):
        named = table.rename(columns={"steering": "part", "refused": "value"})
        return named.assign(measure="refused")
    return table


def growth(result: pd.DataFrame) -> pd.DataFrame:
    """For `saturation`: its table, or the curve of a CAST table with one row per measure."""
    table = _require_table(result, "saturation", "a table, such as the saturation of a CastTable")
    if _fits(table, SATURATION) or not {"pairs", "f1", "f1_low", "f1_high"} <= set(table.columns):
        return table
    ends = {"value": "f1", "low": "f1_low", "high": "f1_high"}
    measured = {"F1": ends} | {
        name.replace("_", " "): dict.fromkeys(ends, name)
        for name in table.columns
        if name.endswith("_refused")
    }
    parts = [
        pd.DataFrame({"pairs": table["pairs"], "measure": measure, "n": 1}).assign(
            **{column: table[name] for column, name in columns.items()}
        )
        for measure, columns in measured.items()
    ]
    return pd.concat(parts, ignore_index=True)


def budgets(result: Calibrations) -> dict[str, Calibration]:
    """For `calibration`: calibrations by their name in the legend."""
    if isinstance(result, Calibration):
        return {"KL of the steering": result}
    if isinstance(result, Mapping) and result:
        return {f"layer {layer}": each for layer, each in result.items()}
    raise SteerlensError(
        f"got {type(result).__name__}; expected the result of calibrate_strength or "
        "calibrate_layers"
    )


def degenerate_note(table: pd.DataFrame, names: Callable[[Any], str]) -> str:
    """Where more than a tenth of the replies are degenerate, and what to do; empty if nowhere."""
    if DEGENERATE not in table:
        return ""
    broken = table[table[DEGENERATE] > TOO_MANY_DEGENERATE].sort_values(
        DEGENERATE, ascending=False, kind="stable"
    )
    cells = list(
        dict.fromkeys(f"{names(row)} ({row[DEGENERATE]:.0%})" for _, row in broken.iterrows())
    )
    if not cells:
        return ""
    more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
    return f"degenerate replies at {', '.join(cells[:3])}{more}: steer less, or fewer layers"


def _require_table(result: Any, figure: str, expected: str) -> pd.DataFrame:
    if isinstance(result, pd.DataFrame):
        return result
    raise SteerlensError(f"got {type(result).__name__} for {figure}; expected {expected}")


def _fits(table: pd.DataFrame, contract: Any) -> bool:
    return not shortfall(table, contract)


def _positions_named(table: pd.DataFrame) -> pd.DataFrame:
    """Several positions become several vectors, so that they are not averaged silently."""
    if "positions" not in table or "vector" not in table:
        return table
    steered = table["vector"] != UNSTEERED
    if table.loc[steered, "positions"].nunique() < 2:
        return table
    named = table["vector"] + ", " + table["positions"].astype(str)
    return table.assign(vector=named.where(steered, table["vector"]))


def _with_degenerate(summary: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    cell = ["vector", "layers", "strength", "positions"]
    return summary.merge(sweep.degenerate(), on=cell, how="left")


def _sweep_arms(table: pd.DataFrame) -> pd.DataFrame:
    """One arm per vector and layers, through the unsteered score at strength 0."""
    table = _positions_named(table)
    unsteered = table[table["vector"] == UNSTEERED]
    steered = table[table["vector"] != UNSTEERED]
    names = [
        f"{vector}, layers {layers}"
        for vector, layers in zip(steered["vector"], steered["layers"], strict=True)
    ]
    arms = steered.assign(arm=names)
    zeros = [unsteered.assign(arm=arm, strength=0.0) for arm in dict.fromkeys(names)]
    return pd.concat([unsteered.assign(arm=UNSTEERED), arms, *zeros], ignore_index=True)


def _changes(effects: pd.DataFrame, broken: pd.DataFrame | None) -> pd.DataFrame:
    """Changes from unsteered by arm and strength; both signs of the vector are one arm."""
    columns = {"effect": "mean", "effect_low": "low", "effect_high": "high"}
    table = effects.drop(columns=["mean", "low", "high"], errors="ignore").rename(columns=columns)
    is_unsteered = table["arm"] == UNSTEERED
    numbers = ["mean", "low", "high"]
    table.loc[is_unsteered, numbers] = table.loc[is_unsteered, numbers].fillna(0.0)
    if broken is not None:
        table = table.merge(broken, on=["arm", "strength"], how="left")
    table["arm"] = table["arm"].replace(NEGATIVE, STEERED)
    zero = table[is_unsteered.to_numpy()].assign(arm=STEERED)
    arms = pd.concat([table, zero], ignore_index=True)
    return arms.assign(judge="change in " + arms["judge"].astype(str))


def _degenerate_arms(evaluation: Evaluation) -> pd.DataFrame:
    replies = evaluation.replies
    broken = replies.assign(**{DEGENERATE: replies["reply"].map(degenerate).astype(float)})
    return broken.groupby(["arm", "strength"], sort=False)[DEGENERATE].mean().reset_index()


def _evaluated(evaluation: Evaluation) -> pd.DataFrame:
    """Each arm's effect, positive in the intended direction, and its KL on neutral text."""
    side = evaluation.side_effects
    kl = side.loc[side["measure"] == "kl_mean", ["arm", "strength", "value"]]
    if kl.empty:
        raise SteerlensError(
            "got an evaluation without side effects on text; pareto expected its KL: evaluate with "
            "texts, or draw dose_response"
        )
    effects = evaluation.effects[evaluation.effects["judge"] == evaluation.judges[0]]
    table = effects.merge(kl.rename(columns={"value": "kl"}), on=["arm", "strength"], how="left")
    sign = 1 if evaluation.settings["raises"] else -1
    ends = np.sort(sign * table[["effect_low", "effect_high"]].to_numpy(dtype=float), axis=1)
    changed = table.assign(
        name=table["arm"], effect=sign * table["effect"], low=ends[:, 0], high=ends[:, 1]
    )
    return changed[changed["arm"] != UNSTEERED].reset_index(drop=True)


def _swept_effects(sweep: Sweep) -> pd.DataFrame:
    """Each cell's paired change of the first judge's score, and its share of degenerate replies."""
    judges = list(sweep.plan["judges"])
    if not judges:
        raise SteerlensError("got a sweep without judges; pareto expected the scores of one")
    summary = sweep_cells(sweep)
    steered = summary[(summary["judge"] == judges[0]) & (summary["vector"] != UNSTEERED)]
    names = steered["vector"] + ", layers " + steered["layers"]
    columns = {"effect_low": "low", "effect_high": "high", DEGENERATE: "kl"}
    table = steered.drop(columns=["low", "high"]).rename(columns=columns).assign(name=names)
    return table[["name", "strength", "effect", "low", "high", "kl"]].reset_index(drop=True)


def _binary_rates(evaluation: Evaluation) -> pd.DataFrame:
    """Each arm's rate at the evaluation's own strength, by the judges that score 0 or 1."""
    main, effects = evaluation.settings["strength"], evaluation.effects
    known = evaluation.table.dropna(subset=["score"])
    binary = [
        judge
        for judge, scores in known.groupby("judge", sort=False)["score"]
        if scores.isin((0, 1)).all()
    ]
    if not binary:
        raise SteerlensError(
            f"got an evaluation by {', '.join(evaluation.judges)}; rates expected a judge that "
            "scores 1 or 0: draw dose_response"
        )
    is_main = effects["strength"].isin([0.0, main, -main]) & effects["judge"].isin(binary)
    table = effects[is_main].rename(
        columns={"mean": "value", "mean_low": "low", "mean_high": "high"}
    )
    return table.assign(part=table["arm"], group=f"strength {main:g}", measure=table["judge"])
