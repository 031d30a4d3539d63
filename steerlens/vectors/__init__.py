"""Directions as values: estimators, arithmetic, files. Knows no model."""

from steerlens.vectors import estimators
from steerlens.vectors.formats import LossyFormatWarning
from steerlens.vectors.vector import SteeringVector

__all__ = ["LossyFormatWarning", "SteeringVector", "estimators"]
