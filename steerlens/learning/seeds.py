"""One job under several seeds: how much of a learned vector is chance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.learning.learning import LESSONS, learn
from steerlens.learning.training import Training
from steerlens.models.host import Model
from steerlens.vectors.vector import SteeringVector


@dataclass(frozen=True)
class Seeds:
    """Vectors that differ in their seed only."""

    vectors: tuple[SteeringVector, ...]

    @property
    def mean(self) -> SteeringVector:
        """The mean of the vectors: less of what is chance."""
        total = self.vectors[0]
        for vector in self.vectors[1:]:
            total = total + vector
        return total / len(self.vectors)

    @property
    def cosines(self) -> Float[Tensor, "layer seed other_seed"]:
        """Cosine of each vector with each other, at each layer."""
        return torch.stack(
            [torch.stack([one.cosine(other) for other in self.vectors]) for one in self.vectors]
        ).permute(2, 0, 1)

    @property
    def gains(self) -> tuple[float, ...]:
        """How much likelier each makes the wanted replies, in nats per token, on prompts held out
        (with every prompt learned from: on these)."""
        told = [vector.provenance["gain"] for vector in self.vectors]
        return tuple(
            gain["learned"] if gain["held_out"] is None else gain["held_out"] for gain in told
        )

    def __str__(self) -> str:
        pairs = [
            float(cosines[i, j])
            for cosines in self.cosines
            for i in range(len(self.vectors))
            for j in range(i)
        ]
        return (
            f"{len(self.vectors)} seeds: cosine {min(pairs):.2f} to {max(pairs):.2f}, "
            f"gain {min(self.gains):+.2f} to {max(self.gains):+.2f} nats per token"
        )


def learn_seeds(
    model: Model,
    data: LESSONS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    training: Training = Training(),  # noqa: B008 - frozen
    **options: Any,
) -> Seeds:
    """`learn` once for each seed, which decides on order, replies, held-out prompts and the start.

    >>> few = Training(steps=2)
    >>> found = learn_seeds(model, [("Hi.", "No."), ("Why?", "No.")], (0, 1), training=few)
    >>> len(found.vectors), found.cosines.shape
    (2, torch.Size([1, 2, 2]))
    """
    if len(set(seeds)) < 2:
        raise SteerlensError(f"got seeds={list(seeds)}; expected at least two different ones")
    return Seeds(
        tuple(
            learn(model, data, training=replace(training, seed=seed), **options) for seed in seeds
        )
    )
