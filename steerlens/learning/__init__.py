"""Vectors that are learned: objectives, training, what it came to."""

from steerlens.learning.batches import Batch
from steerlens.learning.learning import learn
from steerlens.learning.objectives import Objective, bipo, reft_r1, reply_likelihood, reps
from steerlens.learning.passes import TokenLogs
from steerlens.learning.training import Training

__all__ = [
    "Batch",
    "Objective",
    "TokenLogs",
    "Training",
    "bipo",
    "learn",
    "reft_r1",
    "reply_likelihood",
    "reps",
]
