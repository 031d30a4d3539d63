"""What readers read is what one would index and average by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlens.activations.pooling import Readers


@given(
    readers=st.lists(
        st.tuples(st.integers(0, 2), st.sets(st.integers(0, 6), min_size=1)), min_size=1, max_size=6
    ),
    first=st.integers(0, 3),
)
def test_a_mean_is_the_mean_of_what_is_read(readers, first):
    activation = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    rows = [(row, sorted(positions)) for row, positions in readers]
    expected = torch.stack([activation[row, positions].mean(dim=0) for row, positions in rows])
    torch.testing.assert_close(Readers.of(rows).mean(activation), expected)
    shifted = Readers.of([(row, [at + first for at in positions]) for row, positions in rows])
    torch.testing.assert_close(
        shifted.add_up(shifted.pick(activation, first)) / shifted.counts[:, None], expected
    )


def test_what_nobody_reads_may_hold_anything():
    activation = torch.full((2, 3, 1), torch.nan)
    activation[0, 1], activation[1, 2] = 2.0, 4.0
    assert Readers.of([(0, [1]), (1, [2])]).mean(activation).flatten().tolist() == [2.0, 4.0]
