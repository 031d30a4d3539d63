"""Activation steering and conditional activation steering on TransformerLens.

contrast → extract → search a condition → steer when it holds → generate → measure → show
"""

from steerlens import conditions, dashboards, directions, hooks, judges
from steerlens.biases import ablated_weights, edited_biases
from steerlens.conditions import Condition, Gate
from steerlens.contrast import ContrastiveDataset, Passage
from steerlens.errors import SteerlensError
from steerlens.extraction import ProvenanceWarning, check_provenance, extract
from steerlens.files import embedded
from steerlens.formats import LossyFormatWarning
from steerlens.generation import Replies, generate
from steerlens.layout import fast_layout, stock_layout
from steerlens.loading import load_model
from steerlens.marking import MarkedText, mark_read, mark_steered
from steerlens.residual import read_residual
from steerlens.rules import apply_rules, parse_rules
from steerlens.search import ConditionSearch, search_conditions
from steerlens.steering import Steering, steering_hooks
from steerlens.vector import SteeringVector

__all__ = [
    "Condition",
    "ConditionSearch",
    "ContrastiveDataset",
    "Gate",
    "LossyFormatWarning",
    "MarkedText",
    "Passage",
    "ProvenanceWarning",
    "Replies",
    "Steering",
    "SteeringVector",
    "SteerlensError",
    "ablated_weights",
    "apply_rules",
    "check_provenance",
    "conditions",
    "dashboards",
    "directions",
    "edited_biases",
    "embedded",
    "extract",
    "fast_layout",
    "generate",
    "hooks",
    "judges",
    "load_model",
    "mark_read",
    "mark_steered",
    "parse_rules",
    "read_residual",
    "search_conditions",
    "steering_hooks",
    "stock_layout",
]
