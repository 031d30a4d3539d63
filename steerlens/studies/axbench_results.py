"""What AxBench's parts came to: tidy rows in `results.json`, leaderboards, and a page."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from steerlens.data.axbench import AxBench
from steerlens.files import (
    PathLike,
    as_path,
    digest,
    read_json,
    require_writable,
    write_json,
    write_text,
)
from steerlens.intervals import Interval
from steerlens.models.fingerprint import model_provenance
from steerlens.models.host import Model
from steerlens.studies.axbench_page import axbench_page

FORMAT = "steerlens.axbench"
COLUMNS = ["part", "arm", "concept", "layer", "measure", "value", "low", "high", "n"]
DETECTION, STEERING = "detection", "steering"
ALL = "all"
"""As a concept: over concepts. As a layer: the standardised scores of all, added up."""


@dataclass(frozen=True)
class AxBenchResults:
    """How well concepts are detected, or steered to, as tidy rows."""

    table: pd.DataFrame
    """Columns part, arm, concept, layer, measure, value, low, high, n."""
    dropped: tuple[str, ...] = ()
    """What could not be measured, each with the reason."""
    of: str = ""
    """The digest of the model and of the texts."""

    def save(self, out: PathLike) -> "AxBenchResults":
        """Write `results.json` and `axbench.html` into a directory.

        Another part that is there already is kept if it is of the same model and texts.

        Returns:
            All that the directory now holds.
        """
        folder = as_path(require_writable(out))
        whole = self._beside(folder / "results.json")
        rows = whole.table.astype(object).where(whole.table.notna(), None).to_dict("records")
        value = {
            "format": FORMAT, "version": 1, "of": self.of, "dropped": list(whole.dropped),
            "rows": rows,
        }  # fmt: skip
        write_json(folder / "results.json", value)
        write_text(folder / "axbench.html", axbench_page(whole.table, whole.dropped))
        return whole

    def _beside(self, path: Any) -> "AxBenchResults":
        """These results with the parts of a file that are not among them."""
        kept = read_json(path) if path.exists() else None
        if not isinstance(kept, dict) or kept.get("of") != self.of or not self.of:
            return self
        old = pd.DataFrame(kept["rows"], columns=COLUMNS, dtype=object)
        old = old[~old["part"].isin(set(self.table["part"]))]
        if old.empty:
            return self
        dropped = dict.fromkeys([*kept["dropped"], *self.dropped])
        table = pd.concat([old, self.table.astype(object)], ignore_index=True)
        return replace(self, table=table.sort_values("part", kind="stable"), dropped=tuple(dropped))

    def __repr__(self) -> str:
        parts = ", ".join(dict.fromkeys(self.table["part"]))
        n = (self.table["concept"].drop_duplicates() != ALL).sum()
        return f"AxBenchResults({parts}, {n} concepts)"


def digest_of_bench(model: Model, bench: AxBench) -> str:
    """What results are of."""
    return digest(repr([model_provenance(model), bench]).encode())


def cell(
    part: str, arm: str, concept: str, layer: Any, measure: str, value: Interval, n: Any
) -> tuple[Any, ...]:
    """A row of the table."""
    return (part, arm, concept, layer, measure, *value, n)
