"""Results go to the figures that show them, and each number there is the result's own."""

import numpy as np
import pandas as pd
import pytest
from helpers import PROMPTS, random_vector

import steerlens as sl
from steerlens import dashboards
from steerlens.dashboards.results import degenerate_note
from steerlens.evaluation.calibration import Calibration
from steerlens.evaluation.suggestion import Suggestion
from steerlens.judges.judging import judge

tells_d = judge("d", lambda text: float("d" in text))
length = judge("length", len)
QUIET = {"max_new_tokens": 6, "progress": False}
ASKED = list(PROMPTS[:4])


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.fixture(scope="module")
def found(model, vector):
    return sl.evaluate(
        model, sl.Steering(vector, [2]), ASKED, strengths=[0.5, 1.0], controls=2,
        judges=[tells_d, length], texts=ASKED, safety=ASKED[:2], raises=False, **QUIET,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(model, vector):
    return sl.sweep(
        model, vector, ASKED, layers=[2, 3], strengths=[-1.0, 0.5, 1.0],
        judges=[length, tells_d], **QUIET,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calibration(vector):
    tried = pd.DataFrame({"strength": [-0.1, -0.5, -1.0], "kl_p95": [0.1, 0.9, np.inf]})
    return Calibration(sl.Steering(vector, [2], -0.5), -0.5, 0.9, 1.0, "met", tried)


@pytest.fixture(scope="module")
def suggestion(vector):
    table = pd.DataFrame({
        "layers": [(2,), (2, 3)], "strength": [0.5, 0.2], "kl_p95": [0.9, 0.95],
        "effect": [0.5, 0.2], "effect_low": [0.3, 0.1], "effect_high": [0.6, 0.3],
    })  # fmt: skip
    return Suggestion(sl.Steering(vector, [2], 0.5), table, 1.0, "d")


def of(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


@pytest.mark.parametrize(
    ("draw", "result"),
    [
        (dashboards.dose_response, lambda r: r["found"]),
        (dashboards.dose_response, lambda r: r["found"].effects),
        (dashboards.dose_response, lambda r: r["swept"]),
        (dashboards.dose_response, lambda r: r["swept"].summary()),
        (dashboards.layer_strength, lambda r: r["swept"]),
        (dashboards.layer_strength, lambda r: r["swept"].summary()),
        (dashboards.pareto, lambda r: r["found"]),
        (dashboards.pareto, lambda r: r["suggestion"]),
        (dashboards.pareto, lambda r: r["swept"]),
        (dashboards.rates, lambda r: r["found"]),
        (dashboards.calibration, lambda r: r["calibration"]),
        (dashboards.calibration, lambda r: {2: r["calibration"], 3: r["calibration"]}),
    ],
)
def test_each_pair_that_makes_sense_is_drawn(draw, result, found, swept, suggestion, calibration):
    results = {"found": found, "swept": swept, "suggestion": suggestion, "calibration": calibration}
    figure = draw(result(results))
    assert len(figure.data) > 0
    titles = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
    assert any(titles)


@pytest.mark.parametrize(
    ("draw", "name", "message"),
    [
        ("layer_strength", "found", "a Sweep or its summary"),
        ("pareto", "effects", "give pareto the evaluation itself"),
        ("rates", "swept", "an Evaluation, or a table"),
        ("saturation", "found", "saturation of a CastTable"),
        ("calibration", "found", "calibrate_strength"),
    ],
)
def test_other_pairs_are_refused_with_what_would_do(draw, name, message, found, swept, unchecked):
    given = {"found": found, "swept": swept, "effects": found.effects}[name]
    with pytest.raises(sl.SteerlensError, match=message):
        getattr(dashboards, draw)(given)


def test_a_heatmap_opens_on_a_steered_vector_and_notes_the_unsteered_score(swept):
    figure = dashboards.layer_strength(swept)
    summary = swept.summary()
    shown = [trace for trace in figure.data if trace.visible]
    [first] = shown
    cells = summary[(summary["vector"] == "vector") & (summary["judge"] == "length")]
    assert (list(first.y), list(first.x)) == (["2", "3"], ["-1", "0.5", "1"])
    expected = cells.pivot_table(index="layers", columns="strength", values="mean").to_numpy()
    np.testing.assert_allclose(first.z, expected, rtol=1e-6)
    assert len(figure.data) == 2
    assert figure.layout.title.text.startswith("vector: length")
    level = summary[(summary["vector"] == "unsteered") & (summary["judge"] == "length")].iloc[0]
    note = f"unsteered: {level['mean']:.3f} [{level['low']:.3f}, {level['high']:.3f}]"
    assert note in figure.layout.title.subtitle.text.replace("<br>", " ")
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["vector: length", "vector: d"]


def test_the_dose_of_an_evaluation_is_a_change_through_zero(found):
    figure = dashboards.dose_response(found)
    assert figure.layout.yaxis.title.text == "change in d"
    effects = found.effects.query("judge == 'd'").set_index(["arm", "strength"])["effect"]
    line = of(figure, "steered")
    assert list(line.x) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    for x, y in zip(line.x, line.y, strict=True):
        arm = "steered" if x > 0 else "negative"
        assert y == (effects[arm, x] if x else 0)
    level = of(figure, "unsteered")
    assert list(level.y) == [0, 0]
    assert level.x[0] < level.x[1]  # a line that can be seen
    assert "NaN" not in figure.layout.title.subtitle.text.replace("<br>", " ")
    same = dashboards.dose_response(found.effects)
    np.testing.assert_array_equal(of(same, "steered").y, line.y)


def test_the_dose_of_a_sweep_goes_through_the_unsteered_score(swept):
    figure = dashboards.dose_response(swept)
    mean = swept.summary().query("judge == 'length'").set_index(["vector", "layers", "strength"])
    line = of(figure, "vector, layers 3")
    assert list(line.x) == [-1.0, 0.0, 0.5, 1.0]
    expected = [
        mean["mean"]["unsteered", "", 0.0] if x == 0 else mean["mean"]["vector", "3", x]
        for x in line.x
    ]
    np.testing.assert_allclose(line.y, expected)


def test_the_front_of_an_evaluation_counts_effects_in_the_direction_that_was_meant(found):
    figure = dashboards.pareto(found)
    effects = found.effects.query("judge == 'd' and arm != 'unsteered'")
    kl = found.side_effects.query("measure == 'kl_mean'").set_index(["arm", "strength"])["value"]
    expected = sorted((kl[row.arm, row.strength], -row.effect) for row in effects.itertuples())
    drawn = sorted((x, y) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True))
    np.testing.assert_allclose(drawn, expected)


def test_the_front_of_a_sweep_is_against_replies_that_fell_apart(swept):
    figure = dashboards.pareto(swept)
    assert "degenerate" in figure.layout.xaxis.title.text
    table = swept.table.set_index("prompt_index")
    before = table[table["vector"] == "unsteered"]["length"]
    after = table[(table["layers"] == "3") & (table["strength"] == 0.5)]["length"]
    [y] = [
        y
        for trace in figure.data
        for (name, strength), y in zip(trace.customdata, trace.y, strict=True)
        if (name, strength) == ("vector, layers 3", "0.5")
    ]
    assert y == pytest.approx((after - before).mean())


def test_the_front_of_a_suggestion_names_its_layers(suggestion):
    figure = dashboards.pareto(suggestion)
    names = {row[0] for trace in figure.data for row in trace.customdata}
    assert names == {"layers 2", "layers 2, 3"}


def test_rates_of_an_evaluation_are_of_its_own_strength(found):
    figure = dashboards.rates(found)
    [bars] = figure.data
    means = found.effects.query("judge == 'd'").set_index(["arm", "strength"])["mean"]
    expected = {"unsteered": 0.0, "steered": 1.0, "negative": -1.0, "random 1": 1.0}
    drawn = dict(zip(bars.x, bars.y, strict=True))
    assert set(drawn) == {*expected, "random 2"}
    for arm, strength in expected.items():
        assert drawn[arm] == means[arm, strength]
    assert "d" in figure.layout.yaxis.title.text


def test_a_calibration_shows_what_was_tried_its_budget_and_what_was_found(calibration):
    figure = dashboards.calibration(calibration)
    tried, found = figure.data
    assert (list(tried.x), list(tried.y)) == ([0.1, 0.5], [0.1, 0.9])
    assert (list(found.x), list(found.y)) == ([0.5], [0.9])
    assert figure.layout.shapes[0].y0 == 1.0


def test_broken_cells_are_marked_and_said(swept):
    table = swept.table.copy()
    table.loc[(table["layers"] == "3") & (table["strength"] == 1.0), "reply"] = "no no no no"
    rest = (table["layers"] != "3") | (table["strength"] != 1.0)
    table.loc[rest, "reply"] = "I would rather not."
    broken = type(swept)(table, swept.plan)
    figure = dashboards.layer_strength(broken)
    assert figure.data[0].text.tolist() == [["", "", ""], ["", "", "×"]]
    assert "over 10 % of replies degenerate" in figure.layout.title.subtitle.text.replace(
        "<br>", " "
    )
    note = dashboards.dose_response(broken).layout.title.subtitle.text.replace("<br>", " ")
    assert "degenerate replies at vector, layers 3, strength 1 (100%)" in note
    sound = type(swept)(table[rest], swept.plan)
    assert "degenerate" not in dashboards.layer_strength(sound).layout.title.subtitle.text.replace(
        "<br>", " "
    )
    assert degenerate_note(pd.DataFrame({"degenerate": [0.1, 0.0]}), str) == ""


def test_positions_are_not_averaged_unsaid(swept):
    summary = swept.summary()
    twice = pd.concat([
        summary,
        summary[summary["vector"] != "unsteered"].assign(positions="last", mean=9.0),
    ])  # fmt: skip
    figure = dashboards.layer_strength(twice)
    titles = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert titles == ["vector, all: length", "vector, all: d",
                      "vector, last: length", "vector, last: d"]  # fmt: skip
    assert (np.asarray(figure.data[2].z) == 9).all()


def test_the_tables_of_cast_are_drawn():
    rates = pd.DataFrame(
        [("unsteered", "harmful", 0.1, 0.0, 0.2, 9), ("always", "harmful", 0.9, 0.8, 1.0, 9)],
        columns=["steering", "group", "refused", "low", "high", "n"],
    )
    assert list(dashboards.rates(rates).data[0].y) == [0.1, 0.9]
    curve = pd.DataFrame({
        "pairs": [4, 4, 8], "draw": [0, 1, 0], "f1": [0.5, 0.7, 0.9], "f1_low": [0.4, 0.6, 0.8],
        "f1_high": [0.6, 0.8, 1.0], "harmful_refused": [0.2, 0.4, 0.8],
        "harmless_refused": [0.0, 0.1, 0.0],
    })  # fmt: skip
    figure = dashboards.saturation(curve)
    np.testing.assert_allclose(of(figure, "F1").y, [0.6, 0.9])
    np.testing.assert_allclose(of(figure, "harmful refused").y, [0.3, 0.8])
