"""Rows are cut into batches of like lengths that stay within what a batch may hold."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations.batching import by_length


@given(
    lengths=st.lists(st.integers(1, 20), max_size=30),
    rows=st.none() | st.integers(1, 8),
    tokens=st.none() | st.integers(1, 60),
)
def test_every_row_is_in_one_batch_within_the_limits_and_none_could_hold_one_more(
    lengths, rows, tokens
):
    batches = list(by_length(lengths, rows=rows, tokens=tokens))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths)

    def fits(batch):
        padded = len(batch) * max(lengths[index] for index in batch)
        return (rows is None or len(batch) <= rows) and (tokens is None or padded <= tokens)

    assert all(fits(batch) or len(batch) == 1 for batch in batches)
    for batch, later in pairwise(batches):
        assert not fits([*batch, later[0]])


def test_batches_of_nothing_are_refused():
    with pytest.raises(sl.SteerlensError, match="got batches of 0 rows; expected at least 1"):
        list(by_length([1, 2], rows=0))
