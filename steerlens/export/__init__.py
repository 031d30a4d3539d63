"""Fold edits into weights, checkpoints and control vectors."""

from steerlens.export.exporting import Certificate, control_vector, export_ablation, export_model
from steerlens.export.weight_edits import ablated_weights, edited_biases

__all__ = [
    "Certificate",
    "ablated_weights",
    "control_vector",
    "edited_biases",
    "export_ablation",
    "export_model",
]
