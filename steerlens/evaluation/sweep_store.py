"""The rows of a sweep: saved to a directory batch by batch, and loaded as a table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field

from steerlens.display import MOST_ROWS, Rows, card
from steerlens.errors import SteerlensError
from steerlens.files import (
    PathLike,
    digest,
    import_pyarrow,
    require_writable,
    write_atomically,
    write_json,
)
from steerlens.intervals import adjusted, mean, paired_p
from steerlens.judges.fluency import degenerate
from steerlens.schemas import Declared, FileModel, check, read_as

PLAN = "plan.json"


class Cell(NamedTuple):
    """One setting of a sweep, applied to every prompt."""

    vector: str
    """Name of the template."""
    layers: str
    """As text: "3", "2-4", "1,4-6"."""
    strength: float
    positions: str
    """In words."""


UNSTEERED = Cell("unsteered", "", 0.0, "")
"""The cell that all others are compared with; it runs once per prompt."""

COLUMNS = {
    "row": "int64",
    **dict(zip(Cell._fields, ("string", "string", "float64", "string"), strict=True)),
    "prompt_index": "int64",
    "prompt": "string",
    "reply": "string",
    "tokens": "int64",
    "finished": "bool",
}
"""The columns of every sweep's table, with Arrow's names of their types."""


class JudgeFailure(NamedTuple):
    """A judge that raised on some rows, whose scores are therefore NaN."""

    judge: str
    first_row: int
    last_row: int
    error: str


@dataclass(frozen=True, eq=False)
class Sweep:
    """The rows of a sweep, complete or not, and the plan they belong to."""

    table: pd.DataFrame
    """One row per cell and prompt: the cell, the reply, a column per judge and per gate."""
    plan: Mapping[str, Any]
    """Everything that determines the rows, as in the manifest."""
    failures: tuple[JudgeFailure, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every planned row has been written."""
        return len(self.table) == self.plan["rows"]

    @classmethod
    def load(cls, path: PathLike) -> "Sweep":
        """Read the finished rows of a sweep.

        Args:
            path: The directory that `sweep(out=...)` wrote to, whether or not it was completed.
        """
        plan = _read_plan(Path(path))
        columns = schema(plan["judges"], plan["gates"])
        parts = [_read_part(part, columns) for part in sorted(Path(path).glob("part-*.parquet"))]
        tables = [columns.empty_table(), *parts]
        table = import_pyarrow().concat_tables(tables).to_pandas()
        failures = [
            JudgeFailure(*failure)
            for part in parts
            for failure in json.loads(part.schema.metadata[b"failures"])
        ]
        table = table.drop_duplicates("row").sort_values("row", ignore_index=True)
        return cls(table, plan, tuple(failures))

    def summary(self, *, seed: int = 0) -> pd.DataFrame:
        """Mean score of each cell by each judge, and its change from unsteered, prompt by prompt.

        Intervals (`low`, `high`; `effect_low`, `effect_high`) are bootstrapped over the n prompts.
        `q`: the change's p-value (`paired_p`), adjusted for the number of cells (`adjusted`): of
        the cells with q below .05, at most 1 in 20 is expected to do nothing.

        Args:
            seed: Of the bootstrap.
        """
        rows = []
        cells = self.table.set_index("prompt_index").groupby([*Cell._fields], sort=False)
        before = self.table[self.table["vector"] == UNSTEERED.vector].set_index("prompt_index")
        for cell, own in cells:
            for judge in self.plan["judges"]:
                scores = own[judge].to_numpy(dtype=float)
                changes = scores - before[judge].reindex(own.index).to_numpy(dtype=float)
                if cell == UNSTEERED:
                    changes = np.full_like(changes, np.nan)  # nothing to compare
                measured = (*mean(scores, seed=seed), *mean(changes, seed=seed), paired_p(changes))
                rows.append((*cell, judge, *measured, int(np.isfinite(scores).sum())))
        ends = ("low", "high", "effect", "effect_low", "effect_high", "q", "n")
        summary = pd.DataFrame(rows, columns=[*Cell._fields, "judge", "mean", *ends])
        return summary.assign(
            q=summary.groupby("judge")["q"].transform(lambda p: adjusted(p.to_numpy()))
        )

    def degenerate(self) -> pd.DataFrame:
        """The share of each cell's replies that are empty or repeat themselves."""
        broken = self.table.assign(degenerate=self.table["reply"].map(degenerate))
        cells = broken.groupby([*Cell._fields], sort=False)["degenerate"]
        return cells.mean().astype(float).reset_index()

    def _repr_html_(self) -> str:
        """For notebooks: the first cells with their scores and shares of degenerate replies."""
        judges = list(self.plan["judges"])
        first = self.table[self.table.groupby([*Cell._fields], sort=False).ngroup() < MOST_ROWS]
        rows = [
            (
                *cell,
                *(mean(group[judge].to_numpy()) for judge in judges),
                f"{group['reply'].map(degenerate).mean():.0%}",
                f"{group['reply'].iloc[0]}",
            )
            for cell, group in first.groupby([*Cell._fields], sort=False)
        ]
        return card(
            "Sweep",
            {
                "rows": f"{len(self.table):,} of {self.plan['rows']:,}",
                "cells": self.plan["cells"],
                "judges": ", ".join(judges) or "none",
                "failures": len(self.failures) or None,
            },
            Rows([*Cell._fields, *judges, "degenerate", "first reply"], rows, self.plan["cells"]),
        )

    def __repr__(self) -> str:
        judges = ", ".join(self.plan["judges"]) or "none"
        return (
            f"Sweep({len(self.table)} of {self.plan['rows']} rows, {self.plan['cells']} cells, "
            f"judges: {judges}, {len(self.failures)} failures)"
        )


