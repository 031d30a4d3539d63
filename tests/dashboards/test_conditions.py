"""Figures hold the numbers of the results they show."""

import inspect

import numpy as np
import pytest
import torch

import steerlens as sl
from steerlens import dashboards
from steerlens.dashboards import (
    condition_report,
    similarities_by_layer,
    threshold_sweep,
    vector_cosines,
)
from steerlens.steering.condition_search import search_similarities
from steerlens.steering.thresholds import Similarities


@pytest.fixture(scope="module")
def search():
    random = np.random.default_rng(0)

    def spread(shift, n):
        return random.normal(shift, 1, (n, 3)).astype(np.float32)

    return search_similarities(
        sl.SteeringVector(torch.eye(3), (1, 2, 3)),
        (1, 2, 3),
        Similarities(spread([0, 1, 2], 30), spread(0, 40)),
        Similarities(spread([0, 1, 2], 20), spread(0, 25)),
        name="planted",
    )


def test_the_spread_shows_every_prompt_at_every_layer(search):
    figure = similarities_by_layer(search)
    positive, negative = figure.data
    assert len(positive.y) == (30 + 20) * 3
    assert len(negative.y) == (40 + 25) * 3
    at_three = np.array(positive.y)[np.array(positive.x) == 3]
    expected = np.concatenate([search.chosen_on.positive[:, 2], search.scored_on.positive[:, 2]])
    np.testing.assert_array_equal(np.sort(at_three), np.sort(expected))
    assert figure.layout.shapes[0].y0 == search.candidates[0].threshold
    assert "n = 50 + 65" in figure.layout.annotations[0].text


def test_the_sweep_starts_at_the_chosen_layer_and_point(search):
    figure = threshold_sweep(search)
    best = search.candidates[0]
    visible = [trace for trace in figure.data if trace.visible]
    assert [trace.name for trace in visible] == ["F1", "precision", "recall", "chosen", "ROC"]
    assert (visible[3].x[0], visible[3].y[0]) == (best.threshold, best.f1)
    assert max(visible[0].y) == pytest.approx(best.f1)
    slider = figure.layout.sliders[0]
    assert slider.steps[slider.active].label == str(best.layers[0])
    assert figure.layout.xaxis.title.text == "threshold"


def test_each_step_of_the_slider_shows_one_layer(search):
    for figure, always in ((threshold_sweep(search), 0), (condition_report(search), 2)):
        for index, step in enumerate(figure.layout.sliders[0].steps):
            shown = step.args[0]["visible"]
            assert len(shown) == len(figure.data)
            assert all(shown[:always])
            assert np.flatnonzero(shown[always:]).tolist() == list(range(5 * index, 5 * index + 5))


def test_vector_cosines_are_the_vectors_own():
    a, b = (sl.SteeringVector(torch.randn(3, 8), (1, 2, 3)) for _ in range(2))
    figure = vector_cosines({"a": a, "b": b}, to="b")
    np.testing.assert_allclose(figure.data[0].y, a.cosine(b).numpy(), atol=1e-6)


def test_the_matrix_of_cosines_is_the_vectors_own_at_each_layer():
    a, b, c = (sl.SteeringVector(torch.randn(3, 8), (1, 2, 3)) for _ in range(3))
    figure = dashboards.cosine_matrix({"a": a, "b": b, "c": c})
    for row, step in enumerate(figure.layout.sliders[0].steps):
        heat = figure.data[step.args[0]["visible"].index(True)]
        assert heat.z[0][1] == pytest.approx(a.cosine(b)[row].item())
        assert heat.z[2][2] == pytest.approx(1)
    with pytest.raises(sl.SteerlensError, match="at least two"):
        dashboards.cosine_matrix({"a": a})


def test_a_report_is_one_page_that_opens_offline(search, tmp_path):
    condition_report(search).write_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "planted" in page
    assert "<script src=" not in page


def test_very_many_prompts_are_drawn_as_quartiles_and_curves_thinned():
    random = np.random.default_rng(0)
    sides = [random.normal(shift, 1, (6000, 2)).astype(np.float32) for shift in (1, 0)]
    many = Similarities(*sides)
    search = search_similarities(sl.SteeringVector(torch.eye(2), (4, 5)), (4, 5), many, many)
    positive = similarities_by_layer(search).data[0]
    both = np.concatenate([sides[0], sides[0]])
    np.testing.assert_allclose(positive.median, np.median(both, axis=0))
    np.testing.assert_allclose(positive.q3, np.quantile(both, 0.75, axis=0))
    assert (positive.upperfence <= both.max(axis=0)).all()
    figure = threshold_sweep(search)
    shown = next(trace for trace in figure.data if trace.visible)
    assert len(shown.x) <= 500
    assert max(shown.y) == search.candidates[0].f1
    assert len(condition_report(search).to_json()) < 300_000


def test_the_index_names_every_figure():
    assert sorted(dashboards.__all__) == list(dashboards.__all__)
    for name in dashboards.__all__:
        member = getattr(dashboards, name)
        assert not callable(member) or member.__doc__
        assert f"`{name}`" in dashboards.__doc__ or not inspect.isfunction(member) or name == "dark"
