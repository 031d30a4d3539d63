"""Activation steering and conditional activation steering on TransformerLens.

contrast → extract → search a condition → steer when it holds → generate → measure → show
"""

from steerlens import conditions, directions, hooks
from steerlens.conditions import Condition, Gate
from steerlens.contrast import ContrastiveDataset, Passage
from steerlens.errors import SteerlensError
from steerlens.extraction import extract
from steerlens.files import embedded
from steerlens.generation import Replies, generate
from steerlens.models import fast_layout, load_model
from steerlens.residual import read_residual
from steerlens.rules import apply_rules, parse_rules
from steerlens.steering import Steering, steering_hooks
from steerlens.vector import SteeringVector

__all__ = [
    "Condition",
    "ContrastiveDataset",
    "Gate",
    "Passage",
    "Replies",
    "Steering",
    "SteeringVector",
    "SteerlensError",
    "apply_rules",
    "conditions",
    "directions",
    "embedded",
    "extract",
    "fast_layout",
    "generate",
    "hooks",
    "load_model",
    "parse_rules",
    "read_residual",
    "steering_hooks",
]
