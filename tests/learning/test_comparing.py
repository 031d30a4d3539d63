"""Methods at equal side effect: budgets, intervals, and what is kept on the disk."""

import json

import pandas as pd
import pytest
import torch

import steerlens as sl
from steerlens.dashboards import method_comparison
from steerlens.evaluation.kl_search import percentiles
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.intervals import rate
from steerlens.judges.judging import Judge
from steerlens.learning import comparing
from steerlens.learning.comparing import METHODS, compare
from steerlens.models.progress import watching
from steerlens.models.tokenizing import tokenize

DATA = sl.ContrastiveDataset(
    [(f"What is {n}?", f"What is {n}?") for n in range(12)], [("I will not.", "It is so.")]
)
PROMPTS = ["Do you sing?", "Where are the ships?", "Who is it?"]
LETTER = Judge("has an e", lambda texts: [float("e" in text) for text in texts])
BUDGET = 0.2
OPTIONS = {
    "methods": {name: METHODS[name] for name in ("mean_difference", "reply_likelihood")},
    "judge": LETTER, "kl_budget": BUDGET, "degenerate_budget": 1.0, "max_new_tokens": 6, "layer": 1,
    "training": sl.Training(steps=6, batch_size=4, learning_rate=0.03),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def found(model, folder):
    return compare(model, DATA, PROMPTS, out=folder, **OPTIONS)


def test_every_method_spends_the_same_budget(model, found, folder):
    rows = tokenize(model, neutral_texts()[:24], chat=False)
    for row in found.table.iloc[1:].itertuples():
        vector = sl.SteeringVector.load(folder / f"{row.method}.safetensors")
        plan = sl.Steering(vector, strength=row.strength)
        [kl] = percentiles(model, rows, [plan], progress=False)
        assert kl == pytest.approx(row.kl, rel=1e-3)
        assert 0.9 * BUDGET < kl <= BUDGET


def test_vectors_are_those_of_extract_and_learn(model, found, folder):
    kept = {n: sl.SteeringVector.load(folder / f"{n}.safetensors") for n in OPTIONS["methods"]}
    extracted = sl.extract(
        model, DATA, sl.estimators.mean_difference, tokens="suffix", layers=[1], progress=False
    )
    learned = sl.learn(model, DATA, layers=1, training=OPTIONS["training"], progress=False)
    for name, expected in (("mean_difference", extracted), ("reply_likelihood", learned)):
        torch.testing.assert_close(kept[name].directions, expected.directions)


def test_scores_are_the_judges_of_the_replies_with_their_intervals(model, found, folder):
    for row in found.table.itertuples():
        steering = None
        if row.method != "unsteered":
            vector = sl.SteeringVector.load(folder / f"{row.method}.safetensors")
            steering = sl.Steering(vector, strength=row.strength)
        replies = list(sl.generate(model, PROMPTS, steering, max_new_tokens=6, progress=False))
        hits = sum("e" in reply for reply in replies)
        assert (row.score, row.low, row.high) == pytest.approx(tuple(rate(hits, len(PROMPTS))))
        assert (row.n, row.different) == (len(PROMPTS), len(set(replies)))


def test_what_is_done_is_not_done_again(model, found, folder, monkeypatch):
    (folder / "reply_likelihood.json").unlink()
    asked = []
    monkeypatch.setattr(
        comparing, "_asked", lambda *given: asked.append(given[-1]) or {"score": 0.0}
    )
    again = compare(model, DATA, PROMPTS, out=folder, **OPTIONS)
    assert len(asked) == 1
    assert again.table.method.tolist() == ["unsteered", *OPTIONS["methods"]]
    assert again.table.score.tolist()[:2] == found.table.score.tolist()[:2]


def test_another_comparisons_rows_are_refused(model, found, folder):
    kept = json.loads((folder / "unsteered.json").read_text())
    assert kept["made"]["n"] == len(PROMPTS)
    with pytest.raises(sl.SteerlensError, match="another job"):
        compare(model, DATA, PROMPTS[:2], out=folder, **OPTIONS)


def test_prompts_that_vectors_were_made_from_are_refused(model):
    with pytest.raises(sl.SteerlensError, match="What is 3"):
        compare(model, DATA, [*PROMPTS, "What is 3?"], **OPTIONS)


LESSONS = [(f"What is {n}?", "I will not.", "It is so.") for n in range(12)]


def test_lessons_are_compared_as_the_dataset_that_says_the_same(model, found):
    told = compare(model, LESSONS, PROMPTS, progress=False, **OPTIONS)
    pd.testing.assert_frame_equal(told.table, found.table)


def test_prompts_of_lessons_are_refused(model):
    with pytest.raises(sl.SteerlensError, match="What is 3"):
        compare(model, LESSONS, ["What is 3?"], progress=False, **OPTIONS)


def test_a_difference_needs_unwanted_replies(model):
    lessons = [*LESSONS, ("What is it?", "I will not.")]
    with pytest.raises(sl.SteerlensError, match=r"lesson 12 .* without an unwanted reply"):
        compare(model, lessons, PROMPTS, progress=False, **OPTIONS)


def test_the_figure_and_the_text_show_the_table(found):
    figure = method_comparison(found)
    score, broken = figure.data
    assert list(score.y) == found.table.method.tolist()
    assert list(score.x) == found.table.score.tolist()
    assert list(broken.x) == found.table.degenerate.tolist()
    assert list(score.error_x.array) == pytest.approx(
        (found.table.high - found.table.score).tolist()
    )
    told = str(found).splitlines()
    assert told[0] == f"layer 1; {found.budgets}"
    assert found.budgets == "KL p95 ≤ 0.2 nats, degenerate replies ≤ 1"
    assert found.budgets in figure.layout.title.text + str(figure.layout.title.subtitle.text)
    assert [line.partition(":")[0] for line in told[1:]] == found.table.method.tolist()


def test_every_method_is_told_as_it_is_done(model, found, folder):
    told = []
    with watching(told.append):
        compare(model, DATA, PROMPTS, out=folder, progress=False, **OPTIONS)
    assert told == [f"comparing: {n} of 3 methods" for n in (1, 2, 3)]
