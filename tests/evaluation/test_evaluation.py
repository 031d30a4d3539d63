"""Effects, controls and verdicts: simulated scores first, then the embedded model's refusals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition
from scipy.stats import page_trend_test, spearmanr

import steerlens as sl
from steerlens.data.asking import instruction
from steerlens.evaluation import evaluation
from steerlens.evaluation.controls import random_directions, shuffled_labels
from steerlens.evaluation.effects import (
    ahead_of_asking,
    is_control,
    mean_doses,
    paired_effects,
    prompt_slopes,
)
from steerlens.evaluation.evaluation import Evaluation, evaluate
from steerlens.intervals import detectable
from steerlens.judges.builtin import degeneration, refusal
from steerlens.judges.judging import Judge, JudgeError
from steerlens.steering.batch_plans import stacked

QUIET = {"progress": False}
TEXTS = ["The sea is salty.", "A week has seven days, and most shops are closed on Sunday."]
SMALL = {"texts": TEXTS, "safety": PROMPTS[:2], "max_new_tokens": 6, **QUIET}
length = Judge("length", lambda texts: [len(text) for text in texts])
tells_d = Judge("d", lambda texts: [float("d" in text) for text in texts])


def simulated(scores, judge="j"):
    """A table of scores `{(arm, strength): one per prompt}`."""
    cells = [
        {"prompt": prompt, "arm": arm, "strength": strength, "judge": judge, "score": float(score)}
        for (arm, strength), column in scores.items()
        for prompt, score in enumerate(column)
    ]
    return pd.DataFrame(cells)


def test_a_planted_effect_is_found_paired_and_the_wrong_way_is_counted():
    random = np.random.default_rng(0)
    prompts = random.normal(0, 10, 200)  # prompts differ far more than arms do
    change = np.r_[np.full(150, 1.0), np.full(50, -1.0)]
    table = simulated({("unsteered", 0.0): prompts, ("steered", 0.3): prompts + change})
    row = paired_effects(table, seed=0).set_index("arm").loc["steered"]
    assert row.effect == pytest.approx(0.5)
    assert 0.3 < row.effect_low < 0.5 < row.effect_high < 0.7
    assert row.mean_high - row.mean_low > 2
    assert (row.raised, row.lowered) == (0.75, 0.25)
    assert row.lowered_low < 0.25 < row.lowered_high


def test_yes_or_no_scores_have_an_interval_where_all_change():
    table = simulated({("unsteered", 0.0): [0] * 10, ("steered", 1.0): [1] * 10})
    row = paired_effects(table, seed=0).set_index("arm").loc["steered"]
    assert (row.effect, row.effect_high) == (1, 1)
    assert row.effect_low < 0.7


def test_the_verdict_says_what_so_few_prompts_could_show(measured):
    row = measured.verdict.effect()
    n = len(PROMPTS)
    assert row.detectable == detectable(np.zeros(n), binary=True)
    said = f"with {n} prompts, an effect of {row.detectable:.3f} or more would be found"
    assert said in str(measured)
    fewer = measured.table[measured.table.prompt < n - 1]
    short = Evaluation(fewer, measured.side_effects, measured.settings)
    assert f"with {n - 1} prompts, no effect is large enough" in str(short)
    many = pd.concat(
        [measured.table.assign(prompt=measured.table.prompt + n * i) for i in range(9)]
    )
    long = Evaluation(many, measured.side_effects, measured.settings)
    assert "would be found" not in str(long)


def test_missing_scores_drop_the_prompt_from_its_pair_only():
    table = simulated({
        ("unsteered", 0.0): [1.0, 2.0, np.nan, 4.0],
        ("steered", 1.0): [2.0, np.nan, 9.0, 6.0],
        ("negative", -1.0): [0.0, 0.0, 0.0, 0.0],
    })  # fmt: skip
    rows = paired_effects(table, seed=0).set_index("arm")
    assert rows.n.to_dict() == {"unsteered": 3, "steered": 2, "negative": 3}
    assert rows.effect["steered"] == 1.5
    assert prompt_slopes(table).prompt.tolist() == [0, 3]


def test_slopes_and_rho_are_the_standard_ones():
    random = np.random.default_rng(1)
    doses = [0.0, 0.1, 0.3, -0.1, -0.3]
    arms = ["unsteered", "steered", "steered", "negative", "negative"]
    truth = random.normal(2, 1, 12)
    scores = truth[:, None] * doses + random.normal(0, 0.3, (12, 5))
    scores[0] = 7.0  # never changes
    table = simulated(dict(zip(zip(arms, doses, strict=True), scores.T, strict=True)))
    found = prompt_slopes(table)
    assert found.slope[1:].to_numpy() == pytest.approx(np.polyfit(doses, scores[1:].T, 1)[0])
    assert found.rho[1:].tolist() == pytest.approx([spearmanr(doses, s)[0] for s in scores[1:]])
    assert (found.slope[0], found.rho[0]) == (0, 0)
    # the mean rho of k doses and n prompts is Page's L on another scale
    k, n = 5, 11
    page = page_trend_test(scores[1:], predicted_ranks=np.argsort(np.argsort(doses)) + 1)
    mean = (12 * page.statistic / (n * k * (k * k - 1))) - 3 * (k + 1) / (k - 1)
    assert found.rho[1:].mean() == pytest.approx(mean)
    dose = mean_doses(found, seed=0).set_index("measure")
    assert dose.low["slope"] < found.slope.mean() < dose.high["slope"]


@pytest.fixture(scope="module")
def plan(model):
    return sl.Steering(random_vector(model, scale=1.0), layers=[2, 3], strength=0.5)


@pytest.fixture(scope="module")
def measured(model, plan):
    judges = (tells_d, length)
    gated = replace(plan, when=splitting_condition(model))
    return evaluate(model, gated, PROMPTS, judges=judges, strengths=[0.5, 2.0], controls=2, **SMALL)


def test_one_batch_of_all_arms_is_each_arm_apart(model, plan, measured):
    replies = measured.replies
    assert len(replies) == len(PROMPTS) * (1 + 2 * (2 + 2))
    condition = splitting_condition(model)
    for (arm, strength), own in replies.groupby(["arm", "strength"]):
        vector = plan.vector.at(plan.layers_steered)
        if arm.startswith("random"):
            vector = random_directions(vector, 2, seed=0)[int(arm[-1]) - 1]
        alone = None
        if arm != "unsteered":
            alone = replace(plan, vector=vector, strength=strength, when=condition)
        apart = sl.generate(model, PROMPTS, alone, max_new_tokens=6, **QUIET)
        assert own.reply.tolist() == list(apart)
        if alone is not None:
            assert own.open.tolist() == apart.gates[0].open.tolist()
    assert replies.reply.nunique() > len(PROMPTS)
    assert_no_hooks_left(model)


def test_the_table_is_tidy(measured):
    keys = ["prompt", "arm", "strength", "judge"]
    assert not measured.table.duplicated(keys).any()
    assert measured.table.judge.unique().tolist() == ["d", "length"]
    own = measured.table[measured.table.judge == "length"]
    assert own.score.tolist() == [len(reply) for reply in own.reply]
    signs = np.sign(measured.table.groupby("arm").strength.mean())
    assert signs.to_dict() == {
        "unsteered": 0, "steered": 1, "negative": -1, "random 1": 1, "random 2": 1,
    }  # fmt: skip
    assert set(measured.side_effects.arm) == set(measured.table.arm)


def test_a_saved_evaluation_is_the_same_and_a_changed_file_is_refused(measured, tmp_path):
    measured.save(tmp_path / "e")
    again = Evaluation.load(tmp_path / "e")
    pd.testing.assert_frame_equal(again.table, measured.table)
    pd.testing.assert_frame_equal(again.side_effects, measured.side_effects)
    assert str(again) == str(measured)
    measured.table.head().to_parquet(tmp_path / "e" / "scores.parquet")
    with pytest.raises(sl.SteerlensError, match="is not the file"):
        Evaluation.load(tmp_path / "e")
    with pytest.raises(sl.SteerlensError, match="there is no file"):
        Evaluation.load(tmp_path / "nowhere")


def test_a_judge_that_fails_costs_no_reply_and_no_other_judge(model, plan, tmp_path):
    def give_up(texts):
        raise ConnectionError("the endpoint is gone")

    broken = Judge("broken", give_up)
    found = evaluate(model, plan, PROMPTS, judges=(broken, length), controls=0, **SMALL)
    scores = found.table.groupby("judge").score
    assert scores.apply(lambda s: s.isna().all()).to_dict() == {"broken": True, "length": False}
    assert str(found).startswith("No verdict: broken gave no scores.")
    failure = "so some replies have no score from it: ConnectionError: the endpoint is gone"
    assert f"broken failed, {failure}" in str(found)
    found.save(tmp_path)
    later = Evaluation.load(tmp_path).judged([length])
    assert later.settings["failures"] == {}
    assert later.table.score.tolist() == found.table[found.table.judge == "length"].score.tolist()


def test_what_a_judge_had_scored_before_it_stopped_is_kept(model, plan):
    def stop_midway(texts):
        had = np.full(len(texts), np.nan)
        had[:3] = 0.5
        raise JudgeError("out of money", had)

    judges = (Judge("paid", stop_midway), length)
    found = evaluate(model, plan, PROMPTS, judges=judges, controls=0, **SMALL)
    scores = found.table.score[found.table.judge == "paid"].tolist()
    assert scores[:3] == [0.5] * 3
    assert np.isnan(scores[3:]).all()
    assert found.settings["failures"] == {"paid": "out of money"}


def test_a_zero_vector_shows_no_effect(model, plan):
    nothing = replace(plan, vector=plan.vector * 0)
    found = evaluate(model, nothing, PROMPTS, judges=[length], controls=1, **SMALL)
    assert "No effect shown" in str(found)
    assert found.effects.effect.dropna().tolist() == [0, 0, 0]
    kl = found.side_effects.query("measure == 'kl_mean'").value
    assert kl.abs().max() == 0


def test_empty_replies_are_told(model, plan, monkeypatch):
    silent = Judge("silent", lambda texts: [float(not text) for text in texts])
    decode = model.tokenizer.decode

    def silenced(ids, **options):
        return "" if options["skip_special_tokens"] else decode(ids)

    monkeypatch.setattr(model.tokenizer, "decode", silenced)
    found = evaluate(model, plan, PROMPTS, judges=[silent, degeneration], controls=0, **SMALL)
    assert f"{len(PROMPTS)} of {len(PROMPTS)} steered replies are empty" in str(found)
    assert "100% of the steered replies are degenerate" in str(found)
    assert (found.table.score == 1).all()


def test_controls_are_as_many_random_directions_or_the_callers_own(model, plan):
    vector = plan.vector.at(plan.layers_steered)
    drawn = random_directions(vector, 2, seed=0)
    options = {"judges": [length], **SMALL}
    counted = evaluate(model, plan, PROMPTS, controls=2, **options)
    listed = evaluate(model, plan, PROMPTS, controls=drawn, **options)
    pd.testing.assert_frame_equal(listed.table, counted.table)
    named = evaluate(
        model, plan, PROMPTS, controls={"placebo": drawn[0], "shuffled 1": drawn[1]}, **options
    )
    assert named.verdict.controls.arm.tolist() == ["placebo", "shuffled 1"]
    assert named.verdict.controls.effect.tolist() == counted.verdict.controls.effect.tolist()
    assert "1 placebo: mean" in str(named)
    assert "no shuffled labels" in str(counted)
    assert "no shuffled labels" not in str(named)


def test_sampled_replies_are_sampled_in_every_arm(model, plan):
    sampling = sl.Sampling(1.2, top_k=20, seed=4)
    found = evaluate(model, plan, PROMPTS, judges=[length], controls=0, sampling=sampling, **SMALL)
    every = sl.generate(
        model,
        [*PROMPTS] * 3,
        stacked([None, plan, replace(plan, strength=-plan.strength)], len(PROMPTS)),
        max_new_tokens=6,
        sampling=sampling,
        **QUIET,
    )
    assert found.replies.reply.tolist() == list(every)
    assert found.settings["seed"] == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["steered"], r"controls named \['steered'\]"),
        (["random 1", "random 1"], "names that differ"),
    ],
)
def test_controls_with_a_name_that_is_taken_are_refused(model, plan, names, message):
    controls = [replace(plan.vector, provenance={"name": name}) for name in names]
    with pytest.raises(sl.SteerlensError, match=message):
        evaluate(model, plan, PROMPTS, controls=controls, **SMALL)


def test_strengths_by_layer_are_multiplied(model, plan):
    by_layer = replace(plan, strength=(0.2, 0.8))
    found = evaluate(
        model, by_layer, PROMPTS[:3], judges=[length], strengths=[1, 2], controls=0, **SMALL
    )
    apart = replace(plan, strength=(0.4, 1.6))
    alone = sl.generate(model, PROMPTS[:3], apart, max_new_tokens=6, **QUIET)
    twice = found.replies.query("arm == 'steered' and strength == 2")
    assert twice.reply.tolist() == list(alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": [0.1, -0.1]}, "of one sign"),
        ({"strengths": [0.0]}, "of one sign"),
        ({"strengths": [0.1, 0.1]}, "different finite"),
        ({"judges": []}, "at least one"),
        ({"judges": [length, length]}, "a name of its own for each"),
        ({"controls": -1}, "expected 0 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(model, plan, options, message):
    with pytest.raises(sl.SteerlensError, match=message):
        evaluate(model, plan, PROMPTS, **{**SMALL, **options})


@pytest.mark.slow
def test_the_demos_refusal_is_found_beyond_its_controls(tiny_chat):
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    refusals = replace(refusals, pairs=refusals.pairs[:10])
    refuse = sl.extract(tiny_chat, refusals, tokens="suffix", layers=[2, 3], **QUIET)
    steering = sl.Steering(refuse, strength=0.6, relative=True)
    pairs = sl.ContrastiveDataset.load(sl.demo_file("harmful.json")).validation.pairs[:12]
    prompts = [prompt for pair in pairs for prompt in pair]
    found = evaluate(
        tiny_chat,
        steering,
        prompts,
        controls=random_directions(refuse, 3)
        + shuffled_labels(tiny_chat, refuse, refusals, 3, **QUIET),
        texts=TEXTS,
        safety=prompts[1::2],
        max_new_tokens=20,
        **QUIET,
    )
    row, controls = found.verdict.effect(), found.verdict.controls
    assert row.effect > 0.8
    assert len(controls) == 6
    assert row.effect_low > controls.effect.max()
    assert controls.effect.max() < 0.2
    assert str(found).startswith("An effect beyond the controls")
    assert "moved the wrong way: 0.0%" in str(found)
    meant_otherwise = Evaluation(
        found.table, found.side_effects, {**found.settings, "raises": False}
    )
    assert str(meant_otherwise).startswith("The wrong way")
    assert refusal.name == found.judges[0]


def test_what_cannot_be_asked_is_refused_before_anything_runs(model, unchecked, monkeypatch):
    monkeypatch.setattr(evaluation, "measure_side_effects", None)
    steering = sl.Steering(random_vector(model), [2])
    with pytest.raises(sl.SteerlensError, match="a prompt is text, or a chat"):
        evaluate(model, steering, [[4, 40, 41]], controls=[instruction("Please.")], **SMALL)
    named = {"x, and steered": instruction("Please.")}
    with pytest.raises(sl.SteerlensError, match="expected names"):
        evaluate(model, steering, PROMPTS, controls=named, **SMALL)


def asked_table(asked, steered, before):
    return simulated({
        ("unsteered", 0.0): before,
        ("steered", 1.0): steered,
        ("negative", -1.0): before,
        ("random 1", 1.0): before,
        ("asked: plainly", 0.0): asked,
        ("asked: plainly, and steered", 1.0): steered,
    })  # fmt: skip


def test_asking_is_compared_prompt_by_prompt_and_is_no_control():
    many = np.arange(40.0)
    found = ahead_of_asking(asked_table(many + 1, many + 3, many), seed=0).iloc[0]
    assert (found.asking, found.ahead, found.ahead_low, found.ahead_high) == ("plainly", 2, 2, 2)
    effects = paired_effects(asked_table(many + 1, many + 3, many), seed=0)
    assert [arm for arm in effects.arm if is_control(arm)] == ["random 1"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (0.0, "It is more than asking for it in the prompt does."),
        (1.0, "But it is not shown to be more than asking for it in the prompt does."),
        (2.0, "But asking for it in the prompt does more."),
    ],
)
@pytest.mark.parametrize("raises", [True, False])
def test_the_verdict_says_whether_asking_does_as_much(model, asked, said, raises):
    sign = 1.0 if raises else -1.0
    told = {"unsteered": 0.0, "asked: plainly": sign * asked}

    def scores(texts):  # by arm, in the order of the rows
        arms = ["unsteered", "steered", "negative", "random 1", "asked: plainly", "both"]
        return [told.get(arm, sign if arm == "steered" else 0.0) for arm in arms for _ in PROMPTS]

    steering = sl.Steering(random_vector(model), [2])
    found = evaluate(
        model, steering, PROMPTS, judges=[Judge("j", scores)], raises=raises,
        controls={"random 1": random_vector(model), "plainly": instruction("Please.")}, **SMALL,
    )  # fmt: skip
    assert str(found).splitlines()[0].endswith(said)
    assert "asked for in the prompt (plainly)" in str(found)
    replies = found.replies
    alone = sl.generate(model, [f"Please.\n\n{one}" for one in PROMPTS], max_new_tokens=6, **QUIET)
    assert replies[replies.arm == "asked: plainly"].reply.tolist() == list(alone)
    assert replies[replies.arm == "asked: plainly"].text.tolist() == list(PROMPTS)
    side = found.side_effects.set_index(["arm", "of", "measure"]).value
    assert side["asked: plainly", "harmless", "reply_tokens"] > 0
    assert ("asked: plainly", "texts", "kl_mean") not in side.index
    assert "asked for in the prompt (plainly), harmless prompts: refusal" in str(found)
