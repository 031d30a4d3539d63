from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.steering.clocks import PlainHooksClock
from steerlens.steering.conditions import Gate
from steerlens.steering.similarities import (
    SIMILARITIES,
    Standard,
    cast_similarity,
    cosine,
    projection,
)

VECTOR = sl.SteeringVector(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), (0, 1, 2))
law = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def drawn(seed, rows=4, width=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator), torch.randn(width, generator=generator)


# Similarities


@given(seeds)
@law
def test_the_sign_of_the_vector_does_not_matter_to_cast(seed):
    pooled, direction = drawn(seed)
    torch.testing.assert_close(
        cast_similarity(pooled, -direction), cast_similarity(pooled, direction)
    )


@given(seeds)
@law
def test_cast_similarity_is_the_papers_formula(seed):
    pooled, c = (values.double() for values in drawn(seed))
    matrix = torch.outer(c, c) / (c @ c)
    expected = torch.cosine_similarity(pooled, torch.tanh(pooled @ matrix.T))
    torch.testing.assert_close(cast_similarity(pooled, c), expected)


@given(seeds, st.floats(0.1, 10))
@law
def test_signed_similarities_turn_with_the_vector(seed, factor):
    pooled, direction = drawn(seed)
    for similarity in (cosine, projection):
        found = similarity(pooled, direction)
        torch.testing.assert_close(similarity(pooled, -direction), -found)
        torch.testing.assert_close(similarity(pooled, factor * direction), found)


@pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)
def test_similarities_are_zero_where_a_side_is(similarity):
    pooled, direction = drawn(0)
    assert not similarity(pooled, torch.zeros(6)).any()
    assert not similarity(torch.zeros(2, 6), direction).any()


def test_similarities_to_the_direction_itself():
    direction = torch.tensor([3.0, 4.0])
    assert cosine(direction[None], direction).item() == pytest.approx(1)
    assert projection(direction[None], direction).item() == pytest.approx(5)


def test_half_precision_is_measured_in_float32():
    pooled, _ = drawn(0)
    condition = sl.Condition(VECTOR, 0, above=0)
    found = condition.measure(pooled.half(), 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, condition.measure(pooled, 0), atol=1e-2, rtol=1e-2)


# Conditions


def test_it_fires_if_any_layer_does():
    seen = torch.tensor([[0.1, 0.2], [0.1, 0.6], [0.6, 0.7], [0.5, 0.5]])
    above = sl.Condition(VECTOR, [0, 1], above=0.5)
    assert above.fires(seen).tolist() == [False, True, True, False]
    below = sl.Condition(VECTOR, [0, 1], below=0.5)
    assert below.fires(seen).tolist() == [True, True, False, False]


def test_layers_decide_by_the_mean_of_what_is_standardised():
    seen = torch.tensor([[1.0, 20.0], [3.0, 20.0], [3.0, -40.0]])
    standard = Standard((1.0, 0.0), (2.0, 20.0))
    both = sl.Condition(VECTOR, [0, 1], above=0.5, standard=standard)
    assert both.compared(seen).flatten().tolist() == [0.5, 1.0, -0.5]
    assert both.fires(seen).tolist() == [False, True, False]
    assert "mean standardised cast similarity at layers 0–1 above 0.5" in repr(both)
    measured = Standard.of(seen)
    torch.testing.assert_close(measured.mean_of(seen).mean(), torch.tensor(0.0).double())
    assert Standard.of(torch.ones(3, 1)).deviations == (1.0,)


