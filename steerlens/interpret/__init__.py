"""What a vector means: logit lens, writers, token scans, contrasts, marked text."""

from steerlens.interpret.contrasts import Scatter, Spectrum, difference_spectrum, principal_scatter
from steerlens.interpret.lens import LogitLens, logit_lens, token_logits
from steerlens.interpret.token_marks import MarkedText, mark_read, mark_steered
from steerlens.interpret.token_scans import TokenScan, gate_timeline, scan_tokens
from steerlens.interpret.writers import Writers, mean_writers, weight_writers

__all__ = [
    "LogitLens",
    "MarkedText",
    "Scatter",
    "Spectrum",
    "TokenScan",
    "Writers",
    "difference_spectrum",
    "gate_timeline",
    "logit_lens",
    "mark_read",
    "mark_steered",
    "mean_writers",
    "principal_scatter",
    "scan_tokens",
    "token_logits",
    "weight_writers",
]
