"""Tidy tables that figures are drawn from: the columns they need, checking and thinning."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steerlens.errors import SteerlensError
from steerlens.layer_text import display_layers

MOST_VALUES = 60
"""Most distinct values on one axis; more are binned."""

MOST_CHOICES = 24
"""Most entries of a menu, or panels of a figure, that a reader can use."""


@dataclass(frozen=True)
class Contract:
    """The columns that one kind of table must have; further columns are ignored."""

    name: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    value: str
    """The column that the table is about."""
    optional: tuple[str, ...] = ()
    """Numbers that are shown if present."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All required columns, texts first."""
        return self.texts + self.numbers


SWEEP = Contract(
    "sweep summary",
    ("vector", "layers", "judge"),
    ("strength", "mean", "low", "high", "n"),
    "mean",
    ("degenerate",),
)
DOSE_RESPONSE = Contract(
    "dose-response table",
    ("arm", "judge"),
    ("strength", "mean", "low", "high", "n"),
    "mean",
    ("degenerate",),
)
PARETO = Contract(
    "table of effect and KL", ("name",), ("strength", "effect", "low", "high", "kl"), "effect"
)
SENTIMENT = Contract(
    "sentiment table", ("arm",), ("polarity", "low", "high", "bits_per_character", "n"), "polarity"
)
SATURATION = Contract(
    "saturation table", ("measure",), ("pairs", "value", "low", "high", "n"), "value"
)
RATES = Contract(
    "table of rates", ("part", "group", "measure"), ("value", "low", "high", "n"), "value"
)
DRIFT = Contract(
    "table of projections by turn", ("role", "token"), ("turn", "layer", "place", "projection"),
    "projection",
)  # fmt: skip
CONTRACTS = (SWEEP, DOSE_RESPONSE, PARETO, SENTIMENT, SATURATION, RATES)


def checked(table: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """The contract's columns, texts as strings and numbers as floats (infinite ones as NaN).

    Raises:
        SteerlensError: If a column is missing or not numeric, or no value is left to draw.

    >>> row = {"measure": "F1", "pairs": 4, "value": 1, "low": 0, "high": np.inf, "n": 9}
    >>> checked(pd.DataFrame([row]), SATURATION).high.tolist()
    [nan]
    """
    missing = shortfall(table, contract)
    if missing:
        raise SteerlensError(
            f"got a table with the columns {', '.join(map(str, table.columns)) or '(none)'}; a "
            f"{contract.name} needs {', '.join(contract.columns)}: add {', '.join(missing)}"
        )
    more = [column for column in contract.optional if column in table]
    kept = table[[*contract.columns, *more]].reset_index(drop=True)
    for column in contract.texts:
        kept[column] = [_text(value) for value in kept[column]]
    for column in (*contract.numbers, *more):
        try:
            numbers = pd.to_numeric(kept[column]).astype(float)
        except (ValueError, TypeError) as error:
            raise SteerlensError(
                f"got the column {column!r} of a {contract.name} with text; expected numbers: "
                f"{error}"
            ) from error
        kept[column] = numbers.replace([np.inf, -np.inf], np.nan)
    if not kept[contract.value].notna().any():
        raise SteerlensError(
            f"got a {contract.name} of {len(kept)} rows, none with a {contract.value}: there is "
            "nothing to draw; has the run finished?"
        )
    return kept


def shortfall(table: pd.DataFrame, contract: Contract) -> list[str]:
    """The required columns that a table lacks."""
    return [column for column in contract.columns if column not in table.columns]


def kind_of(table: pd.DataFrame) -> Contract | None:
    """The first kind of table whose columns are all present; None if there is none."""
    fitting = (kind for kind in CONTRACTS if set(kind.columns) <= set(table.columns))
    return next(fitting, None)


def merged(table: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """One row per key: values averaged by n, intervals spanned, n added.

    >>> arms = {"arm": "a", "mean": [0, 1], "low": [-1, 0], "high": [1, 2], "n": [1, 3]}
    >>> merged(pd.DataFrame(arms), ["arm"], "mean")[["mean", "low", "high"]].values.tolist()
    [[0.75, -1.0, 2.0]]
    """
    if not table.duplicated(list(keys)).any():
        return table
    n = table["n"] if "n" in table else pd.Series(1.0, table.index)
    weight = n.where(table[value].notna(), 0.0).fillna(0.0)
    weighed = table.assign(_weight=weight, _sum=(table[value] * weight).fillna(0.0))
    worst = {"degenerate": ("degenerate", "max")} if "degenerate" in table else {}
    rows = weighed.groupby(list(keys), sort=False).agg(
        _sum=("_sum", "sum"), _weight=("_weight", "sum"), low=("low", "min"), high=("high", "max"),
        **worst,
    )  # fmt: skip
    rows[value] = rows["_sum"] / rows["_weight"].where(rows["_weight"] > 0)
    rows["n"] = rows["_weight"]
    return rows.drop(columns=["_sum", "_weight"]).reset_index()


def binned(table: pd.DataFrame, column: str, most: int = MOST_VALUES) -> pd.DataFrame:
    """The table with a column of more than `most` values rounded to the middles of equal bins."""
    numbers = table[column]
    if numbers.nunique() <= most:
        return table
    low, high = numbers.min(), numbers.max()
    step = (high - low) / most
    index = np.minimum(np.floor((numbers - low) / step), most - 1)
    return table.assign(**{column: low + (index + 0.5) * step})


def require_few(count: int, what: str, advice: str) -> None:
    """Raises if there are more than a reader can tell apart."""
    if count > MOST_CHOICES:
        raise SteerlensError(f"got {count} {what}; expected at most {MOST_CHOICES}: {advice}")


def notes_on(before: pd.DataFrame, after: pd.DataFrame, contract: Contract) -> tuple[str, ...]:
    """For the caption: n, the number of empty values, and how many rows were merged."""
    empty = int(after[contract.value].isna().sum())
    merging = f"{len(before):,} rows merged into {len(after):,}, intervals spanned"
    return (
        f"n = {_span(after['n'])} each" if "n" in after and after["n"].notna().any() else "",
        f"{empty} of {len(after)} values empty (NaN)" if empty else "",
        merging if len(after) < len(before) else "",
    )


def natural(text: str) -> tuple[Any, ...]:
    """A sort key that puts "2–3" before "10–11".

    >>> sorted(["10–11", "2–3"], key=natural)
    ['2–3', '10–11']
    """
    return tuple(
        (0, int(piece), "") if piece.isdecimal() else (1, 0, piece)
        for piece in re.split(r"(\d+)", text)
        if piece
    )


def _text(value: object) -> str:
    """Lists of layers as "2–3" or "1, 4–6"."""
    if not isinstance(value, list | tuple | np.ndarray):
        return str(value)
    return display_layers([int(layer) for layer in value])


def _span(numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
