"""AxBench's steering: judges that know their texts, honest choice of strengths, resuming."""

import json

import numpy as np
import pandas as pd
import pytest
from axbench_made import ABOUT, rows_of, written
from scipy.stats import hmean

import steerlens as sl
from steerlens.data.axbench import read_axbench
from steerlens.intervals import Interval
from steerlens.learning.training import Training
from steerlens.studies import axbench_judges, axbench_steering
from steerlens.studies.axbench_detection import COLUMNS
from steerlens.studies.axbench_judges import ConceptJudge, Logistic, ReplyJudges, concept_judge
from steerlens.studies.axbench_page import steering_leaderboard
from steerlens.studies.axbench_results import AxBenchResults
from steerlens.studies.axbench_steering import (
    AHEAD,
    MEANS,
    PROMPT,
    STEERING_ARMS,
    UNSTEERED,
    Case,
    Option,
    _run,
    measured,
    steer,
)

SURE = Interval(1.0, 1.0, 1.0)
FEW_ARMS = {name: STEERING_ARMS[name] for name in (UNSTEERED, PROMPT, MEANS)}


@pytest.fixture(scope="module")
def model():
    return sl.load_model()


@pytest.fixture
def bench(tmp_path):
    return read_axbench(written(tmp_path))


def test_a_judge_knows_its_concept_on_texts_it_has_not_seen(bench):
    boats, bread = (concept_judge(one, seed=0) for one in bench.concepts)
    assert boats.auroc.value > 0.95
    assert bread.auroc.value > 0.95
    [shown, not_shown] = boats.score([f"We like {ABOUT[0]}.", "We like the weather."])
    assert shown > 0.5 > not_shown


def test_a_concept_that_its_judge_does_not_know_is_named_and_left_out(tmp_path, model, monkeypatch):
    train = [
        *rows_of("the weather", -1, "negative", 12),
        *rows_of(ABOUT[0], 0, "positive", 12),
        *rows_of("the weather", 1, "positive", 12, 40),  # as in the negatives
    ]
    evaluation = [
        *rows_of(ABOUT[0], 0, "positive", 6, 20),
        *rows_of("the weather", 0, "negative", 6, 20),
        *rows_of(ABOUT[1], 1, "positive", 6, 20),
        *rows_of("the weather", 1, "negative", 6, 30),
    ]
    bench = read_axbench(written(tmp_path, train, evaluation))
    found = steer(model, bench, arms={UNSTEERED: FEW_ARMS[UNSTEERED]}, n_instructions=4,
                  max_new_tokens=12, progress=False)  # fmt: skip
    assert [one.partition(":")[0] for one in found.dropped] == [ABOUT[1]]
    assert set(found.table["concept"]) == {ABOUT[0], "all"}


def test_scores_are_harmonic_means_and_degenerate_replies_have_none(monkeypatch):
    own, other = np.array([1.0, 1.0, 9.0]), np.array([3.0, 1.0, 9.0])
    monkeypatch.setattr(axbench_judges, "bits", lambda *_: (own, other))
    judges = ReplyJudges(None, Logistic(1.0, 2.0, SURE), Logistic(-2.0, 2.0, SURE))
    concept = ConceptJudge(lambda texts: np.full(len(texts), 0.75), SURE)
    replies = ["Yes, I do like it.", "Some other words here.", "no no no no no no"]
    answered, not_answered, broken = judges.score(concept, ["a", "b", "c"], replies)
    assert answered["concept"] == 1.5
    assert answered["score"] == pytest.approx(
        hmean([answered[part] for part in ("concept", "instruction", "fluency")]), abs=1e-3
    )
    assert not_answered["instruction"] < 0.5 < answered["instruction"]
    assert broken["fluency"] == broken["score"] == 0


def test_unsteered_replies_teach_what_an_answer_is(model, monkeypatch):
    asked = [f"Question {number}?" for number in range(8)]
    replies = [f"Answer {number} is here." for number in range(8)]
    place = {text: number for number, text in enumerate([*asked, *replies])}

    def planted(_, prompts, texts):
        """Fewer bits where the reply is of its prompt, more where its words are shuffled."""
        right = [place.get(t, -1) == place[p] + 8 for p, t in zip(prompts, texts, strict=True)]
        shuffled = np.array([text not in place for text in texts])
        return 2.0 - np.array(right) + 3.0 * shuffled, np.full(len(texts), 2.0)

    monkeypatch.setattr(axbench_judges, "bits", planted)
    judges = axbench_judges.reply_judges(model, asked, replies, seed=0)
    assert judges.answers.auroc.value == judges.fluent.auroc.value == 1.0
    assert 0 < judges.answers.middle < 1
    with pytest.raises(sl.SteerlensError, match="need at least 4"):
        axbench_judges.reply_judges(model, asked[:3], replies[:3], seed=0)


