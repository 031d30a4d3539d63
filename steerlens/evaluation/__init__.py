"""Effects, controls, side effects, calibration and sweeps."""

from steerlens.evaluation.ab_questions import (
    answer_sides,
    choice_probabilities,
    choice_summary,
    choice_sweep,
)
from steerlens.evaluation.calibration import (
    Calibration,
    calibrate_layers,
    calibrate_strength,
)
from steerlens.evaluation.controls import random_directions, shuffled_labels
from steerlens.evaluation.effects import mean_doses, paired_effects, prompt_slopes
from steerlens.evaluation.evaluation import Evaluation, evaluate
from steerlens.evaluation.side_effects import measure_side_effects
from steerlens.evaluation.suggestion import Suggestion, suggest
from steerlens.evaluation.sweep_store import Sweep
from steerlens.evaluation.sweeps import sweep
from steerlens.evaluation.verdict import Verdict

__all__ = [
    "Calibration",
    "Evaluation",
    "Suggestion",
    "Sweep",
    "Verdict",
    "answer_sides",
    "calibrate_layers",
    "calibrate_strength",
    "choice_probabilities",
    "choice_summary",
    "choice_sweep",
    "evaluate",
    "mean_doses",
    "measure_side_effects",
    "paired_effects",
    "prompt_slopes",
    "random_directions",
    "shuffled_labels",
    "suggest",
    "sweep",
]
