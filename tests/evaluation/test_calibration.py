"""The strength at a budget: planted curves first, then models; and the layers suggested."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import PROMPTS, random_vector, splitting_condition
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.evaluation import calibration
from steerlens.evaluation.calibration import ALWAYS, MET, NEVER, _calibrated, calibrate_layers
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.evaluation.teacher_forcing import kl_percentiles, teacher_forced
from steerlens.judges.builtin import refusal
from steerlens.judges.judging import Judge
from steerlens.models.tokenizing import tokenize

QUIET = {"progress": False}
TEXTS = neutral_texts()[:12]
ONE = sl.SteeringVector(torch.eye(4)[:2], (0, 1))


def with_curve(monkeypatch, curve):
    """Let `curve` stand for KL over strength; returns the strengths of each round."""
    rounds = []

    def percentiles(_, rows, plans, **run):
        rounds.append([float(plan.strength) for plan in plans])
        return [float(curve(abs(strength))) for strength in rounds[-1]]

    monkeypatch.setattr(calibration, "_percentiles", percentiles)
    monkeypatch.setattr(calibration, "tokenize", lambda *_, **__: [])
    return rounds


@settings(deadline=None)
@given(st.floats(-9, 7), st.sampled_from([1.0, -2.0]), st.floats(0.5, 3))
def test_the_strength_of_a_known_curve_is_found(model, log_scale, sign, power):
    """KL = (strength / scale)^power reaches a budget of 1 at the scale."""
    scale = 2.0**log_scale
    with pytest.MonkeyPatch.context() as patch:
        rounds = with_curve(patch, lambda strength: (strength / scale) ** power)
        [found] = _calibrated(model, [sl.Steering(ONE, strength=sign)], 1.0, TEXTS, 0.01, **QUIET)
    assert found.status == MET
    assert 0.99 <= found.kl <= 1
    assert found.strength == pytest.approx(np.sign(sign) * scale, rel=0.03)
    assert found.steering.strength == found.strength
    assert len(rounds) <= 5


def test_the_first_crossing_of_a_curve_that_turns_back_is_found(model, monkeypatch):
    with_curve(monkeypatch, lambda s: 2.5 * s if s < 1.2 else 0.5 if s < 3 else s)
    [found] = _calibrated(model, [sl.Steering(ONE)], 1.0, TEXTS, 0.02, **QUIET)
    assert found.strength == pytest.approx(0.4, rel=0.02)
    assert found.tried.strength.is_monotonic_increasing


@pytest.mark.parametrize(
    ("curve", "status", "message"),
    [
        (lambda s: 0.3, NEVER, "give a smaller budget"),
        (lambda s: 5.0, ALWAYS, "give a larger budget"),
        (lambda s: np.inf, ALWAYS, "give a larger budget"),
        (lambda s: 0.0, NEVER, "changes nothing"),
    ],
)
def test_a_budget_that_cannot_be_met_is_reported(model, monkeypatch, curve, status, message):
    with_curve(monkeypatch, curve)
    with pytest.raises(sl.SteerlensError, match=f"{status}.*{message}"):
        sl.calibrate_strength(model, sl.Steering(ONE), 1.0, TEXTS)
    found = calibrate_layers(model, sl.Steering(ONE), 1.0, TEXTS)
    assert {layer: one.status for layer, one in found.items()} == {0: status, 1: status}


@pytest.fixture(scope="module")
def plan(model):
    return sl.Steering(random_vector(model, scale=1.0), layers=[1, 2])


def p95(model, plan, texts):
    rows = tokenize(model, texts, chat=False)
    return kl_percentiles(teacher_forced(model, rows, [plan], **QUIET))[0]


@pytest.mark.parametrize("setting", [{}, {"strength": -1.0}, {"edit": sl.hooks.ablate_direction}])
def test_the_calibrated_plan_has_the_budgets_kl(model, plan, setting):
    found = sl.calibrate_strength(model, replace(plan, **setting), 0.05, TEXTS, **QUIET)
    measured = p95(model, found.steering, TEXTS)
    assert measured == pytest.approx(found.kl, rel=1e-3)
    assert 0.05 * 0.98 <= measured <= 0.05 * 1.001
    assert np.sign(found.strength) == np.sign(setting.get("strength", 1.0))


def test_a_row_of_strengths_keeps_its_proportions(model, plan):
    by_layer = replace(plan, strength=(0.5, 2.0))
    found = sl.calibrate_strength(model, by_layer, 0.05, TEXTS, **QUIET)
    torch.testing.assert_close(
        torch.tensor(found.steering.strengths), torch.tensor([0.5, 2.0]) * found.strength
    )
    assert p95(model, found.steering, TEXTS) == pytest.approx(0.05, rel=0.03)
    with pytest.raises(sl.SteerlensError, match="expected one number"):
        calibrate_layers(model, by_layer, 0.05, TEXTS, **QUIET)


def test_layers_in_one_batch_are_layers_one_by_one(model, plan):
    together = calibrate_layers(model, plan, 0.05, TEXTS, layers=[0, 1, 3], **QUIET)
    for layer, found in together.items():
        alone = sl.calibrate_strength(model, replace(plan, layers=[layer]), 0.05, TEXTS, **QUIET)
        assert found.strength == pytest.approx(alone.strength, rel=1e-3)


def test_a_gate_that_never_opens_is_no_calibration(model, plan):
    closed = splitting_condition(model)
    closed = sl.Condition(closed.vector, closed.layers, above=1e9, similarity=closed.similarity)
    with pytest.raises(sl.SteerlensError, match="does its condition fire"):
        sl.calibrate_strength(model, replace(plan, when=closed), 0.05, TEXTS, **QUIET)
    with pytest.raises(sl.SteerlensError, match="above 0"):
        sl.calibrate_strength(model, plan, 0.0, TEXTS, **QUIET)


def test_a_suggestion_compares_at_equal_side_effect(model, plan):
    d = Judge("d", lambda texts: [text.count("d") for text in texts])
    found = sl.suggest(
        model, plan.vector, PROMPTS, d, kl_budget=0.05, texts=TEXTS, max_new_tokens=6, **QUIET
    )
    assert set(found.table.layers) == {(0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3)}
    met = found.table[found.table.status == MET]
    assert met.kl_p95.between(0.05 * 0.98, 0.05).all()
    assert met.effect.is_monotonic_decreasing
    assert found.steering.layers_steered == found.table.layers[0]
    best = found.table.iloc[0]
    steered = sl.generate(model, PROMPTS, found.steering, max_new_tokens=6, **QUIET)
    unsteered = sl.generate(model, PROMPTS, max_new_tokens=6, **QUIET)
    assert best.steered == pytest.approx(d(list(steered)).mean())
    assert best.effect == pytest.approx((d(list(steered)) - d(list(unsteered))).mean())
    lowest = sl.suggest(
        model, plan.vector, PROMPTS, d, raises=False,
        kl_budget=0.05, texts=TEXTS, max_new_tokens=6, **QUIET,
    )  # fmt: skip
    pd.testing.assert_series_equal(
        lowest.table.effect.dropna().sort_values(ignore_index=True),
        found.table.effect.dropna().sort_values(ignore_index=True),
    )
    assert lowest.table.effect[0] == found.table.effect.min()
    with pytest.raises(sl.SteerlensError, match=r"got widths=.*expected at least one of 1 to"):
        sl.suggest(model, plan.vector, PROMPTS, d, widths=[9], **QUIET)


@pytest.mark.slow
def test_layers_for_the_demos_refusal_are_suggested(tiny_chat):
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    refusals = replace(refusals, pairs=refusals.pairs[:10])
    refuse = sl.extract(tiny_chat, refusals, tokens="suffix", **QUIET)
    prompts = sl.ContrastiveDataset.load(sl.demo_file("harmful.json")).validation.positive[:12]
    found = sl.suggest(
        tiny_chat, refuse, prompts, refusal,
        kl_budget=3.0, layers=[0, 2, 3], texts=TEXTS, max_new_tokens=20, **QUIET,
    )  # fmt: skip
    assert found.table.effect[0] > 0.5
    assert found.table.effect[0] > found.table.effect.min() + 0.3
    assert "evaluate() it on others" in str(found)
