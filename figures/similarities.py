"""Similarities of prompts to the vectors of the conditions, by layer."""

from steerlens.dashboards import similarities_by_layer
from steerlens.studies.paper import Plate
from steerlens.studies.study import Study


def make(study: Study) -> Plate:
    """The harmful condition and the topics that part III names."""
    names = ("harmful", "legal", "intimate", "crime")
    figure = similarities_by_layer(*(study.searches[name] for name in names))
    return Plate(figure, "double", height=4.2)
