"""Activation steering and conditional activation steering on TransformerLens.

contrast → extract → search a condition → steer when it holds → generate → measure → show
"""

from steerlens import (
    choices,
    conditions,
    dashboards,
    directions,
    distributed,
    endpoints,
    explaining,
    hooks,
    judges,
    model_judges,
)
from steerlens.biases import ablated_weights, edited_biases
from steerlens.calibration import (
    Calibration,
    Suggestion,
    calibrate_layers,
    calibrate_strength,
    suggest,
)
from steerlens.conditions import Condition, Gate
from steerlens.contrast import ContrastiveDataset, Passage
from steerlens.controls import random_directions, shuffled_labels
from steerlens.errors import SteerlensError
from steerlens.evaluation import Evaluation, evaluate
from steerlens.extraction import ProvenanceWarning, check_provenance, extract
from steerlens.files import embedded
from steerlens.formats import LossyFormatWarning
from steerlens.generation import Replies, generate, stream
from steerlens.layout import fast_layout, stock_layout
from steerlens.ledger import Sweep
from steerlens.loading import load_model
from steerlens.marking import MarkedText, mark_read, mark_steered
from steerlens.residual import read_residual
from steerlens.rules import apply_rules, parse_rules
from steerlens.search import ConditionSearch, search_conditions
from steerlens.serving import Certificate, control_vector, export_ablation, export_model
from steerlens.side_effects import measure_side_effects
from steerlens.steering import Steering, steering_hooks
from steerlens.sweeps import sweep
from steerlens.vector import SteeringVector

__all__ = [
    "Calibration",
    "Certificate",
    "Condition",
    "ConditionSearch",
    "ContrastiveDataset",
    "Evaluation",
    "Gate",
    "LossyFormatWarning",
    "MarkedText",
    "Passage",
    "ProvenanceWarning",
    "Replies",
    "Steering",
    "SteeringVector",
    "SteerlensError",
    "Suggestion",
    "Sweep",
    "ablated_weights",
    "apply_rules",
    "calibrate_layers",
    "calibrate_strength",
    "check_provenance",
    "choices",
    "conditions",
    "control_vector",
    "dashboards",
    "directions",
    "distributed",
    "edited_biases",
    "embedded",
    "endpoints",
    "evaluate",
    "explaining",
    "export_ablation",
    "export_model",
    "extract",
    "fast_layout",
    "generate",
    "hooks",
    "judges",
    "load_model",
    "mark_read",
    "mark_steered",
    "measure_side_effects",
    "model_judges",
    "parse_rules",
    "random_directions",
    "read_residual",
    "search_conditions",
    "shuffled_labels",
    "steering_hooks",
    "stock_layout",
    "stream",
    "suggest",
    "sweep",
]
