"""Activations added up and averaged over chosen tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.numerics import at_least_float32


@dataclass(frozen=True, eq=False)
class Readers:
    """Who reads which tokens of a batch: found once, used for every layer.

    A reader is a row with some of its positions; a row may have several readers, or none.

    >>> mean_of_both = Readers.of([(0, [0, 1])])
    >>> mean_of_both.mean(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    tensor([[2., 5.]])
    """

    reader: Int[Tensor, " read"]
    row: Int[Tensor, " read"]
    position: Int[Tensor, " read"]
    counts: Int[Tensor, " reader"]
    """How many tokens each reads."""

    @classmethod
    def of(
        cls, readers: Sequence[tuple[int, Sequence[int]]], device: torch.device | str | None = None
    ) -> "Readers":
        """From each reader's row and positions."""
        counts = torch.tensor([len(positions) for _, positions in readers], dtype=torch.long)
        reader = torch.arange(len(readers)).repeat_interleave(counts).to(device)
        rows = torch.tensor([row for row, _ in readers], device=device, dtype=torch.long)
        positions = [position for _, own in readers for position in own]
        return cls(
            reader,
            rows[reader],
            torch.tensor(positions, device=device, dtype=torch.long),
            counts.to(device),
        )

    def pick(
        self, activation: Float[Tensor, "row pos d_model"], first: int = 0
    ) -> Float[Tensor, "read d_model"]:
        """What is read, float32 at least, of a batch that begins at position `first`.

        Nothing else is touched: padding may hold anything.
        """
        return at_least_float32(activation[self.row, self.position - first])

    def add_up(self, picked: Float[Tensor, "read ..."]) -> Float[Tensor, "reader ..."]:
        """The sum of what each reader reads."""
        nothing = picked.new_zeros(len(self.counts), *picked.shape[1:])
        return nothing.index_add_(0, self.reader, picked)

    def mean(self, activation: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "reader d_model"]:
        """The mean of what each reader reads; NaN where it reads nothing."""
        return self.add_up(self.pick(activation)) / self.counts[:, None]
