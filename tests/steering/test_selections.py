"""Tokens read and positions steered, in models: replies, answers, lists and masks."""

from dataclasses import replace

import pytest
import torch
from helpers import PROMPTS, plain_generate, random_vector, stream
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.activations.selection import answer_letter
from steerlens.data.prompts import Passage
from steerlens.models.host import next_logits
from steerlens.models.tokenizing import left_padded, pad_token, right_padded, tokenize
from steerlens.steering import generation
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.clocks import DecodingClock
from steerlens.steering.positions import describe

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
both_ways = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.fixture(scope="module")
def rows(model):
    return tokenize(model, PROMPTS)


def read(model, prompts, tokens, **options):
    return read_residual(model, prompts, tokens=tokens, progress=False, **options)


def replied(model, prompts, steering=None, n_new=8, **options):
    return sl.generate(model, prompts, steering, max_new_tokens=n_new, progress=False, **options)


# Reading


def test_an_index_for_each_sample(model, rows):
    indices = [0, -1, 3, -2, 5, 1]
    together = read(model, PROMPTS, indices)
    for row, index in enumerate(indices):
        at = slice(index, index + 1 or None)
        torch.testing.assert_close(together[[row]], read(model, [PROMPTS[row]], at), **CLOSE)
    lengths = [len(row.ids) for row in rows]
    from_front = [index % length for index, length in zip(indices, lengths, strict=True)]
    assert torch.equal(read(model, PROMPTS, from_front), together)


def test_the_same_prompt_at_several_indices(model, rows):
    ids = rows[1].ids
    every = read(model, [ids] * len(ids), range(len(ids)))
    torch.testing.assert_close(every.mean(dim=0), read(model, [ids], "all", sinks=True)[0], **CLOSE)


@pytest.mark.parametrize("indices", [[0, 1], [0] * 7])
def test_an_index_for_each_means_each(model, indices):
    with pytest.raises(sl.SteerlensError, match=f"got {len(indices)} indices for 6 prompts"):
        read(model, PROMPTS, indices)


@pytest.mark.parametrize("index", [99, -99])
def test_an_index_that_a_prompt_does_not_have_is_refused(model, index):
    with pytest.raises(sl.SteerlensError, match="selects nothing in a prompt of"):
        read(model, PROMPTS[:2], [0, index])


def test_the_reply_begins_where_the_users_words_end(model, rows):
    words = [model.tokenizer.decode(row.ids[row.reply_start :]) for row in rows]
    assert set(words) == {"<|end|><|assistant|>"}
    torch.testing.assert_close(read(model, PROMPTS, "reply"), read(model, PROMPTS, 2), **CLOSE)


def test_a_suffix_belongs_to_the_reply(model):
    passage = Passage("Hi.", "No, I")
    (row,) = tokenize(model, [passage])
    assert row.reply_start == row.suffix_start - 2
    found = read(model, [passage], "reply")
    torch.testing.assert_close(found, read(model, [passage], len(row.ids) - row.reply_start))


@pytest.mark.parametrize("prompts", [["Hi."], [[1, 2, 3]]])
def test_a_prompt_without_template_has_no_reply(model, prompts):
    with pytest.raises(sl.SteerlensError, match="'reply' was asked for a prompt without reply"):
        read(model, prompts, "reply", chat=False)


LETTERS = [
    (["Answer", ":", " (", "B", ")"], 3),
    (["(", "A", ")", " yes", " (", "B", ")", " no", ":", "A"], 9),
    (["Answer", ":", " C"], 2),
    (["x", "(D)"], 1),
    (["I", " am", " not", " a", " b"], 0),
]


@pytest.mark.parametrize(("words", "place"), LETTERS)
def test_an_answer_letter_is_the_last_single_capital(words, place):
    assert answer_letter(words) == [place]


@pytest.mark.parametrize("words", [["no", "letters"], ["a", "1", "(", ")"], [""]])
def test_a_text_without_answer_letter_is_refused(words):
    with pytest.raises(sl.SteerlensError, match="no answer letter among the tokens"):
        answer_letter(words)


