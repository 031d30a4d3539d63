"""The sentiment experiment: what is chosen, what is compared, what is shown."""

import json

import numpy as np
import pandas as pd
import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import steerlens as sl
from steerlens.data.prompt_files import load_prompts
from steerlens.evaluation.sweep_store import COLUMNS, Sweep
from steerlens.judges.judging import Judge
from steerlens.studies.sentiment import BITS, MARGIN, choose, run_sentiment

ANALYZER = SentimentIntensityAnalyzer()
VADER = Judge("mood", lambda texts: [ANALYZER.polarity_scores(text)["compound"] for text in texts])


def measured(cells):
    """A sweep of one prompt a cell: {(vector, layers, strength): (mood, bits, degenerate)}."""
    cells = {("unsteered", "", 0.0): (0.1, 2.0, 0.0), **cells}
    rows = [
        {"vector": vector, "layers": layers, "strength": strength, "positions": "all",
         "mood": mood, BITS: bits, "degeneration": broken}
        for (vector, layers, strength), (mood, bits, broken) in cells.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "mood", BITS, "degeneration"])
    return Sweep(table, {"judges": {"mood": "1", BITS: "1", "degeneration": "1"}})


def both(vector, layers, strength, up, down, bits=2.0, broken=0.0):
    return {
        (vector, layers, strength): (0.1 + up, bits, broken),
        (vector, layers, -strength): (0.1 - down, 2.0, 0.0),
    }


GOOD = both("v", "2", 0.3, 0.5, 0.4)


@pytest.mark.parametrize(
    "tempting",
    [
        both("v", "3", 0.3, 0.9, 0.3),  # one sign moves less than the lesser of the good ones
        both("v", "3", 0.3, 0.9, 0.9, bits=2.0 * MARGIN + 0.1),  # incoherent
        both("v", "3", 0.3, 0.9, 0.9, broken=0.4),  # goes round in circles
        both("v", "3", 0.3, -0.9, -0.9),  # the wrong way
        {("v", "3", 0.3): (0.9, 2.0, 0.0)},  # one sign only
    ],
)
def test_the_choice_moves_both_ways_and_stays_coherent(tempting):
    chosen = choose(measured({**tempting, **GOOD}), "mood")
    assert (chosen["vector"], chosen["layers"], chosen["strength"]) == ("v", "2", 0.3)
    assert chosen["move"] == pytest.approx(0.4)


def test_where_nothing_stays_coherent_nothing_is_chosen():
    with pytest.raises(sl.SteerlensError, match="got 1 settings, none of which changes mood"):
        choose(measured(both("v", "2", 0.3, 0.5, 0.5, bits=9.0)), "mood")


@pytest.fixture(scope="module")
def result(tiny_chat, tmp_path_factory):
    beginnings = load_prompts(sl.demo_file("beginnings.json"))
    moods = sl.ContrastiveDataset.load(sl.demo_file("moods.json")).train
    found = run_sentiment(
        tiny_chat, moods, beginnings["validation"][:10], beginnings["test"][:20], judge=VADER,
        layers=[2, (2, 3)], strengths=[0.1, 0.2], max_new_tokens=20, progress=False,
        out=tmp_path_factory.mktemp("sentiment") / "run",
    )  # fmt: skip
    return found


def test_both_signs_and_three_random_directions_stand_beside_unsteered(result):
    effects = result.effects[result.effects["judge"] == "mood"].set_index(["vector", "strength"])
    strength = result.chosen["strength"]
    expected = {("unsteered", 0.0)} | {
        (name, sign * strength)
        for name in ("mood", "random 1", "random 2", "random 3")
        for sign in (1, -1)
    }
    assert set(effects.index) == expected
    assert (effects["n"] == 20).all()
    low, middle, high = (
        effects.loc[place, "mean"]
        for place in (("mood", -strength), ("unsteered", 0.0), ("mood", strength))
    )
    assert low < middle < high
    assert result.chosen["settings"] == 2 * 2 * 2


def test_the_results_are_saved_as_numbers_replies_and_a_page(result, tmp_path):
    result.save(tmp_path)
    content = json.loads((tmp_path / "sentiment.json").read_text())
    assert content["chosen"]["layers"] in ("2", "2-3")
    assert len(content["effects"]) == 3 * 9
    assert len(pd.read_csv(tmp_path / "replies.csv")) == 9 * 20


def test_the_bars_are_the_means_with_their_intervals(result):
    figure = sl.dashboards.sentiment(result.arms)
    for bars, judge in zip(figure.data, ("mood", BITS), strict=True):
        rows = result.effects[result.effects["judge"] == judge]
        np.testing.assert_allclose(bars.y, rows["mean"])
        assert list(bars.x[:2]) == ["unsteered", "+ mood"]


def test_the_story_data_are_enough_and_share_no_prompt():
    parts = load_prompts(sl.demo_file("story-beginnings.json"))
    every = [text.casefold() for part in parts.values() for text in part]
    assert len(parts["test"]) >= 100
    assert len(set(every)) == len(every)
    assert len(sl.ContrastiveDataset.load(sl.demo_file("story-moods.json")).train.pairs) >= 40


def test_prompts_that_were_chosen_on_are_not_tested(model):
    moods = sl.ContrastiveDataset([("Good.", "Bad.")])
    with pytest.raises(sl.SteerlensError, match="got 1 prompts in both"):
        run_sentiment(model, moods, ["A", "B"], ["B", "C"], judge=VADER)
    with pytest.raises(sl.SteerlensError, match="n_random=0"):
        run_sentiment(model, moods, ["A"], ["B"], judge=VADER, n_random=0)