def open_directory(out: Path, plan: dict[str, Any], resume: bool) -> set[int]:
    """Create the directory, or check that it holds the same plan; returns the rows already done.

    Unfinished files of a sweep that was killed are deleted.
    """
    for name in (PLAN, "part-*.parquet"):
        for unfinished in out.glob(f".{name}.*"):
            unfinished.unlink(missing_ok=True)
    if out.is_dir() and any(out.iterdir()):
        if not resume:
            raise SteerlensError(
                f"got out={str(out)!r}, which is not empty; expected a new directory: choose "
                "another, or continue the sweep in it with resume=True (--resume)"
            )
        _require_same_plan(_read_plan(out), plan, out)
        return set(Sweep.load(out).table["row"])
    require_writable(out)
    hashed = digest(json.dumps(plan).encode())
    write_json(out / PLAN, {"format": "steerlens.sweep/1", "hash": hashed, "plan": plan})
    return set()


def _read_plan(out: Path) -> dict[str, Any]:
    content = read_as(out / PLAN, _File)
    plan = content.plan
    check(_Manifest, plan, out / PLAN)
    if content.hash != digest(json.dumps(plan).encode()):
        raise SteerlensError(
            f"got {str(out / PLAN)!r}, which was changed after it was written: the rows may "
            "belong to another plan; sweep into another directory"
        )
    return plan


class _Manifest(Declared):
    """The entries of a plan that its table is read by; others are only compared."""

    model_config = ConfigDict(extra="allow")

    rows: Annotated[int, Field(ge=0)]
    cells: Annotated[int, Field(ge=0)]
    judges: dict[str, str]
    gates: list[str]


class _File(FileModel):
    title = "the plan of a sweep"
    format: Literal["steerlens.sweep/1"]
    hash: str
    plan: dict[str, Any]


def _require_same_plan(saved: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    differing = [
        f"{key} ({saved.get(key)!r:.100} saved, {asked.get(key)!r:.100} asked)"
        for key in {**saved, **asked}
        if saved.get(key) != asked.get(key)
    ]
    if differing:
        raise SteerlensError(
            f"got {str(out)!r} with the rows of another sweep, which differs in "
            f"{'; '.join(differing)}; ask for the same again, or sweep into another directory"
        )


def write_part(
    out: Path,
    plan: Mapping[str, Any],
    rows: range,
    table: pd.DataFrame,
    failures: Sequence[JudgeFailure],
) -> None:
    """Save a finished batch; if the disk is full, say what is saved and how to continue."""
    pa, pq = import_pyarrow(), import_pyarrow("pyarrow.parquet")
    columns = schema(plan["judges"], plan["gates"])
    part = pa.Table.from_pandas(table, schema=columns, preserve_index=False)
    part = part.replace_schema_metadata({"failures": json.dumps(failures)})
    path = out / f"part-{rows[0]:08}-{rows[-1]:08}.parquet"
    try:
        write_atomically(path, lambda temporary: pq.write_table(part, temporary))
    except SteerlensError as error:
        raise SteerlensError(
            f"rows {rows[0]} to {rows[-1]} could not be written: {error}; earlier rows are saved: "
            "free some space, then continue with resume=True (--resume)"
        ) from error


def _read_part(path: Path, columns: Any) -> Any:
    pa, pq = import_pyarrow(), import_pyarrow("pyarrow.parquet")
    try:
        part = pq.read_table(path)
        if part.schema.names != columns.names or b"failures" not in (part.schema.metadata or {}):
            raise pa.ArrowInvalid(f"its columns are {part.schema.names}")
    except (pa.ArrowException, OSError) as error:
        raise SteerlensError(
            f"got {str(path)!r}, which is no part of this sweep: {error}; delete it, then write "
            "its rows again with resume=True (--resume)"
        ) from error
    return part


def schema(judges: Iterable[str], gates: Iterable[str]) -> Any:
    """Arrow's schema of a sweep's table."""
    pa = import_pyarrow()
    kinds = {**COLUMNS, **dict.fromkeys(judges, "float64"), **dict.fromkeys(gates, "bool")}
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in kinds.items()])