def test_answer_letters_are_read_where_they_stand(model):
    questions = [f"Which?\n(A) one\n(B) two\nAnswer: ({letter})" for letter in "AB"]
    rows = tokenize(model, questions, chat=False)
    found = read(model, questions, answer_letter, chat=False)
    assert [model.tokenizer.decode([row.ids[-2]]) for row in rows] == ["A", "B"]
    torch.testing.assert_close(found, read(model, questions, [-2, -2], chat=False), **CLOSE)


# Steering: what is chosen

indices = st.lists(st.integers(-7, 9), min_size=1, max_size=4)
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=3)


def chosen_places(lengths, n_new, positions, use_cache, kept=None, reply_start=None, row_mask=None):
    """Places of each row's text that are steered in the passes of a run, put together.

    After the first new token only the rows `kept` go on.
    """
    width = max(lengths)
    mask = torch.tensor([[False] * (width - n) + [True] * n for n in lengths])
    clock, left = DecodingClock(mask, reply_start), list(range(len(lengths)))
    found = {row: set() for row in left}
    for step in range(n_new + 1):
        if step == 1 and kept is not None:
            clock.keep_rows(torch.tensor(kept))
            left = kept
        first = width + step - 1 if use_cache and step else 0
        clock.show(first, width + step - first)
        chosen = clock.current.steered(positions, False, row_mask)
        chosen = chosen.expand(len(left), width + step - first)
        for row, on in zip(left, chosen, strict=True):
            starts = width - lengths[row]
            found[row] |= {first + at - starts for at in on.nonzero().flatten().tolist()}
    return [found[row] for row in range(len(lengths))]


@both_ways
@given(lengths, st.integers(0, 3), indices)
@settings(max_examples=60, deadline=None)
def test_a_list_is_places_of_the_text(use_cache, lengths, n_new, positions):
    """Negative ones count from the prompt's end, and never reach what is generated."""
    expected = [
        {p for p in positions if 0 <= p < n + n_new}
        | {n + p for p in positions if p < 0 and n + p >= 0}
        for n in lengths
    ]
    assert chosen_places(lengths, n_new, positions, use_cache) == expected


masks = st.lists(st.booleans(), min_size=1, max_size=8).filter(any)


@both_ways
@given(lengths, st.integers(0, 3), masks)
@settings(max_examples=60, deadline=None)
def test_a_mask_is_of_every_rows_own_text(use_cache, lengths, n_new, mask):
    """Not of the padded batch; what it does not reach is left alone."""
    expected = [{p for p, on in enumerate(mask) if on and p < n + n_new} for n in lengths]
    assert chosen_places(lengths, n_new, torch.tensor(mask), use_cache) == expected


@both_ways
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_mask_for_each_row_stays_with_its_row(use_cache, data):
    lengths_ = data.draw(lengths)
    width = data.draw(st.integers(1, 8))
    row = st.lists(st.booleans(), min_size=width, max_size=width)
    mask = data.draw(st.lists(row, min_size=len(lengths_), max_size=len(lengths_)))
    mask[0][0] = True
    rows = range(len(lengths_))
    kept = sorted(data.draw(st.sets(st.sampled_from(rows), min_size=1)))
    found = chosen_places(lengths_, 2, "all", use_cache, kept, row_mask=torch.tensor(mask))
    for index, n in enumerate(lengths_):
        shown = n + 2 if index in kept else n
        assert found[index] == {p for p, on in enumerate(mask[index]) if on and p < shown}


@both_ways
@pytest.mark.parametrize("kept", [[0, 1, 2], [2], [0, 2]])
def test_a_reply_begins_in_each_row_where_it_begins(use_cache, kept):
    lengths, starts = [3, 6, 5], torch.tensor([1, 6, 0])
    found = chosen_places(lengths, 2, "reply", use_cache, kept, starts)
    shown = [n + 2 if row in kept else n for row, n in enumerate(lengths)]
    assert found == [set(range(s, n)) for s, n in zip(starts.tolist(), shown, strict=True)]


