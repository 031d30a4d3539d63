"""Vectors that are learned: objectives, training, what it came to."""

from steerlens.learning.batches import Batch
from steerlens.learning.comparing import Comparison, compare
from steerlens.learning.imitation import imitate_prompt
from steerlens.learning.learning import learn
from steerlens.learning.maps import StreamMap, linear_transport, null_space_map
from steerlens.learning.objectives import Objective, bipo, reft_r1, reply_likelihood, reps
from steerlens.learning.passes import TokenLogs
from steerlens.learning.seeds import Seeds, learn_seeds
from steerlens.learning.shuffled_lessons import learned_controls
from steerlens.learning.training import Training

__all__ = [
    "Batch",
    "Comparison",
    "Objective",
    "Seeds",
    "StreamMap",
    "TokenLogs",
    "Training",
    "bipo",
    "compare",
    "imitate_prompt",
    "learn",
    "learn_seeds",
    "learned_controls",
    "linear_transport",
    "null_space_map",
    "reft_r1",
    "reply_likelihood",
    "reps",
]
