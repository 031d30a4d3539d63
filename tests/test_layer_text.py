"""Layers and their text are one thing in two forms."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.layer_text import consecutive, display_layers, layers_as_text, parse_layers

LAYERS = st.sets(st.integers(0, 99), min_size=1).map(sorted)


@given(LAYERS)
def test_reading_what_was_written_gives_the_layers_back(layers):
    for written in (layers_as_text(layers), display_layers(layers)):
        assert parse_layers(written) == layers
    assert layers_as_text(layers).replace(",", ", ").replace("-", "–") == display_layers(layers)


@given(LAYERS)
def test_runs_are_unbroken_and_as_few_as_possible(layers):
    runs = consecutive(layers)
    assert [layer for run in runs for layer in run] == layers
    assert all(run.stop < later.start for run, later in pairwise(runs))


def test_none_stands_for_all_layers():
    assert parse_layers(None) is None


@pytest.mark.parametrize("wrong", ["", "a-b", "3-", "-3", "1,,2", "2-3-4", "6-4", "1,6-4"])
def test_what_cannot_be_read_is_named_with_its_argument(wrong):
    with pytest.raises(sl.SteerlensError, match=f"^of the plan {wrong!r}"):
        parse_layers(wrong, "of the plan")
    with pytest.raises(sl.SteerlensError, match="--layers"):
        parse_layers(wrong)
