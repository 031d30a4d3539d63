import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations.selection import read_positions
from steerlens.steering.clocks import DecodingClock, PlainHooksClock, PromptRows
from steerlens.steering.positions import can_select, require_positions

# What is read

PARTS = {"suffix": slice(3, None), "reply": slice(2, None), "user": slice(1, 2)}


def no_text():
    raise AssertionError("only a function of the string tokens needs them")


@pytest.mark.parametrize(
    ("tokens", "chosen"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("last", [4]),
        ("suffix", [3, 4]),
        ("reply", [2, 3, 4]),
        ("user", [1]),
        (1, [4]),
        (3, [2, 3, 4]),
        (9, [0, 1, 2, 3, 4]),
        (slice(1, 3), [1, 2]),
        (slice(-2, None), [3, 4]),
        (slice(None, None, -2), [4, 2, 0]),
    ],
)
def test_tokens_read(tokens, chosen):
    assert read_positions(tokens, 5, PARTS, no_text) == chosen


def test_a_function_chooses_from_the_string_tokens():
    found = read_positions(lambda words: [words.index("b"), -1], 3, {}, lambda: ["a", "b", "c"])
    assert found == [1, 2]


@pytest.mark.parametrize("tokens", [0, -1, True, "first", 1.5, None])
def test_unknown_token_selections_are_refused(unchecked, tokens):
    with pytest.raises(sl.SteerlensError, match="is not a token selection; use"):
        read_positions(tokens, 5, PARTS, no_text)


def test_a_missing_suffix_is_refused():
    with pytest.raises(sl.SteerlensError, match="prompt without suffix"):
        read_positions("suffix", 5, {}, no_text)


@pytest.mark.parametrize("tokens", [slice(7, 9), lambda words: []])
def test_reading_nothing_is_refused(tokens):
    with pytest.raises(sl.SteerlensError, match="selects nothing in a prompt of 5 tokens"):
        read_positions(tokens, 5, {}, list)


# What is steered

ends = st.none() | st.integers(-6, 9)
windows = st.builds(slice, ends, ends, st.none() | st.integers(1, 3)).filter(
    lambda window: (
        window.start is None
        or window.stop is None
        or (window.start < 0) != (window.stop < 0)
        or window.start < window.stop
    )
)
selections = st.sampled_from(["all", "prompt", "generated", "last"]) | windows


def expected(positions, length, total, skip_bos=False):
    """The places of one row's text that are steered, from the words of the definition."""
    named = {
        "all": slice(None),
        "prompt": slice(0, length),
        "generated": slice(length, None),
        "last": slice(length - 1, None),
    }
    window = named[positions] if isinstance(positions, str) else positions
    start, stop = (  # negative ends count from the prompt's end
        max(0, length + end) if end is not None and end < 0 else end
        for end in (window.start, window.stop)
    )
    places = range(total)[slice(start, stop, window.step)]
    return {place for place in places if place > 0 or not skip_bos}


def steered_text(lengths, n_new, positions, skip_bos, use_cache):
    """Which places of each row's text are steered when the passes of a run are put together."""
    width = max(lengths)
    mask = torch.tensor([[False] * (width - n) + [True] * n for n in lengths])
    clock = DecodingClock(mask)
    found = torch.zeros(len(lengths), 0, dtype=torch.bool)
    for step in range(n_new + 1):
        begin = width + step - 1 if use_cache and step else 0
        clock.show(begin, width + step - begin)
        chosen = clock.current.steered(positions, skip_bos)
        if chosen is None:
            chosen = torch.ones(1, clock.current.width, dtype=torch.bool)
        chosen = chosen.expand(len(lengths), clock.current.width)
        if use_cache:
            found = torch.cat([found, chosen], dim=1)
        else:  # what was steered stays steered
            assert torch.equal(chosen[:, : found.shape[1]], found)
            found = chosen
    return [
        {place - (width - n) for place in row.nonzero().flatten().tolist() if place >= width - n}
        for row, n in zip(found, lengths, strict=True)
    ]


@pytest.mark.parametrize("use_cache", [True, False])
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 3), selections,
    st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_positions_mean_the_same_with_and_without_cache(
    use_cache, lengths, n_new, positions, skip_bos
):
    found = steered_text(lengths, n_new, positions, skip_bos, use_cache)
    assert found == [expected(positions, n, n + n_new, skip_bos) for n in lengths]


