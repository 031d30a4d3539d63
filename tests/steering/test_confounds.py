"""What else tells prompts apart: planted lengths and words are found out, and chance is chance."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.dashboards.conditions import condition_report
from steerlens.intervals import f1_difference
from steerlens.steering.condition_search import ConditionSearch, search_similarities
from steerlens.steering.confounds import (
    CALIPER,
    Confounds,
    compare,
    decided_by_words,
    matched_by_length,
    verdict,
)
from steerlens.steering.thresholds import Similarities


def drawn(seed, n, longer=0.0):
    random = np.random.default_rng(seed)
    sides = random.normal(50 + longer, 10, (n, 1)), random.normal(50, 10, (n, 1))
    return Similarities(*(side.round() for side in sides))


def told(fired, confounds):
    comparisons = compare(fired, confounds, seed=0)
    return {one.baseline: one for one in comparisons}, verdict(comparisons)


def random_words(seed, n):
    random = np.random.default_rng(seed)
    return random.random(n) < 0.5, random.random(n) < 0.5


def test_a_length_detector_is_found_out():
    confounds = Confounds(drawn(0, 300, 20), drawn(1, 300, 20), random_words(2, 300))
    cut = confounds.by_length()
    beside, said = told(cut, confounds)
    assert "explained by length" in said
    assert beside["length"].difference.value == 0
    at_one_length = beside["majority, prompts of equal length"]
    assert at_one_length.difference.low <= 0
    assert 50 < at_one_length.n < 500


def test_what_sees_the_truth_is_better_than_both():
    confounds = Confounds(drawn(0, 300, 20), drawn(1, 300, 20), random_words(2, 300))
    random = np.random.default_rng(3)
    sees = random.random(300) < 0.97, random.random(300) < 0.03
    beside, said = told(sees, confounds)
    assert said == "better than length and words"
    assert all(one.difference.low > 0 for one in beside.values())


def test_what_the_words_give_away_is_told():
    random = np.random.default_rng(3)
    sees = random.random(300) < 0.97, random.random(300) < 0.03
    confounds = Confounds(drawn(0, 300), drawn(1, 300), sees)
    beside, said = told(sees, confounds)
    assert said == "no better than its words"
    assert beside["majority"].f1.value == pytest.approx(2 / 3)


lengths = st.lists(st.integers(1, 40).map(float), min_size=1, max_size=12).map(np.array)


@given(lengths, lengths)
def test_matched_prompts_pair_off_in_length(positive, negative):
    mine, theirs = matched_by_length(positive, negative)
    assert len({*mine}) == len(mine) == len(theirs) == len({*theirs})
    reach = CALIPER * np.median(np.concatenate([positive, negative]))
    assert (abs(positive[mine] - negative[theirs]) <= reach).all()
    left = (np.delete(positive, mine), np.delete(negative, theirs))
    assert not (abs(left[0][:, None] - left[1][None]) <= reach).any()


def test_a_bag_of_words_finds_a_word_and_takes_any_text():
    fitted = [f"a bomb {n}" for n in range(20)], [f"a cake {n}" for n in range(20)]
    positive, negative = decided_by_words(fitted, (["my bomb", "the bomb!"], ["cake", "?!"]))
    assert positive.all()
    assert not negative[0]
    assert decided_by_words((["?"], ["!"]), (["."], [","]))[0].shape == (1,)


def test_the_interval_of_a_difference_covers_it():
    """Of two decisions on the same prompts, of known rates."""
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        easy = random.random((2, 200))
        first = easy[0] < 0.9, easy[1] < 0.1
        second = (random.random(200) < 0.8) & first[0], (random.random(200) < 0.2) | first[1]
        interval = f1_difference(first, second, seed=0, resamples=500)
        truth = 2 * 0.9 / (1 + 0.9 + 0.1) - 2 * 0.72 / (1 + 0.72 + 0.28)
        covered += interval.low <= truth <= interval.high
    assert 88 <= covered <= 100


def test_a_search_compares_shows_saves_and_loads(model, tmp_path):
    positive = [f"I love the big number {n} very much." for n in range(24)]
    negative = [f"We hate {n}." for n in range(24)]
    vector = sl.extract(model, (positive[:12], negative[:12]), progress=False)
    search = sl.search_conditions(model, vector, (positive, negative), progress=False)
    assert [one.baseline for one in search.comparisons][:3] == ["length", "words", "majority"]
    assert search.comparisons[0].f1.value == 1  # every positive is longer
    assert "explained by length" in search.verdict
    assert search.verdict in str(search)
    figure = condition_report(search)
    assert any(search.verdict in note.text for note in figure.layout.annotations)
    search.save(tmp_path / "search.json")
    again = ConditionSearch.load(tmp_path / "search.json", vector)
    assert again.comparisons == search.comparisons
    assert (again.sinks, again.combine) == (search.sinks, search.combine)


def test_without_prompts_there_is_no_verdict():
    sides = Similarities(np.ones((3, 1)), np.zeros((3, 1)))
    search = search_similarities(sl.SteeringVector(torch.eye(1), (0,)), (0,), sides, sides)
    assert (search.comparisons, search.verdict) == ((), "")
