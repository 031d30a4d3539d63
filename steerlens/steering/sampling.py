"""Sampling of the next token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.numerics import is_number
from steerlens.shapes import TokenIds, TokenMask

LARGEST_SEED = 2**40
"""Beyond it, the numbers of the rows' streams would not fit into 64 bits."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; greedy by default.

    Args:
        temperature: Divides the logits; 0 is greedy decoding.
        top_k: Sample among this many likeliest tokens; None: among all.
        top_p: Sample among the likeliest tokens that reach this probability together; None: all.
        repetition_penalty: For tokens that are in the text already: divides their logit if it is
            positive, and multiplies it if it is negative.
        seed: Each row has its own stream of random numbers, from this seed and its index.

    >>> warm = Sampling(temperature=0.8, top_p=0.9)
    >>> len(generate(model, prompts, sampling=warm, max_new_tokens=3, progress=False))
    4
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        optional = [value for value in (self.top_k, self.top_p) if value is not None]
        numbers = (self.temperature, self.repetition_penalty, *optional)
        is_seed = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not all(map(is_number, numbers)) or not is_seed:
            raise SteerlensError(f"got {self}; expected numbers, and a whole number as the seed")
        if abs(self.seed) > LARGEST_SEED:
            raise SteerlensError(f"got seed={self.seed}; expected at most ±{LARGEST_SEED:,}")
        wrong = [
            f"{name}={value}"
            for name, value, fits in (
                ("temperature", self.temperature, 0 <= self.temperature < math.inf),
                ("top_k", self.top_k, self.top_k is None or self.top_k >= 1),
                ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1),
                ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0),
            )
            if not fits
        ]
        if wrong:
            raise SteerlensError(
                f"got {', '.join(wrong)}; expected a finite temperature ≥ 0, top_k ≥ 1, "
                "0 < top_p ≤ 1 and repetition_penalty > 0"
            )


class TokenChooser:
    """Picks each row's next token; a row's random numbers do not depend on its batch.

    Args:
        sampling: How tokens are chosen.
        rows: The number of each row's stream of random numbers.
    """

    def __init__(self, sampling: Sampling, rows: Sequence[int]) -> None:
        self.sampling = sampling
        self._generators = [
            torch.Generator().manual_seed(sampling.seed * 1_000_003 + row) for row in rows
        ]

    def __call__(
        self,
        logits: Float[Tensor, "batch d_vocab"],
        text: TokenIds,
        mask: TokenMask,
        step: int,
        alive: Int[Tensor, " batch"],
    ) -> Int[Tensor, " batch"]:
        logits = logits.float()
        penalty = self.sampling.repetition_penalty
        if penalty != 1:
            count = torch.zeros_like(logits).scatter_add_(1, text, mask.float())
            damped = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(count > 0, damped, logits)
        if self.sampling.temperature == 0:
            return logits.argmax(dim=1)
        draws = [torch.rand(1, generator=self._generators[row]) for row in alive.tolist()]
        return self._sampled(logits / self.sampling.temperature, torch.stack(draws).to(logits))

    def _sampled(
        self, logits: Float[Tensor, "batch d_vocab"], draw: Float[Tensor, "batch 1"]
    ) -> Int[Tensor, " batch"]:
        """Invert the cumulative distribution over the tokens, likeliest first."""
        ordered, token = logits.sort(dim=1, descending=True)
        likely = ordered.softmax(dim=1)
        if self.sampling.top_k is not None:
            likely[:, self.sampling.top_k :] = 0
        if self.sampling.top_p is not None:
            before = likely.cumsum(dim=1) - likely
            likely[before >= self.sampling.top_p * likely.sum(dim=1, keepdim=True)] = 0
        reached = likely.cumsum(dim=1)
        place = torch.searchsorted(reached, draw * reached[:, -1:], right=True)
        last = (likely > 0).sum(dim=1, keepdim=True) - 1  # rounding must not step past it
        return token.gather(1, torch.minimum(place, last))[:, 0]