@given(st.integers(1, 6), st.integers(1, 4), selections, st.booleans())
@settings(max_examples=100, deadline=None)
def test_can_select_foresees_whether_a_run_steers(n_prompt, n_new, positions, skip_bos):
    read = expected(positions, n_prompt, n_prompt + n_new - 1, skip_bos)
    prompt = [5] * n_prompt
    assert can_select(positions, skip_bos, prompt, n_new) == bool(read)


@pytest.mark.parametrize(
    ("positions", "told"),
    [
        ("first", "got positions='first'; expected one of"),
        (3, "got positions=3; expected a list of at least one index"),
        ([], "at least one index"),
        ([1.5], "a mask is a Boolean tensor"),
        (torch.ones(3), "expected a Boolean mask .* true somewhere"),
        (torch.zeros(3, dtype=torch.bool), "true somewhere"),
        (slice(0, 4, -1), "expected a positive step"),
        (slice(4, 2), "can never select a token"),
        (slice(-1, -2), "can never select a token"),
    ],
)
def test_impossible_positions_are_refused(unchecked, positions, told):
    with pytest.raises(sl.SteerlensError, match=told):
        require_positions(positions)


# The clock


def shown(clock, *passes):
    for resid in passes:
        clock.tick(resid)
        yield clock.current.at_prompt


def test_the_clock_notices_a_new_prompt():
    begun = []
    clock = PlainHooksClock()
    clock.on_prompt = lambda: begun.append(clock.current.rows.width)
    first, second = torch.randn(1, 5, 4), torch.randn(1, 7, 4)
    assert list(shown(clock, first, first[:, -1:], first[:, :1])) == [True, False, False]
    assert list(shown(clock, second, second[:, -1:])) == [True, False]  # with cache
    grown = torch.cat([first, second[:, :2]], dim=1)
    passes = first, grown[:, :6], grown[:, :7]
    assert list(shown(clock, *passes)) == [True, False, False]  # without
    assert begun == [5, 7, 5]


def test_another_text_one_token_longer_is_a_new_prompt():
    clock = PlainHooksClock()
    assert list(shown(clock, torch.randn(1, 5, 4), torch.randn(1, 6, 4))) == [True, True]


def test_the_same_prompt_again_is_a_new_prompt():
    clock, prompt = PlainHooksClock(), torch.randn(1, 5, 4)
    assert list(shown(clock, prompt, prompt)) == [True, True]


def test_another_number_of_rows_is_a_new_prompt():
    clock = PlainHooksClock()
    assert list(shown(clock, torch.randn(1, 5, 4), torch.randn(3, 1, 4))) == [True, True]


def test_the_clock_goes_on_with_the_rows_that_are_left():
    mask = torch.tensor([[False, True], [True, True], [True, True]])
    clock = DecodingClock(mask)
    clock.show(0, 2)
    assert clock.current.at_prompt
    clock.keep_rows(torch.tensor([0, 2]))
    with pytest.raises(sl.SteerlensError, match="before its clock had the tokens"):
        _ = clock.current
    clock.show(0, 3)
    assert not clock.current.at_prompt
    steered = clock.current.steered("last", False).tolist()
    assert steered == [[False, True, True], [False, True, True]]


def test_a_batch_without_mask_is_not_guessed_at():
    clock = PlainHooksClock()
    clock.tick(torch.randn(2, 5, 4))
    assert clock.current.steered("all", False) is None
    assert clock.current.steered("prompt", False).all()
    with pytest.raises(
        sl.SteerlensError, match=r"last positions.*padding of this batch of 2.*hooks\(prom"
    ):
        clock.current.steered("last", False)
    with pytest.raises(sl.SteerlensError, match="skip_bos=True needs to know"):
        clock.current.steered("all", True)


def test_a_mask_must_fit_the_prompt():
    clock = PlainHooksClock(torch.ones(2, 3, dtype=torch.bool))
    clock.tick(torch.randn(2, 5, 4))
    with pytest.raises(sl.SteerlensError, match=r"mask of shape \(2, 3\); expected \(2, 5\)"):
        _ = clock.current
    with pytest.raises(sl.SteerlensError, match="no real token"):
        PromptRows(1, 5, torch.zeros(1, 5, dtype=torch.bool))