def test_the_setting_is_chosen_on_one_half_and_scored_on_the_other(monkeypatch):
    planted = {0: {0.5: 1.0, 1.0: 0.2, 2.0: 0.4}, 1: {0.5: 0.1, 1.0: 0.9, 2.0: 1.9}}

    def scored(_, options, half):
        scores = ("score", "concept", "instruction", "fluency")
        return [
            {"setting": one.setting, "prompt": half + 2 * at, "half": half, "reply": "…"}
            | dict.fromkeys(scores, planted[half][one.setting])
            for one in options
            for at in range(2)
        ]

    monkeypatch.setattr(axbench_steering, "_scored", scored)
    options = [Option(factor, ()) for factor in planted[0]]
    made = _run(Case(None, None, None), lambda _: (options, {"strength": 1.0}))
    assert made["chosen"] == 0.5
    table = pd.DataFrame(measured({("a", MEANS): made}, 3, 0), columns=COLUMNS)
    [own, _] = (table[table["concept"] == name].set_index("measure") for name in ("a", "all"))
    assert own.loc["score", "value"] == pytest.approx(0.1)
    assert own.loc["score at equal KL", "value"] == pytest.approx((0.2 + 0.9) / 2)
    assert own.loc["score at equal KL", "n"] == 4
    assert own.loc["factor chosen", "value"] == 0.5


def test_arms_are_compared_with_difference_of_means_by_prompt():
    def made(scores):
        replies = [
            {"setting": 1.0, "prompt": at, "half": at % 2, "reply": "…"}
            | dict.fromkeys(("score", "concept", "instruction", "fluency"), score)
            for at, score in enumerate(scores)
        ]
        return {"chosen": 1.0, "strength": 2.0, "replies": replies}

    base = np.array([0.1, 0.9, 0.3, 0.7])
    found = {
        ("a", MEANS): made(base), ("a", "better"): made(base + 0.5), ("b", "better"): made(base),
        ("b", MEANS): {"failed": "no reason"},
    }  # fmt: skip
    table = pd.DataFrame(measured(found, 3, 0), columns=COLUMNS)
    rows = table.set_index(["arm", "concept", "measure"])["value"]
    assert rows["better", "a", f"score at equal KL minus {MEANS}"] == pytest.approx(0.5)
    assert rows["better", "all", AHEAD] == 1.0
    assert ("better", "b", f"score minus {MEANS}") not in rows.index
    assert (MEANS, "b", "score") not in rows.index


def test_steering_resumes_and_joins_detection_on_the_page(bench, model, tmp_path, monkeypatch):
    settings = {
        "arms": FEW_ARMS | {"broken": lambda _: axbench_steering.require_arm()},
        "n_instructions": 4, "max_new_tokens": 12, "kl_budget": 6.0, "factors": (0.5, 1.0),
        "out": tmp_path / "steering", "progress": False,
    }  # fmt: skip

    def refuse():
        raise sl.SteerlensError("it cannot be had")

    monkeypatch.setattr(axbench_steering, "require_arm", refuse, raising=False)
    found = steer(model, bench, **settings)
    assert [one for one in found.dropped if "broken" in one] == [
        f"{concept}, broken: it cannot be had" for concept in ABOUT
    ]
    assert set(steering_leaderboard(found.table)["arm"]) == set(FEW_ARMS)
    monkeypatch.setattr(axbench_steering, "_run", refuse)  # nothing is left to do
    again = steer(model, bench, **settings)
    pd.testing.assert_frame_equal(again.table, found.table)
    with pytest.raises(sl.SteerlensError, match="another job"):
        steer(model, bench, **settings | {"seed": 1})

    detected = pd.DataFrame(
        [("detection", "LDA", "all", 3, "auroc chosen (mean)", 0.9, 0.8, 1.0, 2)], columns=COLUMNS
    )
    out = tmp_path / "out"
    AxBenchResults(detected, of=found.of).save(out)
    whole = found.save(out)
    assert set(whole.table["part"]) == {"detection", "steering"}
    assert len(json.loads((out / "results.json").read_text())["rows"]) == len(found.table) + 1
    words = (out / "axbench.html").read_text()
    assert "Detection: leaderboard" in words
    assert "Steering: leaderboard" in words
    other = AxBenchResults(detected, of="another model").save(out)
    assert set(other.table["part"]) == {"detection"}


def test_a_learned_arm_needs_inputs_and_takes_the_models_own_replies_as_unwanted(
    bench, model, tmp_path
):
    arms = {"learned, bipo": STEERING_ARMS["learned, bipo"]}
    settings = {
        "arms": arms, "n_instructions": 4, "max_new_tokens": 8, "kl_budget": 6.0, "factors": (1.0,),
        "training": Training(steps=2, continued=0, replies_drawn=8), "progress": False,
    }  # fmt: skip
    without = steer(model, bench, **settings)
    assert all("no training row has an input" in one for one in without.dropped)
    path = tmp_path / "train_data.parquet"
    train = pd.read_parquet(path)
    train.assign(input=[f"Say {number}." for number in range(len(train))]).to_parquet(path)
    found = steer(model, read_axbench(tmp_path), **settings)
    assert not found.dropped
    assert "learned, bipo" in set(found.table["arm"])


@pytest.mark.parametrize(
    "wrong", [{"n_instructions": 5}, {"n_instructions": 2}, {"factors": (0.5, 2.0)}]
)
def test_impossible_settings_are_refused(bench, model, wrong):
    with pytest.raises(sl.SteerlensError, match="expected an even number of instructions"):
        steer(model, bench, progress=False, **wrong)
