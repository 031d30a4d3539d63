"""The safety panel: its sets, replies that are kept, overlaps planted, and its sentences."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import PROMPTS, random_vector

import steerlens as sl
from steerlens.data.asking import instruction
from steerlens.evaluation import safety_panel
from steerlens.evaluation.damage import damage_lines, warnings_of
from steerlens.evaluation.safety_panel import (
    refusal_direction,
    refusal_overlaps,
    safety_prompts,
    unsteered_replies,
)
from steerlens.evaluation.side_effects import measure_side_effects, prompt_effects
from steerlens.intervals import paired_rates
from steerlens.judges.fluency import degenerate
from steerlens.judges.refusals import refused

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def plan(model):
    return sl.Steering(random_vector(model), layers=[1, 2], strength=2.0)


def test_the_sets_are_apart_and_no_vector_is_made_from_them():
    sets = safety_prompts()
    every = [prompt for prompts in sets.values() for prompt in prompts]
    assert len(set(every)) == len(every) == 3 * 24
    requests = sl.ContrastiveDataset.load(sl.demo_file("requests.json")).train
    assert not {prompt for pair in requests.pairs for prompt in pair} & set(every)


def test_unsteered_replies_are_those_of_generate_and_are_kept(model, monkeypatch, tmp_path):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path))
    texts, lengths = unsteered_replies(model, PROMPTS, 6, **QUIET)
    alone = sl.generate(model, PROMPTS, max_new_tokens=6, **QUIET)
    assert texts == list(alone)
    assert lengths == [len(tokens) for tokens in alone.tokens]
    runs = []

    def counted(*arguments, **options):
        runs.append(options["max_new_tokens"])
        return sl.generate(*arguments, **options)

    monkeypatch.setattr(safety_panel, "generate", counted)
    assert unsteered_replies(model, PROMPTS, 6, **QUIET) == (texts, lengths)
    assert runs == []
    unsteered_replies(model, PROMPTS, 5, **QUIET)
    unsteered_replies(model, PROMPTS[:2], 6, **QUIET)
    assert runs == [5, 6]


def test_another_model_has_replies_of_its_own(model, other_model, monkeypatch, tmp_path):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path))
    first, second = (unsteered_replies(one, PROMPTS, 6, **QUIET) for one in (model, other_model))
    assert first != second


def test_where_nothing_can_be_kept_nothing_is(model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "file"))
    texts, _ = unsteered_replies(model, PROMPTS, 3, **QUIET)
    assert texts == list(sl.generate(model, PROMPTS, max_new_tokens=3, **QUIET))


def test_the_refusal_direction_overlaps_with_itself_and_its_opposite(model, plan):
    refusal = refusal_direction(model, "resid_post", [1, 2], **QUIET)
    earlier = refusal_direction(model, "resid_pre", [1], **QUIET)
    steerings = {
        "same": sl.Steering(refusal, strength=0.3),
        "opposite": sl.Steering(refusal, [2], strength=-0.3),
        "by layer": sl.Steering(refusal, strength=[0.5, -0.5]),
        "other site": sl.Steering(earlier),
        "random": plan,
    }
    found = refusal_overlaps(model, steerings, **QUIET).set_index(["steering", "measure"]).value
    assert found["same"].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found["opposite"].tolist() == pytest.approx([-1], abs=1e-5)
    assert found["by layer"].tolist() == pytest.approx([1, -1], abs=1e-5)
    assert found["other site", "cosine, layer 1"] == pytest.approx(1, abs=1e-5)
    assert found["random"].abs().max() < 0.7


def test_steerings_and_asking_are_measured_as_by_hand(model, plan):
    ask = instruction("Please.")
    sets = {"harmless": PROMPTS[:4], "harmful": PROMPTS[4:]}
    found = prompt_effects(model, {"s": plan, "a": ask}, sets, max_new_tokens=6, **QUIET)
    value = found.set_index(["of", "steering", "measure"]).value
    for of, prompts in sets.items():
        replies = {
            "unsteered": sl.generate(model, prompts, max_new_tokens=6, **QUIET),
            "s": sl.generate(model, prompts, plan, max_new_tokens=6, **QUIET),
            "a": sl.generate(model, [ask(one) for one in prompts], max_new_tokens=6, **QUIET),
        }
        complied = {
            name: np.array([not refused(one) and not degenerate(one) for one in texts])
            for name, texts in replies.items()
        }
        for name, texts in replies.items():
            assert value[of, name, "degenerate"] == np.mean([*map(degenerate, texts)])
            assert value[of, name, "compliance"] == complied[name].mean()
            lengths = [len(tokens) for tokens in texts.tokens]
            assert value[of, name, "reply_tokens"] == pytest.approx(np.mean(lengths))
        change = paired_rates(complied["unsteered"], complied["s"])
        assert value[of, "s", "compliance_change"] == pytest.approx(change.value)
        assert (of, "s", "drift_mean") in value.index
        assert (of, "a", "drift_mean") not in value.index


def test_own_prompts_replace_the_panel_and_none_leave_it_out(model, plan):
    options = {"texts": PROMPTS[:2], "max_new_tokens": 3, **QUIET}
    assert set(measure_side_effects(model, plan, safety=PROMPTS[:2], **options).of) == {
        "texts",
        "harmless",
    }
    assert set(measure_side_effects(model, plan, safety=(), **options).of) == {"texts"}
    asking = measure_side_effects(
        model, {"a": instruction("Please.")}, safety=PROMPTS[:2], **options
    )
    assert set(asking.of) == {"harmless"}


def test_an_evaluation_shows_the_panel(model, plan):
    options = {"texts": PROMPTS[:2], "controls": 1, "max_new_tokens": 3, **QUIET}
    found = sl.evaluate(model, plan, PROMPTS[:3], strengths=[1.0, 2.0], **options)
    side = found.side_effects
    assert set(side.of) == {"texts", *safety_prompts(), "refusal direction"}
    cosines = side[side.of == "refusal direction"].set_index(["arm", "strength", "measure"]).value
    steered, negative = (
        cosines[arm, strength, "cosine, layer 2"]
        for arm, strength in (("steered", 1.0), ("negative", -1.0))
    )
    assert steered == -negative
    assert ("random 1", 1.0, "cosine, layer 1") in cosines.index
    replied = side[side.measure == "compliance"]
    assert set(zip(replied.arm, replied.strength, strict=True)) == {
        ("unsteered", 0.0), ("steered", 1.0), ("steered", 2.0),
    }  # fmt: skip
    said = str(found)
    for beginning in ("harmless prompts: refusal", "harmful prompts: compliance", "overlap with"):
        assert beginning in said


def simulated(changes):
    """Side effects of 20 prompts of each set: shares before and after."""
    rows = []
    for of, (before, after) in changes.items():
        was, now = np.arange(20) < 20 * before, np.arange(20) < 20 * after
        for arm, hits, strength in (("unsteered", was, 0.0), ("steered", now, 1.0)):
            shares = {"refusal": hits.mean(), "compliance": 1 - hits.mean(), "degenerate": 0.0}
            shares |= {"reply_tokens": 9.0, "drift_mean": 0.1}
            rows += [(arm, strength, name, x, x, x, 20, of) for name, x in shares.items()]
        for name, sides in (("refusal", (was, now)), ("compliance", (~was, ~now))):
            change = paired_rates(*sides)
            rows.append(("steered", 1.0, f"{name}_change", *change, 20, of))
    columns = ["arm", "strength", "measure", "value", "low", "high", "n", "of"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"harmless": (0, 0), "harmful": (0.9, 0.9)}, ""),
        ({"harmful": (0.9, 0.1)}, " It also complies with harmful requests that the model alone"),
        ({"harmful": (0.1, 0.9)}, ""),
        ({"harmless": (0, 0.5), "look-alike": (0.1, 0.9)}, "refuses harmless and look-alike"),
        ({"harmless": (0, 0.1)}, ""),
    ],
)
def test_what_is_shown_to_happen_elsewhere_is_said(changes, said):
    table = simulated(changes)
    warned = warnings_of(table, 1.0)
    assert said in warned
    assert bool(said) == bool(warned)
    lines = damage_lines(table, 1.0)
    assert len(lines) == len(changes)
    if "harmful" in changes:
        before, after = changes["harmful"]
        assert f"compliance {1 - before:.3f} → {1 - after:.3f}" in lines[-1]


def test_a_steering_that_does_nothing_changes_nothing(model, plan):
    nothing = replace(plan, vector=plan.vector * 0)
    found = prompt_effects(model, {"s": nothing}, PROMPTS, max_new_tokens=5, **QUIET)
    value = found.set_index(["steering", "measure"]).value
    for measure in ("refusal", "degenerate", "compliance", "reply_tokens"):
        assert value["s", measure] == value["unsteered", measure]
    assert value["s", "compliance_change"] == value["s", "drift_mean"] == 0
