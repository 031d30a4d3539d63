"""Figures of vectors hold the numbers of the explanations they show."""

import numpy as np
import pytest
import torch
from helpers import PROMPTS, random_vector, splitting_condition

import steerlens as sl
from steerlens import dashboards
from steerlens.dashboards.theme import DARK


def test_the_explained_variance_is_the_vectors_own():
    vector = sl.SteeringVector(torch.eye(2), (3, 4), explained=torch.tensor([0.25, 0.5]))
    figure = dashboards.explained_variance({"a": vector, "b": -vector})
    assert list(figure.data[0].y) == [0.25, 0.5]
    assert "1 of 2 vectors" in figure.layout.title.subtitle.text.replace("<br>", " ")
    with pytest.raises(sl.SteerlensError, match="got the vectors b without explained variance"):
        dashboards.explained_variance({"b": -vector})


def test_cosines_need_two_vectors():
    with pytest.raises(sl.SteerlensError, match="at least one more"):
        dashboards.vector_cosines({"a": sl.SteeringVector(torch.eye(2), (3, 4))}, to="a")


def test_the_lens_shows_its_tokens_strongest_first(model):
    lens = sl.interpret.logit_lens(model, random_vector(model), k=3)
    promoted, suppressed = dashboards.logit_lens(lens).data
    np.testing.assert_allclose(promoted.z, lens.promoted_by.T)
    np.testing.assert_allclose(suppressed.z, lens.suppressed_by.T)
    shown = promoted.text[0][1].replace("␣", " ").replace("&lt;", "<").replace("&gt;", ">")
    assert shown.replace("&amp;", "&") == lens.promoted[1][0]
    assert list(promoted.y) == [1, 2, 3]


def test_writers_are_blocks_by_heads_and_the_mlp(model):
    found = sl.interpret.mean_writers(model, random_vector(model), 2, PROMPTS, progress=False)
    [heat] = dashboards.writers(found).data
    assert np.shape(heat.z) == (3, model.cfg.n_heads + 1)
    np.testing.assert_allclose(heat.z[:, -1], found.mlps)
    assert heat.x[-1] == "MLP"
    assert heat.zmin == -heat.zmax


def test_a_scan_is_a_heatmap_of_tokens_and_shaded_text(model):
    scan = sl.interpret.scan_tokens(model, PROMPTS[1], random_vector(model), [7, 8])
    figure = dashboards.token_scan(scan)
    [heat] = figure.data
    np.testing.assert_allclose(heat.z, scan.values)
    assert len(figure.layout.xaxis.ticktext) == len(scan.tokens)
    assert figure.layout.shapes[0].x0 == scan.n_prompt - 0.5
    text = dashboards.token_text(scan, scan.layers[1])
    assert str(text) == "".join(scan.tokens)
    html = text._repr_html_()
    assert html.count("<span") == len(scan.tokens)
    assert f'title="{scan.values[1, 2]:.3f}"' in html
    assert "<s>" not in html  # the BOS token is text, no tag
    with pytest.raises(sl.SteerlensError, match="got layer=99"):
        dashboards.token_text(scan, 99)


def test_the_scatter_shows_one_layer_at_a_time():
    random = torch.randn(30, 3, 5)
    found = sl.interpret.principal_scatter(random + 1, random - 1, (2, 4, 6))
    figure = dashboards.principal_scatter(found)
    visible = [trace for trace in figure.data if trace.visible]
    np.testing.assert_allclose(visible[0].x, found.positive[:, 1, 0])
    np.testing.assert_allclose(visible[1].y, found.negative[:, 1, 1])
    slider = figure.layout.sliders[0]
    assert [step.label for step in slider.steps] == ["2", "4", "6"]
    assert slider.steps[0].args[0]["visible"] == [True, True, False, False, False, False]
    assert "n = 30 + 30" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_the_spectrum_shows_shares():
    values = torch.tensor([[2.0, 1.0, 0.0]])
    [line] = dashboards.singular_spectrum(sl.interpret.Spectrum((5,), values, 9)).data
    np.testing.assert_allclose(line.y, [0.8, 0.2, 0.0])


def test_the_timeline_is_filled_where_the_gate_would_be_open(model):
    condition = splitting_condition(model)
    timeline = sl.interpret.gate_timeline(model, PROMPTS[3], condition)
    figure = dashboards.gate_timeline(timeline)
    [line] = figure.data
    np.testing.assert_allclose(line.y, timeline.similarity[:, 0])
    filled = [not symbol.endswith("-open") for symbol in line.marker.symbol]
    assert filled == timeline.open.tolist()
    assert figure.layout.shapes[0].y0 == condition.threshold
    assert figure.layout.shapes[1].x0 == timeline.n_prompt - 1


def test_the_dark_figure_has_the_same_numbers():
    found = sl.interpret.Spectrum((5,), torch.tensor([[2.0, 1.0]]), 9)
    figure = dashboards.singular_spectrum(found)
    other = dashboards.dark(figure)
    assert other.layout.template.layout.paper_bgcolor == DARK.layout.paper_bgcolor
    assert figure.layout.template.layout.paper_bgcolor == "#ffffff"
    np.testing.assert_array_equal(other.data[0].y, figure.data[0].y)
