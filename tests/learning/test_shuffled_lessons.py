"""The fourth arm: what learning alone does, with nothing of the wanted replies in it."""

import random

import pandas as pd
import pytest
import torch

import steerlens as sl
from steerlens.evaluation.evaluation import evaluate
from steerlens.evaluation.verdict import _few_replies
from steerlens.judges.judging import Judge
from steerlens.learning.learning import prepared
from steerlens.learning.replies import end_of_turn, reply_pairs
from steerlens.learning.shuffled_lessons import _shuffled, learned_controls

PROMPTS = [f"What is {n}?" for n in range(16)]
LESSONS = [(prompt, "No, I will not.", "It is late") for prompt in PROMPTS]
FEW = sl.Training(steps=20, batch_size=8, learning_rate=0.03, held_out=0.25)
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def vector(model):
    return sl.learn(model, LESSONS, layers=[1, 2], training=FEW, **QUIET)


@pytest.fixture(scope="module")
def controls(model, vector):
    return learned_controls(model, vector, LESSONS, 2, **QUIET)


def test_controls_are_as_long_and_named_and_different(vector, controls):
    for number, control in enumerate(controls, start=1):
        assert control.provenance["name"] == f"shuffled {number}"
        assert (control.layers, control.site) == (vector.layers, vector.site)
        torch.testing.assert_close(control.directions.norm(dim=1), vector.directions.norm(dim=1))
    one, other = controls
    assert one.cosine(other).max() < 0.999


def test_what_was_wanted_is_not_what_a_control_does(model, vector, controls):
    """Learned for both replies alike, a control prefers neither, on a prompt it has not seen."""
    pairs = [p for [p] in reply_pairs(model, [("Do you sing?", *LESSONS[0][1:])])]

    @torch.no_grad()
    def preference(which):
        logs = []
        for text in (pairs[0].wanted, pairs[0].unwanted):
            ids = torch.tensor([text.ids])
            with model.hooks(fwd_hooks=sl.Steering(which).hooks()):
                found = model(ids)[0].log_softmax(-1)[text.start - 1 : -1]
            logs.append(found.gather(1, ids[0, text.start :, None]).mean())
        return float(logs[0] - logs[1])

    assert preference(vector) > 2
    for control in controls:
        assert abs(preference(control)) < 0.4 * preference(vector)


def test_exactly_half_of_the_prompts_change_sides(model):
    job = prepared(model, LESSONS, layers=[1], training=FEW)
    end = end_of_turn(model)
    shuffled = _shuffled(job, end, random.Random(0))
    for before, after in (
        (job.lessons.learned, shuffled.learned),
        (job.lessons.held_out, shuffled.held_out),
    ):
        changed = [a for b, a in zip(before, after, strict=True) if a != b]
        assert len(changed) == len(before) // 2
        assert {pair.whole for pair in changed} == {False}
        assert {pair.unwanted for pair in changed} <= {pair.wanted for pair in before}


def test_the_same_seed_gives_the_same(model, vector, controls):
    [again] = learned_controls(model, vector, LESSONS, 1, **QUIET)
    torch.testing.assert_close(again.directions, controls[0].directions)
    [other] = learned_controls(model, vector, LESSONS, 1, seed=1, **QUIET)
    assert not torch.allclose(other.directions, again.directions)


def test_other_data_and_other_vectors_are_refused(model, vector):
    with pytest.raises(sl.SteerlensError, match="was not learned from"):
        learned_controls(model, vector, LESSONS[:8], **QUIET)
    with pytest.raises(sl.SteerlensError, match="shuffled_labels"):
        learned_controls(model, sl.SteeringVector(torch.ones(1, 64), (1,)), LESSONS, **QUIET)
    wanted = [lesson[:2] for lesson in LESSONS]
    plain = sl.learn(model, wanted, training=sl.Training(steps=1), **QUIET)
    with pytest.raises(sl.SteerlensError, match="no labels to shuffle"):
        learned_controls(model, plain, wanted, **QUIET)


def test_evaluate_takes_them_as_arms(model, vector, controls):
    length = Judge("length", lambda texts: [float(len(text)) for text in texts])
    options = {
        "judges": [length], "texts": PROMPTS[:2], "safety": PROMPTS[:2], "max_new_tokens": 4,
        **QUIET,
    }  # fmt: skip
    found = evaluate(model, sl.Steering(vector), PROMPTS[:4], controls=controls, **options)
    assert found.verdict.controls.arm.tolist() == ["shuffled 1", "shuffled 2"]
    assert "no shuffled labels" not in str(found)
    without = evaluate(model, sl.Steering(vector), PROMPTS[:4], controls=1, **options)
    assert "learned_controls() makes such controls" in str(without)


def test_a_phrase_is_called_one():
    many = pd.Series([f"reply {n}" for n in range(10)])
    few = pd.Series(["Never."] * 7 + ["No."] * 3)
    [line] = _few_replies(few, many)
    assert "2 different replies to 10 prompts (unsteered 10), 7 times “Never.”" in line
    assert _few_replies(many, many) == []
    assert _few_replies(many[:6], many) == []
    assert _few_replies(few, few) == []
