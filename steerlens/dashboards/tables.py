"""Tidy tables that figures are drawn from: which columns they need, checked and made small."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steerlens.errors import SteerlensError
from steerlens.layer_text import display_layers

MOST_VALUES = 60
"""Distinct values on one axis, beyond which neighbours are taken together."""

MOST_CHOICES = 24
"""Entries of a menu, and panels of a figure, that a reader can still use."""


@dataclass(frozen=True)
class Contract:
    """The columns of one kind of table; more columns may stand beside them."""

    name: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    value: str
    """The number that the table is about."""
    optional: tuple[str, ...] = ()
    """Numbers that are shown if they are there."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are needed, texts first."""
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
CONTRACTS = (SWEEP, DOSE_RESPONSE, PARETO, SENTIMENT, SATURATION, RATES)


def checked(table: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """The contract's columns, texts as text and numbers as floats; infinite ones become NaN.

    Raises if columns are missing, hold no numbers, or there is nothing to draw.
    """
    missing = shortfall(table, contract)
    if missing:
        raise SteerlensError(
            f"a {contract.name} needs the columns {', '.join(contract.columns)}; of these "
            f"{', '.join(missing)} are missing from {', '.join(map(str, table.columns)) or 'none'}"
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
                f"the column {column!r} of a {contract.name} must hold numbers: {error}"
            ) from error
        kept[column] = numbers.replace([np.inf, -np.inf], np.nan)
    if not kept[contract.value].notna().any():
        raise SteerlensError(
            f"the {contract.name} has {len(kept)} rows and none with a {contract.value}; "
            "there is nothing to draw: has the run finished?"
        )
    return kept


def shortfall(table: pd.DataFrame, contract: Contract) -> list[str]:
    """The columns that a table lacks."""
    return [column for column in contract.columns if column not in table.columns]


def kind_of(table: pd.DataFrame) -> Contract | None:
    """The kind of table that these columns make."""
    fitting = (kind for kind in CONTRACTS if set(kind.columns) <= set(table.columns))
    return next(fitting, None)


def merged(table: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """One row for each key: values averaged by n, intervals spanned, n added up."""
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
    """The table with a crowded column rounded to the middles of `most` equal steps."""
    numbers = table[column]
    if numbers.nunique() <= most:
        return table
    low, high = numbers.min(), numbers.max()
    step = (high - low) / most
    place = np.minimum(np.floor((numbers - low) / step), most - 1)
    return table.assign(**{column: low + (place + 0.5) * step})


def require_few(count: int, what: str, advice: str) -> None:
    """Refuse what no reader could tell apart."""
    if count > MOST_CHOICES:
        raise SteerlensError(f"{count} {what} came, more than {MOST_CHOICES}; {advice}")


def notes_on(before: pd.DataFrame, after: pd.DataFrame, contract: Contract) -> tuple[str, ...]:
    """For the caption: n, what is empty, and what was taken together."""
    empty = int(after[contract.value].isna().sum())
    together = f"{len(before):,} rows taken together as {len(after):,}, intervals spanned"
    return (
        f"n = {_span(after['n'])} each" if "n" in after and after["n"].notna().any() else "",
        f"{empty} of {len(after)} values empty (NaN)" if empty else "",
        together if len(after) < len(before) else "",
    )


def natural(text: str) -> tuple[Any, ...]:
    """Sorts "2–3" before "10–11"."""
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
