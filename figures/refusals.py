"""Refusal rates of the parts of the demo, with their intervals."""

import pandas as pd

from steerlens.dashboards import rates
from steerlens.studies.paper import Plate
from steerlens.studies.study import Study

NAMES = {
    "I": "always steered",
    "II": "steered if harmful",
    "III": "steered on named topics",
    "III-complement": "on other topics",
}
"""The parts of the demo in words."""


def make(study: Study) -> Plate:
    """Parts I to III."""
    table = pd.DataFrame(study.results["results"]["rows"])
    table["part"] = table["part"].replace(NAMES)
    groups = ("harmful", "harmless", "named", "others")
    return Plate(rates(table[table["group"].isin(groups)], "refused"), "double", height=2.4)
