"""Cosines of the condition vectors with the harmful one, by layer."""

from steerlens.dashboards import vector_cosines
from steerlens.studies.paper import Plate
from steerlens.studies.study import Study


def make(study: Study) -> Plate:
    """All conditions of the demo."""
    vectors = {name: study.vectors[name] for name in study.searches}
    return Plate(vector_cosines(vectors, to="harmful"))
