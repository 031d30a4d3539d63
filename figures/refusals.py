"""Refusal rates of the parts of the demo, with their intervals."""

import pandas as pd

from steerlens.dashboards import rates
from steerlens.studies.paper import Plate
from steerlens.studies.study import Study


def make(study: Study) -> Plate:
    """Parts I to III."""
    table = pd.DataFrame(study.results["results"]["rows"])
    groups = ("harmful", "harmless", "named", "others")
    return Plate(rates(table[table["group"].isin(groups)], "refused"), "double", height=2.4)
