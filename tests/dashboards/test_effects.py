"""Figures of effects hold the numbers of their tables, gaps and all."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.dashboards import dose_response, layer_strength, pareto, rates, saturation, sentiment
from steerlens.dashboards.tradeoffs import pareto_front

CELLS = [
    (vector, layers, strength, judge)
    for vector in ("refuse", "cheer")
    for layers in ("2–3", "10–11")
    for strength in (0.2, 0.4)
    for judge in ("refusal", "degeneration")
]


@pytest.fixture
def sweep():
    table = pd.DataFrame(CELLS, columns=["vector", "layers", "strength", "judge"])
    table["mean"] = np.linspace(0, 0.9, len(table))
    return table.assign(low=table["mean"] - 0.05, high=table["mean"] + 0.05, n=60)


def of(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_each_cell_of_the_heatmap_is_a_row_of_the_sweep(sweep):
    figure = layer_strength(sweep)
    assert len(figure.data) == 4
    first = figure.data[0]
    assert (list(first.y), list(first.x)) == (["2–3", "10–11"], ["0.2", "0.4"])
    chosen = sweep[(sweep["vector"] == "refuse") & (sweep["judge"] == "refusal")]
    np.testing.assert_allclose(np.ravel(first.z), chosen["mean"], atol=1e-6)
    np.testing.assert_allclose(np.ravel(first.customdata[..., 2]), 60)
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.args[0]["visible"].index(True) for button in buttons] == [0, 1, 2, 3]
    assert figure.layout.xaxis.title.text == "strength"


def test_gaps_stay_gaps_and_are_counted(sweep):
    alone = sweep[(sweep["vector"] == "refuse") & (sweep["judge"] == "refusal")].copy()
    alone.loc[alone.index[1], "mean"] = np.nan
    figure = layer_strength(alone.drop(alone.index[2]))
    assert np.isnan(figure.data[0].z).sum() == 2
    assert "2 of 4 cells empty" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_too_many_choices_are_refused(sweep):
    many = pd.concat([sweep.assign(vector=f"v{n}") for n in range(20)])
    with pytest.raises(sl.SteerlensError, match="got 40 vectors × judges"):
        layer_strength(many)


@pytest.fixture
def doses():
    arms = ["steered", "negative", "random 1", "random 2", "shuffled 1", "unsteered"]
    rows = [
        (arm, strength, judge, mean, mean - 0.1, mean + 0.1, 50)
        for judge in ("refusal", "bits")
        for arm, slope in zip(arms, (1, -1, 0.1, 0.3, 0.2, 0), strict=True)
        for strength in ((0.1, 0.2, 0.4) if arm != "unsteered" else (0.0,))
        for mean in [slope * strength]
    ]
    return pd.DataFrame(rows, columns=["arm", "strength", "judge", "mean", "low", "high", "n"])


def test_the_dose_has_its_floor_and_its_side_effect_panel(doses):
    figure = dose_response(doses)
    steered = of(figure, "steered")
    assert (list(steered.x), list(steered.y)) == ([0.1, 0.2, 0.4], [0.1, 0.2, 0.4])
    floor = of(figure, "random (2 arms)")
    np.testing.assert_allclose(floor.y, [0.02, 0.04, 0.08])
    band = figure.data[0]
    np.testing.assert_allclose(band.y[:3], np.array([0.01, 0.02, 0.04]) - 0.1)
    np.testing.assert_allclose(band.y[3:], np.array([0.12, 0.06, 0.03]) + 0.1)
    level = of(figure, "unsteered")
    assert (list(level.x), list(level.y)) == ([0.0, 0.4], [0.0, 0.0])
    assert [note.text for note in figure.layout.annotations] == ["refusal", "bits"]
    assert {trace.yaxis for trace in figure.data} == {"y", "y2"}
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert len(named) == len(set(named)) == 5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_front_is_what_no_other_setting_beats(settings):
    kl, effect = (np.array(column, dtype=float) for column in zip(*settings, strict=True))
    beaten = [
        any(k <= k0 and e >= e0 and (k, e) != (k0, e0) for k, e in settings) for k0, e0 in settings
    ]
    assert pareto_front(kl, effect).tolist() == [not is_beaten for is_beaten in beaten]


def test_the_front_is_marked_and_settings_without_kl_are_counted():
    table = pd.DataFrame(
        {
            "name": ["weak", "<b>bad</b>", "strong", "lost"],
            "strength": [0.1, 0.2, 0.3, 0.4],
            "effect": [0.2, 0.1, 0.9, 0.5],
            "kl": [0.1, 0.2, 0.3, np.nan],
        }
    ).assign(low=0.0, high=1.0)
    figure = pareto(table)
    others, front = figure.data
    assert (list(front.x), list(front.y)) == ([0.1, 0.3], [0.2, 0.9])
    assert others.customdata[0][0] == "&lt;b&gt;bad&lt;/b&gt;"
    np.testing.assert_allclose(front.error_y.array, [0.8, 0.1])
    note = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "3 settings, 2 on the front" in note
    assert "1 empty" in note
    with pytest.raises(sl.SteerlensError, match="nothing to draw"):
        pareto(table.assign(kl=np.nan))


def test_sentiment_stands_beside_coherence():
    table = pd.DataFrame(
        {
            "arm": ["unsteered", "happy"],
            "polarity": [0.1, -0.2],
            "low": [0.0, -0.3],
            "high": [0.3, 0.0],
            "bits_per_character": [1.0, 2.5],
            "n": [9, 9],
        }
    )
    polarity, bits = sentiment(table).data
    assert (list(polarity.x), list(polarity.y)) == (["unsteered", "happy"], [0.1, -0.2])
    np.testing.assert_allclose(polarity.error_y.array, [0.2, 0.2])
    assert list(bits.y) == [1.0, 2.5]
    with pytest.raises(sl.SteerlensError, match="got the arms happy more than once"):
        sentiment(pd.concat([table, table.iloc[1:]]))


def test_saturation_is_a_line_a_measure_over_pairs():
    rows = [(n, measure, n / 100, 0, 1, 30) for n in (8, 2, 32) for measure in ("F1", "refused")]
    figure = saturation(
        pd.DataFrame(rows, columns=["pairs", "measure", "value", "low", "high", "n"])
    )
    assert list(of(figure, "F1").x) == [2, 8, 32]
    assert list(of(figure, "F1").y) == [0.02, 0.08, 0.32]
    assert figure.layout.xaxis.type == "log"
    assert "n = 30 each" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_rates_are_one_bar_a_part_and_group():
    rows = [("I", "harmful", "refused", 0.9, 0.8, 0.95, 20), ("I", "all", "broken", 0, 0, 0.1, 40)]
    table = pd.DataFrame(rows, columns=["part", "group", "measure", "value", "low", "high", "n"])
    [bar] = rates(table).data
    assert (bar.name, list(bar.x), list(bar.y)) == ("harmful", ["I"], [0.9])
    assert rates(table, "broken").data[0].name == "all"
    assert bar.offset[0] == pytest.approx(-bar.width / 2)  # alone, it stands on its tick
    with pytest.raises(sl.SteerlensError, match="refused, broken"):
        rates(table, "sung")


def test_a_hundred_thousand_rows_make_small_figures():
    random = np.random.default_rng(0)
    n = 100_000
    value = random.random(n)
    common = {"low": value - 0.1, "high": value + 0.1, "n": 10, "strength": random.random(n)}
    texts = {"judge": "refusal", "vector": "v", "arm": "steered", "measure": "F1", "name": "s"}
    table = pd.DataFrame({**texts, **common, "mean": value, "value": value, "effect": value})
    table = table.assign(layers=random.integers(0, 40, n), kl=random.random(n))
    table = table.assign(pairs=random.integers(1, 9999, n))
    for draw, figure in (
        (draw, draw(table)) for draw in (layer_strength, dose_response, pareto, saturation)
    ):
        assert len(figure.to_json()) < 300_000, draw
        assert "100,000" in figure.layout.title.subtitle.text.replace("<br>", " "), draw
        assert any(
            word in figure.layout.title.subtitle.text.replace("<br>", " ")
            for word in ("merged", "averaged")
        )


def test_merged_cells_average_by_n(sweep):
    doubled = pd.concat([sweep, sweep.assign(mean=1.0, n=180)])
    figure = layer_strength(doubled)
    np.testing.assert_allclose(figure.data[0].z[0, 0], 0.75 * 1.0 + 0.25 * sweep["mean"][0])
    assert figure.data[0].customdata[0, 0, 2] == 240


def test_every_axis_is_named(sweep, doses):
    for figure in (layer_strength(sweep), dose_response(doses)):
        axes = itertools.chain(figure.select_xaxes(), figure.select_yaxes())
        titles = [axis.title.text for axis in axes if axis.matches is None]
        assert all(titles)
