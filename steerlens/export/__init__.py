"""Fold edits into weights and checkpoints; put plans into the terms of other programs."""

from steerlens.export.block_outputs import control_vector
from steerlens.export.exporting import Certificate, export_ablation, export_model
from steerlens.export.lm_eval import LmEvalWarning, lm_eval_file, read_lm_eval
from steerlens.export.lowering import TARGETS, lower
from steerlens.export.vllm_lens import vllm_request
from steerlens.export.weight_edits import ablated_weights, edited_biases

__all__ = [
    "TARGETS",
    "Certificate",
    "LmEvalWarning",
    "ablated_weights",
    "control_vector",
    "edited_biases",
    "export_ablation",
    "export_model",
    "lm_eval_file",
    "lower",
    "read_lm_eval",
    "vllm_request",
]
