"""What is averaged is what one would index and average by hand, sinks left out."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlens.activations.pooling import mean_of, norms_of, times_median, without_sinks

masks = st.lists(
    st.lists(st.booleans(), min_size=7, max_size=7).filter(any), min_size=1, max_size=4
).map(torch.tensor)


def random_rows(n_rows, width=7, seed=0):
    return torch.randn(n_rows, width, 4, generator=torch.Generator().manual_seed(seed))


@given(masks)
def test_a_mean_with_sinks_is_the_mean_of_what_is_chosen(chosen):
    activation = random_rows(len(chosen))
    activation[~chosen] = torch.nan  # what nobody reads may hold anything
    real = torch.ones_like(chosen)
    expected = torch.stack(
        [row[mine].mean(0) for row, mine in zip(activation, chosen, strict=True)]
    )
    torch.testing.assert_close(mean_of(activation, chosen, real, sinks=True), expected)


@given(masks, st.integers(1, 6), st.floats(30, 1e6))
def test_a_sink_changes_no_mean_of_other_tokens(chosen, place, factor):
    """Neither the first token nor a planted outlier, however long, unless nothing else is there."""
    activation = random_rows(len(chosen))
    real = torch.ones_like(chosen)
    chosen = chosen.clone()
    chosen[:, 3 if place != 3 else 4] = True
    before = mean_of(activation, chosen & ~_at(place, chosen), real, sinks=False)
    activation[:, 0] *= factor
    activation[:, place] = factor * torch.ones(4)
    torch.testing.assert_close(mean_of(activation, chosen, real, sinks=False), before)


def _at(place, like):
    mask = torch.zeros_like(like)
    mask[:, place] = True
    return mask


def test_where_only_sinks_are_chosen_they_are_read():
    activation = random_rows(1)
    real = torch.ones(1, 7, dtype=torch.bool)
    first = _at(0, real)
    torch.testing.assert_close(mean_of(activation, first, real, sinks=False), activation[:, 0])
    [one] = without_sinks(real[:, :1], torch.ones(1, 1), real[:, :1])
    assert one.tolist() == [True]


def test_the_first_token_is_the_first_that_is_no_padding():
    real = torch.tensor([[False, False, True, True, True]])
    assert without_sinks(real, torch.ones(1, 5), real).tolist() == [[False] * 3 + [True] * 2]


def test_lengths_are_compared_with_the_median_of_real_tokens():
    lengths = torch.tensor([[900.0, 1.0, 2.0, 3.0, torch.nan], [4.0, 4.0, 8.0, 40.0, torch.inf]])
    real = torch.tensor([[False, True, True, True, False], [True] * 5])
    times = times_median(lengths, real)
    assert times.tolist() == [[0, 0.5, 1, 1.5, 0], [1, 1, 2, 10, 0]]
    assert without_sinks(real, times, real)[1].tolist() == [False, True, True, True, True]


def test_what_is_not_finite_is_no_sink_and_shows():
    """A text that overflows must not be read as if it had not."""
    activation = random_rows(1)
    activation[0, 3] = torch.inf
    real = torch.ones(1, 7, dtype=torch.bool)
    assert not mean_of(activation, real, real, sinks=False).isfinite().all()
    for dtype in (torch.float16, torch.float64):
        assert norms_of(activation.to(dtype)).dtype == torch.float32
