"""F1, precision and recall of the harmful condition over all thresholds, and its ROC."""

from steerlens.dashboards import threshold_sweep
from steerlens.studies.paper import Plate
from steerlens.studies.study import Study


def make(study: Study) -> Plate:
    """At the chosen layer."""
    return Plate(threshold_sweep(study.searches["harmful"]), "double", height=2.6)
