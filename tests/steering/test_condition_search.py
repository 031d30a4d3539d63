"""The exact search against brute force, planted truth, and the real model."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.steering import condition_search
from steerlens.steering.condition_search import (
    ConditionSearch,
    search_conditions,
    search_similarities,
)
from steerlens.steering.recipes import CAST, find_condition
from steerlens.steering.similarities import cosine
from steerlens.steering.thresholds import Similarities, find_thresholds

values = st.integers(-4, 4).map(lambda n: n / 8)  # many ties


def similarities(rows):
    return arrays(np.float32, st.tuples(rows, st.just(3)), elements=values)


def brute_force(sides, layers, combine):
    """Best F1 by trying every threshold between and below the values, one by one."""
    truth = np.r_[np.ones(len(sides.positive)), np.zeros(len(sides.negative))]
    best = {}
    for side, sign in (("above", 1), ("below", -1)):
        for size in range(1, combine + 1):
            for columns in combinations(range(len(layers)), size):
                flat = sign * np.concatenate(sides)[:, list(columns)].astype(float)
                cuts = np.unique(flat)
                tries = [*((cuts[1:] + cuts[:-1]) / 2), cuts[0] - 1]
                scores = [f1_score(truth, (flat > cut).any(axis=1)) for cut in tries]
                best[side, tuple(layers[c] for c in columns)] = max(scores)
    return best


@settings(deadline=None, max_examples=40)
@given(similarities(st.integers(1, 9)), similarities(st.integers(1, 9)), st.integers(1, 3))
def test_the_exact_search_equals_brute_force(positive, negative, combine):
    sides, layers = Similarities(positive, negative), (2, 5, 7)
    found = find_thresholds(sides, layers, combine)
    expected = brute_force(sides, layers, combine)
    assert {(c.side, c.layers): c.f1 for c in found} == pytest.approx(expected)
    assert [c.f1 for c in found] == sorted((c.f1 for c in found), reverse=True)


@settings(deadline=None, max_examples=40)
@given(
    similarities(st.integers(1, 9)),
    similarities(st.integers(1, 9)),
    st.sampled_from([None, 1, 2, 3]),
)
def test_every_candidate_keeps_the_f1_that_it_claims(positive, negative, combine):
    """The claimed F1 belongs to the returned threshold, unrounded, as the condition applies it."""
    vector = sl.SteeringVector(torch.eye(3), (2, 5, 7))
    sides = Similarities(positive, negative)
    search = search_similarities(vector, (2, 5, 7), sides, sides, combine=combine)
    for candidate in search.candidates:
        scored = search.score(search.condition(candidate))
        assert scored.f1.value == pytest.approx(candidate.f1)


def test_ties_go_to_the_widest_gap():
    positive = np.array([[0.9, 0.52]], np.float32)
    negative = np.array([[0.1, 0.48]], np.float32)
    best = find_thresholds(Similarities(positive, negative), (0, 1))[0]
    assert (best.layers, best.side) == ((0,), "above")
    assert best.threshold == pytest.approx(0.5)
    assert best.margin == pytest.approx(0.4)


def test_the_curve_ends_where_everything_fires():
    random = np.random.default_rng(0)
    sides = Similarities(
        random.normal(0.5, 1, (40, 2)).astype(np.float32),
        random.normal(0, 1, (60, 2)).astype(np.float32),
    )
    search = search_similarities(sl.SteeringVector(torch.eye(2), (0, 1)), (0, 1), sides, sides)
    for side in ("above", "below"):
        curve = search.curve(1, side)
        assert curve.recall[-1] == curve.false_alarms[-1] == 1
        assert (np.diff(curve.recall) >= 0).all()
        best = next(c for c in search.candidates if c.layers == (1,) and c.side == side)
        assert curve.f1.max() == pytest.approx(best.f1)


def test_chosen_on_one_half_and_scored_on_the_other(model):
    positive = [f"I love the number {n}." for n in range(12)]
    negative = [f"We hate the colour {n}." for n in range(10)]
    vector = sl.extract(model, (positive[:10], negative), tokens="all", progress=False)
    search = search_conditions(model, vector, (positive, negative), progress=False)
    assert (len(search.chosen_on.positive), len(search.scored_on.positive)) == (6, 6)
    assert (len(search.chosen_on.negative), len(search.scored_on.negative)) == (5, 5)
    assert search.scores.n_positive == 6


def test_the_gate_sees_what_the_search_saw(model):
    """The found condition fires in a run on the very prompts it fired on in the search."""
    positive = [f"I love the number {n}." for n in range(12)]
    negative = [f"We hate the colour {n}." for n in range(12)]
    vector = sl.extract(model, (positive, negative), tokens="all", progress=False)
    search = search_conditions(
        model, vector, (positive, negative), similarity=cosine, progress=False
    )
    condition = search.best
    prompts = positive + negative
    pooled = read_residual(model, prompts, condition.layers, tokens="all", progress=False)
    measured = torch.stack(
        [condition.measure(pooled[:, i], layer) for i, layer in enumerate(condition.layers)], dim=1
    )
    last = vector.at([3])
    replies = sl.generate(
        model, prompts, sl.Steering(last, when=condition), max_new_tokens=1, progress=False
    )
    torch.testing.assert_close(replies.gates[0].similarity, measured, atol=1e-5, rtol=0)
    assert replies.gates[0].open.tolist() == condition.fires(measured).tolist()


def test_what_is_found_is_one_condition_that_steerings_share(model):
    """Two gates for one condition would read it twice, and list it twice."""
    positive = [f"I love the number {n}." for n in range(6)]
    negative = [f"We hate the colour {n}." for n in range(6)]
    vector = sl.extract(model, (positive, negative), tokens="all", progress=False)
    search = search_conditions(
        model, vector, (positive, negative), layers=[0, 1], tokens="last", progress=False
    )
    assert search.best is search.best
    assert search.scores is search.scores
    plans = [sl.Steering(vector, [layer], when=search.best) for layer in (2, 3)]
    replies = sl.generate(model, positive[:2], plans, max_new_tokens=1, progress=False)
    assert [gate.condition for gate in replies.gates] == [search.best]


def test_a_search_shows_its_f1_without_resampling_and_prints_its_interval(monkeypatch):
    sides = Similarities(np.array([[0.9], [0.8], [0.1]]), np.array([[0.2], [0.0]]))
    search = search_similarities(sl.SteeringVector(torch.eye(1), (0,)), (0,), sides, sides)
    assert search.scores.f1.value == pytest.approx(6 / 7)
    assert str(search).endswith(f"F1 {search.scores.f1} on 3 positive and 2 negative prompts")
    monkeypatch.setattr(condition_search, "score_decisions", None)
    assert "F1 0.857 on 3 positive" in repr(search)


def test_the_json_round_trip_loses_nothing(model, tmp_path):
    positive = [f"I love the number {n}." for n in range(8)]
    negative = [f"We hate the colour {n}." for n in range(8)]
    vector = sl.extract(model, (positive, negative), tokens="all", progress=False)
    search = search_conditions(
        model, vector, (positive, negative), combine=2, name="love", progress=False
    )
    search.save(tmp_path / "search.json")
    again = ConditionSearch.load(tmp_path / "search.json", vector)
    assert again.candidates == search.candidates
    assert again.scores == search.scores
    assert repr(again.best) == repr(search.best)


def test_bad_input_is_refused_by_name(model, tmp_path):
    vector = sl.SteeringVector(torch.randn(4, 32), (0, 1, 2, 3))
    pair = (["Good morning.", "Good day."], ["Bad morning.", "Bad day."])
    with pytest.raises(sl.SteerlensError, match="both as positive and as negative"):
        search_conditions(model, vector, (pair[0], pair[0]), progress=False)
    with pytest.raises(sl.SteerlensError, match="both in data and in held_out"):
        search_conditions(model, vector, pair, held_out=pair, progress=False)
    with pytest.raises(
        sl.SteerlensError, match="got 1 positive and 1 negative prompts; expected at least two"
    ):
        search_conditions(model, vector, (pair[0][:1], pair[1][:1]), progress=False)
    with pytest.raises(sl.SteerlensError, match="combine=9"):
        search_conditions(model, vector, pair, combine=9, progress=False)
    with pytest.raises(sl.SteerlensError, match="no direction for layer 3"):
        search_conditions(model, vector.at([0, 1]), pair, layers=[3], progress=False)
    (tmp_path / "broken.json").write_text('{"format": "steerlens.search/1", "layers": [')
    with pytest.raises(sl.SteerlensError, match=r"broken\.json.*line 1"):
        ConditionSearch.load(tmp_path / "broken.json", vector)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(sl.SteerlensError, match="not a condition search"):
        ConditionSearch.load(tmp_path / "other.json", vector)


def test_the_mean_of_layers_finds_what_no_layer_shows():
    """Planted: each layer holds the truth under its own noise and scale."""
    random = np.random.default_rng(0)
    scales = np.array([1.0, 30.0, 0.01, 5.0])

    def side(truth, n):
        return ((truth + 2 * random.normal(size=(n, 4))) * scales).astype(np.float32)

    chosen, scored = (Similarities(side(2, 200), side(-2, 200)) for _ in range(2))
    vector = sl.SteeringVector(torch.eye(4), (1, 2, 3, 5))
    mean, single = (
        search_similarities(vector, vector.layers, chosen, scored, combine=combine)
        for combine in (None, 1)
    )
    assert mean.scores.f1.low > single.scores.f1.high
    assert mean.best.layers_read == vector.layers
    curve = mean.curve(None, "above")
    assert curve.f1.max() == pytest.approx(mean.candidates[0].f1)
    assert [c.side for c in mean.candidates] == ["above", "below"]


def test_by_default_the_search_reads_as_the_vector_was_read(model):
    pairs = [f"I love the number {n}." for n in range(6)], [f"We hate blue {n}." for n in range(6)]
    vector = sl.extract(model, pairs, tokens="user", sinks=True, progress=False)
    assert vector.provenance["estimator"] == "linear_discriminant"
    search = search_conditions(model, vector, pairs, progress=False)
    assert (search.tokens, search.sinks, search.layers) == ("user", True, (1, 2))
    assert search.combine is None
    suffixes = sl.ContrastiveDataset([("Hi.", "Hi.")], suffixes=[("No, I", "Sure, I")])
    steered = sl.extract(model, suffixes, tokens="suffix", progress=False)
    assert steered.provenance["estimator"] == "pca_pairwise"
    found = search_conditions(model, steered, pairs, progress=False)
    assert (found.tokens, found.sinks) == ("last", False)


def test_casts_own_recipe_is_one_argument_away(model):
    pairs = [f"I love the number {n}." for n in range(6)], [f"We hate blue {n}." for n in range(6)]
    more = [f"I love the word {n}." for n in range(6)], [f"We hate red {n}." for n in range(6)]
    found = find_condition(model, pairs, more, recipe=CAST, progress=False)
    vector = sl.extract(
        model, pairs, sl.estimators.pca_pairwise, tokens="all", sinks=True, progress=False
    )
    assert torch.equal(found.vector.directions, vector.directions)
    assert (found.combine, found.tokens, found.sinks) == (1, "all", True)
    assert found.similarity is sl.similarities.cast_similarity
    assert found.layers == (0, 1, 2, 3)
