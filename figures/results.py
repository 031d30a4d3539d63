"""The demo's rates and scores as a table."""

import pandas as pd

from steerlens.studies.paper import LatexTable
from steerlens.studies.study import Study


def make(study: Study) -> LatexTable:
    """Every cell, with its interval and n."""
    content = study.results["results"]
    run = content["run"]
    table = pd.DataFrame(content["rows"]).rename(columns={"n": "prompts"})
    return LatexTable(
        table,
        f"Rates and scores of {run['model']} on test prompts (greedy; 95 \\% intervals).",
        "tab:demo",
    )
