"""Reading activations with `run_with_cache`, and extracting vectors from them."""

from steerlens.activations.cost import CostEstimate, estimate_cost
from steerlens.activations.extraction import extract
from steerlens.activations.pairs import PairReader, read_contrast
from steerlens.activations.provenance import ProvenanceWarning, check_provenance
from steerlens.activations.reading import read_residual
from steerlens.activations.selection import Tokens, answer_letter

__all__ = [
    "CostEstimate",
    "PairReader",
    "ProvenanceWarning",
    "Tokens",
    "answer_letter",
    "check_provenance",
    "estimate_cost",
    "extract",
    "read_contrast",
    "read_residual",
]