# Steering: in a model


@both_ways
def test_a_steered_reply_is_its_rows_own(model, vector, rows, use_cache):
    steering = sl.Steering(vector, [1, 2], positions="reply")
    together = replied(model, PROMPTS, steering, use_cache=use_cache).tokens
    for row, prompt in enumerate(PROMPTS):
        spelt_out = replace(steering, positions=slice(rows[row].reply_start, None))
        assert together[row] == replied(model, [prompt], spelt_out).tokens[0]
    assert together != replied(model, PROMPTS).tokens


def test_plain_hooks_do_not_know_where_a_reply_begins(model, vector):
    steering = sl.Steering(vector, [1], positions="reply")
    with (
        pytest.raises(sl.SteerlensError, match=r"use steerlens.generate with a chat template, or"),
        model.hooks(fwd_hooks=steering.hooks()),
    ):
        model(torch.tensor([[1, 2, 3]]))
    with pytest.raises(sl.SteerlensError, match="needs to see the text"):
        replied(model, [[1, 2, 3]], steering)


@pytest.mark.parametrize(
    "positions",
    [[1, 3], [-1], [0, -2], torch.tensor([False, True, False, True, True])],
    ids=str,
)
@pytest.mark.parametrize("pad_side", [left_padded, right_padded])
def test_a_padded_batch_is_steered_as_its_rows(model, vector, rows, positions, pad_side):
    steering = sl.Steering(vector, [1, 2], positions=positions)
    tokens, mask = pad_side([row.ids for row in rows], pad_token(model))
    with torch.no_grad(), model.hooks(fwd_hooks=steering.hooks(mask)):
        together = model(tokens, attention_mask=mask.int())
    for row, (ids, *_) in enumerate(rows):
        with torch.no_grad(), model.hooks(fwd_hooks=steering.hooks()):
            alone = model(torch.tensor([ids]))[0]
        torch.testing.assert_close(together[row, mask[row]], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("positions", [[1, 3, -1], torch.tensor([False, True, False, True])])
def test_only_the_listed_tokens_change(model, vector, positions):
    ids = list(range(1, 9))
    steering = sl.Steering(vector, [1], positions=positions)
    options = {"site": "resid_post", "layer": 1}
    change = stream(model, ids, hooks=steering.hooks(), **options) - stream(model, ids, **options)
    changed = (change.norm(dim=1) > 0.1).nonzero().flatten().tolist()
    assert changed == ([1, 3, 7] if isinstance(positions, list) else [1, 3])


@pytest.mark.parametrize("positions", [[1, 3], [-1, 12], torch.arange(14) % 2 == 0], ids=str)
def test_the_hosts_generate_with_and_without_cache_is_ours(model, vector, rows, positions):
    steering = sl.Steering(vector, [1, 2], positions=positions)
    ours = replied(model, [rows[1].ids], steering, n_new=6).tokens[0]
    for use_cache in (True, False):
        theirs = plain_generate(model, rows[1].ids, [steering], use_cache=use_cache)
        assert theirs[: len(ours)] == ours


@pytest.fixture
def rows_end_early(model, monkeypatch):
    """A token that replies hold at different places ends them, so that rows leave the batch."""
    tokens = replied(model, PROMPTS).tokens
    ends = frozenset({tokens[0][2], tokens[1][5], tokens[3][0]})
    monkeypatch.setattr(generation, "end_tokens", lambda model: ends)


def row_masks(rows, width=40):
    """Each row's own choice, beyond its prompt too, and for one of them nothing."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(len(rows), width, generator=generator) > 0.5
    mask[2] = False
    return mask


@both_ways
def test_a_mask_for_each_row_while_rows_leave(model, vector, rows, rows_end_early, use_cache):
    mask = row_masks(rows)
    steering = sl.Steering(vector, [1, 2])
    plan = BatchPlan(steering, torch.full((len(rows), 2), 0.5), where=mask)
    for batch_size in (64, 2):
        together = replied(model, PROMPTS, plan, use_cache=use_cache, batch_size=batch_size)
        lengths = {len(tokens) for tokens in together.tokens}
        assert len(lengths) > 1
        for row, prompt in enumerate(PROMPTS):
            if not mask[row].any():
                alone = replied(model, [prompt])
            else:
                alone = replied(model, [prompt], replace(steering, positions=mask[row]))
            assert together.tokens[row] == alone.tokens[0]
            assert together.finished[row] == alone.finished[0]


def test_a_mask_of_a_batch_with_plain_hooks(model, vector, rows):
    tokens, mask = left_padded([row.ids for row in rows], pad_token(model))
    chosen = row_masks(rows)
    steering = sl.Steering(vector, [1])
    plan = BatchPlan(steering, torch.ones(len(rows), 1), where=chosen)
    with torch.no_grad(), model.hooks(fwd_hooks=plan.hooks(mask)):
        together = next_logits(model, tokens, mask.int())
    for row, (ids, *_) in enumerate(rows):
        own = [replace(steering, positions=chosen[row]).hooks()] if chosen[row].any() else [[]]
        with torch.no_grad(), model.hooks(fwd_hooks=own[0]):
            alone = model(torch.tensor([ids]))[0, -1]
        torch.testing.assert_close(together[row], alone, atol=1e-3, rtol=1e-3)


# Bad input


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 3, 4, dtype=torch.bool),
        torch.tensor(True),
        torch.ones(4),
        torch.ones(4, dtype=torch.int64),
        torch.ones(2, 4, dtype=torch.bool),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(2, 4, dtype=torch.bool),
        torch.zeros(0, dtype=torch.bool),
    ],
    ids=lambda mask: f"{mask.dtype} {tuple(mask.shape)}",
)
def test_masks_of_wrong_shape_or_dtype_are_refused_when_built(unchecked, vector, mask):
    told = rf"{mask.dtype} tensor of shape \({', '.join(map(str, mask.shape))},?\); expected a Bool"
    with pytest.raises(sl.SteerlensError, match=told):
        sl.Steering(vector, positions=mask)


def test_a_mask_for_other_rows_is_refused(model, vector):
    mask = torch.ones(3, 4, dtype=torch.bool)
    plan = BatchPlan(sl.Steering(vector, [1]), torch.ones(3, 1), where=mask)
    with pytest.raises(sl.SteerlensError, match=r"got BatchPlan\(3 rows of .* for 6 prompts"):
        replied(model, PROMPTS, plan)
    with (
        pytest.raises(sl.SteerlensError, match="got 3 rows of positions mask for a batch of 1"),
        model.hooks(fwd_hooks=plan.hooks()),
    ):
        model(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("positions", [[90], torch.tensor([False] * 90 + [True])])
def test_positions_beyond_the_text_are_refused(model, vector, positions):
    with pytest.raises(sl.SteerlensError, match=r"would touch no token of these prompts .* change"):
        replied(model, PROMPTS, sl.Steering(vector, [1], positions=positions))


@pytest.mark.parametrize("positions", [[True, False], [1, "2"], (), [[1]], {1: 2}])
def test_lists_of_no_indices_are_refused(unchecked, vector, positions):
    with pytest.raises(sl.SteerlensError, match="expected a list of at least one index"):
        sl.Steering(vector, positions=positions)


@pytest.mark.parametrize("positions", [[1], torch.tensor([True, False]), "reply"])
def test_a_padded_batch_without_mask_is_not_guessed_at(model, vector, positions):
    steering = sl.Steering(vector, [1], positions=positions)
    told = (
        rf"steering {describe(positions).replace('[', '.')[:9]}.* needs to know where the padding"
    )
    with pytest.raises(sl.SteerlensError, match=told), model.hooks(fwd_hooks=steering.hooks()):
        model(torch.tensor([[1, 2], [3, 4]]))