def test_conditions_combine_and_print_their_names():
    a, b = (sl.Condition(VECTOR, 0, above=0.5, name=name) for name in ("harmful", "legal"))
    assert str(a & ~b) == "harmful and not legal"
    assert repr(a) == "Condition(harmful: cast similarity at layer 0 above 0.5)"
    several = sl.Condition(VECTOR, [2, 0], below=0.25, similarity=cosine)
    assert str(several) == "Condition(cosine similarity at layers 0, 2 below 0.25)"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"above": 0.5, "below": 0.5}, "got both of above= and below=; expected exactly one"),
        ({}, "got neither of above= and below=; expected exactly one"),
        ({"above": torch.nan}, "got above=nan; expected a finite number"),
        ({"below": -torch.inf}, "got below=-inf; expected a finite number"),
        ({"layers": 7, "above": 0}, "no direction for layer 7; it has 0–2"),
        ({"layers": [], "above": 0}, "at least one layer"),
        ({"above": 0, "tokens": "suffix"}, "hooks see activations, not text"),
        ({"above": 0, "tokens": lambda words: [0]}, "hooks see activations, not text"),
        ({"above": 0, "site": "nowhere"}, "site 'nowhere' is unknown; the sites are resid_pre"),
        ({"above": 0, "standard": Standard((0.0, 1.0), (1.0, 1.0))}, "for each of the 1 layers"),
        ({"above": 0, "tokens": "first"}, "tokens='first' is not a token selection"),
    ],
)
def test_impossible_conditions_are_refused(fields, told):
    with pytest.raises(sl.SteerlensError, match=told):
        sl.Condition(VECTOR, **{"layers": 0} | fields)


# Gates


def judged(resid, mask=None, tokens="all", sinks=False):
    condition = sl.Condition(VECTOR, 1, above=0, similarity=projection, tokens=tokens, sinks=sinks)
    gate = Gate(condition, PlainHooksClock(mask))
    gate.clock.tick(resid)
    gate.read(resid, 1)
    return gate


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), seeds, st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_batch_is_judged_as_its_rows_one_by_one(lengths, seed, left):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, 6, generator=generator) for length in lengths]
    rows[0][-1] *= 1000  # a sink, not at the beginning
    width = max(lengths)
    resid = torch.full((len(rows), width, 6), torch.nan)  # whatever a pad holds
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        resid[index, place], mask[index, place] = row, True
    for tokens, sinks in product(("all", "last", 2, slice(0, 3)), (False, True)):
        together = judged(resid, mask, tokens, sinks)
        alone = [judged(row[None], tokens=tokens, sinks=sinks) for row in rows]
        expected = torch.cat([gate.similarity for gate in alone])
        torch.testing.assert_close(together.similarity, expected, atol=1e-5, rtol=1e-5)
        assert together.open.tolist() == [gate.open.item() for gate in alone]


def test_a_gate_averages_no_sinks_unless_asked_to():
    text = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0))
    text[0, 5] *= 1000
    along = text[0] @ VECTOR[1] / VECTOR[1].norm()
    others = [1, 2, 3, 4, 6, 7]
    torch.testing.assert_close(judged(text).similarity[0, 0], along[others].mean())
    torch.testing.assert_close(judged(text, sinks=True).similarity[0, 0], along.mean())


def test_a_gate_that_reads_the_users_words_must_know_where_they_are():
    with pytest.raises(sl.SteerlensError, match=r"steerlens\.generate with text or chats"):
        judged(torch.randn(1, 3, 6), tokens="user")


def test_what_follows_the_prompt_changes_no_judgement():
    text = torch.randn(1, 8, 6)
    gate = judged(text[:, :5])
    seen = gate.similarity.clone()
    for more in (text[:, 5:6], text[:, 6:7]):
        gate.clock.tick(more)
        gate.read(more, 1)
    assert torch.equal(gate.similarity, seen)


def test_a_gate_goes_on_with_the_rows_that_are_left():
    gate = judged(torch.randn(3, 1, 6), torch.ones(3, 1, dtype=torch.bool))
    seen = gate.similarity
    gate.keep_rows(torch.tensor([2, 0]))
    assert torch.equal(gate.similarity, seen[[2, 0]])


def test_an_unread_gate_is_not_closed_but_refused():
    gate = Gate(sl.Condition(VECTOR, [0, 1], above=0), PlainHooksClock())
    with pytest.raises(sl.SteerlensError, match=r"has not read layer\(s\) \[0, 1\]"):
        _ = gate.open


def test_a_batch_without_mask_is_refused_with_both_ways_out():
    with pytest.raises(sl.SteerlensError, match=r"batch of 2.*steerlens.generate.*prompt_mask="):
        judged(torch.randn(2, 3, 6))


def test_activations_it_cannot_judge_are_refused():
    with pytest.raises(sl.SteerlensError, match="got NaN or infinite similarities at layer 1"):
        judged(torch.full((1, 3, 6), torch.nan))
    with pytest.raises(sl.SteerlensError, match="got activations of width 5; expected 6"):
        judged(torch.randn(1, 3, 5))
