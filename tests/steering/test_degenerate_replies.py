"""When steered replies are said to have fallen apart, and when not."""

import warnings

import pytest
import torch
from helpers import random_vector

import steerlens as sl
from steerlens.errors import DegenerateWarning
from steerlens.steering.batch_plans import stacked
from steerlens.steering.degenerate_replies import warn_if_degenerate
from steerlens.steering.transcripts import GateReport, Replies

WHOLE, LOOP = "the sea is wide and calm today", "no no no no no"
VECTOR = sl.SteeringVector(torch.eye(4), (0, 1, 2, 3))


def replies(n_whole, n_loops, gates=()):
    texts = (*[LOOP] * n_loops, *[WHOLE] * n_whole)
    n = len(texts)
    return Replies(("Hi.",) * n, texts, ((1,),) * n, (True,) * n, gates)


def told(given, plan, n_tokens=16):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_degenerate(given, [plan], n_tokens)
    return [str(one.message) for one in caught if one.category is DegenerateWarning]


@pytest.mark.parametrize(
    ("n_whole", "n_loops", "n_tokens", "warned"),
    [(9, 1, 16, False), (18, 2, 16, False), (8, 2, 16, True), (8, 2, 15, False), (0, 9, 99, False)],
)
def test_more_than_a_tenth_of_enough_replies_is_told_once(n_whole, n_loops, n_tokens, warned):
    plan = sl.Steering(VECTOR, [1, 2], 3.0)
    messages = told(replies(n_whole, n_loops), plan, n_tokens)
    assert len(messages) == warned
    if warned:
        assert messages[0].startswith("2 of 10 steered replies (20%) are degenerate")
        assert repr(plan) in messages[0]
        assert "calibrate_strength" in messages[0]


def test_only_what_a_steering_did_counts():
    given = replies(8, 4)
    assert not told(given, sl.Steering(VECTOR, strength=0))
    assert told(given, sl.Steering(VECTOR, strength=0, edit=sl.hooks.clamp_direction))
    [comparison] = stacked([sl.Steering(VECTOR)], len(given))
    assert not told(given, comparison)
    condition = sl.Condition(VECTOR, 0, above=0.0)
    for first, warned in ((0, True), (4, False)):  # the loops are rows 0 to 3
        is_open = torch.arange(16) >= first
        gate = GateReport(condition, torch.zeros(16, 1), is_open)
        gated = sl.Steering(VECTOR, [1], when=condition)
        assert bool(told(replies(12, 4, (gate,)), gated)) == warned


def test_generating_warns_where_the_steering_breaks_the_text(tiny_chat):
    questions = sl.load_prompts(sl.demo_file("questions.json"))["validation"][:10]
    plan = sl.Steering(random_vector(tiny_chat), [1, 2], 100.0)
    options = {"max_new_tokens": 16, "progress": False}
    with pytest.warns(DegenerateWarning, match=r"of 10 steered replies .* layers 1, 2"):
        sl.generate(tiny_chat, questions, plan, **options)
    sl.generate(tiny_chat, questions, **options)  # a warning would be an error
