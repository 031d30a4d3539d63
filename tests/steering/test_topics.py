"""Topics fitted together: in gates, rules and figures like any other condition."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_vector
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.dashboards.conditions import gate_timeline as drawn_timeline
from steerlens.dashboards.conditions import topic_confusion
from steerlens.interpret.token_scans import gate_timeline
from steerlens.steering.topics import TopicCondition, extract_topics, leads, score_topics

THINGS = {
    "food": ["bread", "soup", "rice", "cake", "cheese", "beans", "fish", "eggs"],
    "sea": ["ships", "waves", "sails", "whales", "tides", "crabs", "ports", "fog"],
    "maths": ["sums", "sets", "graphs", "roots", "proofs", "rings", "limits", "primes"],
}
FORMS = {"food": "Cook me some {}.", "sea": "We sailed past {}.", "maths": "Let x be {}, then?"}


def prompts(which):
    return {name: [FORMS[name].format(thing) for thing in THINGS[name][which]] for name in THINGS}


@pytest.fixture(scope="module")
def topics(model):
    return extract_topics(model, prompts(slice(0, 4)), progress=False)


@given(st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_a_lead_is_over_the_best_of_the_others(scores):
    table = torch.tensor(scores).float()
    expected = [[row[at] - max(row[:at] + row[at + 1 :]) for at in range(3)] for row in scores]
    assert leads(table).tolist() == expected


def test_one_condition_fires_and_it_is_that_of_the_highest_score(model, topics):
    asked = [text for side in prompts(slice(4, 8)).values() for text in side]
    read = read_residual(model, asked, topics.layers, tokens="user", progress=False)
    best = topics.scores(read).argmax(dim=1)
    plans = [
        sl.Steering(random_vector(model), [3], when=condition)
        for condition in topics.conditions.values()
    ]
    options = {"max_new_tokens": 2, "progress": False}
    batch = sl.generate(model, asked, plans, **options)
    plain = sl.generate(model, asked, plans, use_cache=False, **options)
    alone = [sl.generate(model, [text], plans, **options) for text in asked]
    for index, name in enumerate(topics.names):
        assert batch.gates[index].condition is topics.conditions[name]
        expected = leads(topics.scores(read))[:, [index]]
        for gate in (batch.gates[index], plain.gates[index]):
            assert gate.open.tolist() == (best == index).tolist()
            torch.testing.assert_close(gate.compared, expected, atol=1e-2, rtol=1e-3)
        each = torch.cat([one.gates[index].compared for one in alone])
        torch.testing.assert_close(each, expected, atol=1e-2, rtol=1e-3)
    assert batch.tokens == plain.tokens == tuple(one.tokens[0] for one in alone)


def test_rules_take_them_like_any_other_condition(model, topics):
    vector = random_vector(model)
    [plan] = sl.apply_rules(
        "if (food or sea) and not maths then steer",
        topics.conditions,
        {"steer": sl.Steering(vector, [3])},
    )
    asked = prompts(slice(4, 6))
    texts = [text for side in asked.values() for text in side]
    replies = sl.generate(model, texts, plan, max_new_tokens=3, progress=False)
    fired = {gate.condition.name: gate.open for gate in replies.gates}
    steered = (fired["food"] | fired["sea"]) & ~fired["maths"]
    unsteered = sl.generate(model, texts, max_new_tokens=3, progress=False)
    for row in (~steered).nonzero().flatten().tolist():
        assert replies.tokens[row] == unsteered.tokens[row]
    assert "lead over 2 other topics" in repr(topics.conditions["sea"])
    assert "lead over 2" in topics.conditions["sea"]._repr_html_()


def test_scores_are_counted_and_drawn(model, topics):
    scores = score_topics(model, topics, prompts(slice(4, 8)), progress=False)
    assert scores.confusion.sum(axis=1).tolist() == [4, 4, 4]
    figure = topic_confusion(scores)
    assert np.array_equal(figure.data[0].text, scores.confusion)
    for index, name in enumerate(topics.names):
        hits = scores.confusion[index, index]
        alarms = scores.confusion[:, index].sum() - hits
        assert scores.f1[name].value == pytest.approx(2 * hits / (4 + hits + alarms))


def test_thresholds_are_chosen_on_validation_prompts(model):
    train, validation = prompts(slice(0, 4)), prompts(slice(4, 8))
    wins = extract_topics(model, train, progress=False)
    cut = extract_topics(model, train, validation=validation, progress=False)
    assert wins.thresholds == (0.0,) * 3
    best, at_zero = (score_topics(model, one, validation, progress=False) for one in (cut, wins))
    for name in cut.names:
        assert best.f1[name].value >= at_zero.f1[name].value


def test_a_timeline_shows_the_lead(model, topics):
    timeline = gate_timeline(model, "We sailed past whales.", topics.conditions["sea"])
    figure = drawn_timeline(timeline)
    [line] = [trace for trace in figure.data if trace.name.startswith("mean of layers")]
    seen = timeline.condition.compared(timeline.similarity)
    np.testing.assert_allclose(line.y, seen[:, 0])


def test_bad_groups_are_refused(model, topics):
    with pytest.raises(sl.SteerlensError, match="at least two groups"):
        extract_topics(model, {"one": ["Hi."]}, progress=False)
    with pytest.raises(sl.SteerlensError, match="both of 'one' and of 'other'"):
        extract_topics(model, {"one": ["Hi."], "other": ["Hi.", "Why?"]}, progress=False)
    with pytest.raises(sl.SteerlensError, match=r"expected those of the topics: food, sea, maths"):
        score_topics(model, topics, {"food": ["Hi."], "sea": ["Why?"]}, progress=False)
    with pytest.raises(sl.SteerlensError, match="expected one of food, sea, maths"):
        topics.vector("music")
    with pytest.raises(sl.SteerlensError, match=r"that Topics\.conditions made"):
        repr(replace(topics.conditions["sea"], topics=None))
    assert isinstance(topics.conditions["sea"], TopicCondition)
