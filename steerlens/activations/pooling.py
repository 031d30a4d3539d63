"""Sums and means of activations over chosen tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.numerics import at_least_float32
from steerlens.shapes import Resid


@dataclass(frozen=True, eq=False)
class Readers:
    """Which tokens of a batch are pooled: indexed once, used for every layer.

    A reader is a row with the positions pooled in it; a row may have several readers, or none.

    >>> mean_of_both = Readers.of([(0, [0, 1])])
    >>> mean_of_both.mean(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    tensor([[2., 5.]])
    """

    reader: Int[Tensor, " read"]
    """For each token read, the number of its reader."""
    row: Int[Tensor, " read"]
    position: Int[Tensor, " read"]
    counts: Int[Tensor, " reader"]
    """How many tokens each reader has."""

    @classmethod
    def of(
        cls, readers: Sequence[tuple[int, Sequence[int]]], device: torch.device | str | None = None
    ) -> "Readers":
        """Readers from their rows and positions."""
        counts = torch.tensor([len(positions) for _, positions in readers], dtype=torch.long)
        reader = torch.arange(len(readers)).repeat_interleave(counts).to(device)
        rows = torch.tensor([row for row, _ in readers], device=device, dtype=torch.long)
        positions = [position for _, selected in readers for position in selected]
        return cls(
            reader,
            rows[reader],
            torch.tensor(positions, device=device, dtype=torch.long),
            counts.to(device),
        )

    def pick(self, activation: Resid, first: int = 0) -> Float[Tensor, "read d_model"]:
        """The activations of the tokens read, in float32 at least.

        No other token is touched: padding may hold NaN.

        Args:
            activation: A batch's activations.
            first: The position of the batch's first column, if a KV cache holds those before it.
        """
        return at_least_float32(activation[self.row, self.position - first])

    def add_up(self, picked: Float[Tensor, "read ..."]) -> Float[Tensor, "reader ..."]:
        """The sum over each reader's tokens."""
        zeros = picked.new_zeros(len(self.counts), *picked.shape[1:])
        return zeros.index_add_(0, self.reader, picked)

    def mean(self, activation: Resid) -> Float[Tensor, "reader d_model"]:
        """The mean over each reader's tokens; NaN for a reader without tokens."""
        return self.add_up(self.pick(activation)) / self.counts[:, None]
