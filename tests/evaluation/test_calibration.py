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
from steerlens.evaluation import calibration, kl_search, suggestion, whole_replies
from steerlens.evaluation.calibration import (
    ALWAYS,
    MET,
    NEVER,
    at_kl_budget,
    calibrate_layers,
)
from steerlens.evaluation.default_strength import default_steering
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.evaluation.teacher_forcing import kl_percentiles, teacher_forced
from steerlens.judges.builtin import refusal
from steerlens.judges.judging import Judge
from steerlens.models.tokenizing import tokenize

QUIET = {"progress": False}
KL_ALONE = {**QUIET, "degenerate_budget": 1.0}
"""What a random model says falls apart in any case."""
TEXTS = neutral_texts()[:12]
TEN = list("0123456789")
"""Prompts for `with_replies`."""
ONE = sl.SteeringVector(torch.eye(4)[:2], (0, 1))


def with_curve(monkeypatch, curve):
    """Let `curve` stand for KL over strength; returns the strengths of each round."""
    rounds = []

    def percentiles(_, rows, plans, **run):
        rounds.append([float(plan.strength) for plan in plans])
        return [float(curve(abs(strength))) for strength in rounds[-1]]

    monkeypatch.setattr(kl_search, "percentiles", percentiles)
    monkeypatch.setattr(calibration, "percentiles", percentiles)
    monkeypatch.setattr(calibration, "tokenize", lambda *_, **__: [])
    return rounds


@settings(deadline=None)
@given(st.floats(-9, 7), st.sampled_from([1.0, -2.0]), st.floats(0.5, 3))
def test_the_strength_of_a_known_curve_is_found(model, log_scale, sign, power):
    """KL = (strength / scale)^power reaches a budget of 1 at the scale."""
    scale = 2.0**log_scale
    with pytest.MonkeyPatch.context() as patch:
        rounds = with_curve(patch, lambda strength: (strength / scale) ** power)
        [found] = at_kl_budget(model, [sl.Steering(ONE, strength=sign)], 1.0, TEXTS, 0.01, **QUIET)
    assert found.status == MET
    assert 0.99 <= found.kl <= 1
    assert found.strength == pytest.approx(np.sign(sign) * scale, rel=0.03)
    assert found.steering.strength == found.strength
    assert len(rounds) <= 6


def test_the_first_crossing_of_a_curve_that_turns_back_is_found(model, monkeypatch):
    with_curve(monkeypatch, lambda s: 2.5 * s if s < 1.2 else 0.5 if s < 3 else s)
    [found] = at_kl_budget(model, [sl.Steering(ONE)], 1.0, TEXTS, 0.02, **QUIET)
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
    found = sl.calibrate_strength(model, replace(plan, **setting), 0.05, TEXTS, **KL_ALONE)
    measured = p95(model, found.steering, TEXTS)
    assert measured == pytest.approx(found.kl, rel=1e-3)
    assert 0.05 * 0.95 <= measured <= 0.05 * 1.001
    assert np.sign(found.strength) == np.sign(setting.get("strength", 1.0))


def test_a_row_of_strengths_keeps_its_proportions(model, plan):
    by_layer = replace(plan, strength=(0.5, 2.0))
    found = sl.calibrate_strength(model, by_layer, 0.05, TEXTS, **KL_ALONE)
    torch.testing.assert_close(
        torch.tensor(found.steering.strengths), torch.tensor([0.5, 2.0]) * found.strength
    )
    assert p95(model, found.steering, TEXTS) == pytest.approx(0.05, rel=0.03)
    with pytest.raises(sl.SteerlensError, match="expected one number"):
        calibrate_layers(model, by_layer, 0.05, TEXTS, **QUIET)


def test_layers_in_one_batch_are_layers_one_by_one(model, plan):
    together = calibrate_layers(model, plan, 0.05, TEXTS, layers=[0, 1, 3], **QUIET)
    for layer, found in together.items():
        alone = sl.calibrate_strength(model, replace(plan, layers=[layer]), 0.05, TEXTS, **KL_ALONE)
        assert found.strength == pytest.approx(alone.strength, rel=1e-3)


def test_a_gate_that_never_opens_is_no_calibration(model, plan):
    closed = splitting_condition(model)
    closed = sl.Condition(closed.vector, closed.layers, above=1e9, similarity=closed.similarity)
    with pytest.raises(sl.SteerlensError, match="does its condition fire"):
        sl.calibrate_strength(model, replace(plan, when=closed), 0.05, TEXTS, **KL_ALONE)
    with pytest.raises(sl.SteerlensError, match="above 0"):
        sl.calibrate_strength(model, plan, 0.0, TEXTS, **QUIET)


# Replies that fall apart


def with_replies(monkeypatch, share_at, unsteered=0.0):
    """Let `share_at` of strength say how many of ten replies fall apart; KL is the strength."""
    asked = []

    def replies(_, prompts, plans, **options):
        strengths = sum(plan.strength.sum(dim=1) for plan in plans).tolist()
        asked.append(strengths)
        shares = [share_at(strength) if strength else unsteered for strength in strengths]
        return [
            "no no no no" if int(prompt) * 3 % 10 < round(10 * share) else "the sea is wide"
            for prompt, share in zip(prompts, shares, strict=True)
        ]

    with_curve(monkeypatch, lambda strength: strength)
    monkeypatch.setattr(whole_replies, "generate", replies)
    return asked


def whole(model, steering=None, **options):
    steering = sl.Steering(ONE) if steering is None else steering
    options = {"degenerate_budget": 0.1, "prompts": TEN, **QUIET, **options}
    return sl.calibrate_strength(model, steering, 1.0, TEXTS, **options)


def test_replies_that_are_whole_leave_the_strength_of_the_kl_budget(model, monkeypatch):
    asked = with_replies(monkeypatch, lambda strength: 0.1)
    found = whole(model)
    assert (found.kl, found.degenerate) == (pytest.approx(1, rel=0.05), pytest.approx(0.1))
    assert [len(strengths) for strengths in asked] == [10, 5]  # unsteered and steered; the rest
    assert (found.texts, found.prompts) == (tuple(TEXTS), tuple(TEN))
    assert "1 of 10 replies degenerate, at most 10%" in repr(found)
    assert "1 of 10 replies degenerate" in found._repr_html_()


@pytest.mark.parametrize(("breaks_at", "expected"), [(0.7, 0.6), (0.44, 0.35), (0.1, 0.08)])
def test_where_they_fall_apart_the_greatest_strength_below_is_taken(
    model, monkeypatch, breaks_at, expected
):
    asked = with_replies(monkeypatch, lambda strength: 0.4 if strength > breaks_at else 0.0)
    found = whole(model)
    assert found.strength == pytest.approx(expected, rel=0.05)
    assert {len(strengths) for strengths in asked} == {10, 5}  # the broken ones, of half only
    assert found.steering.strength == found.strength
    assert found.kl == pytest.approx(found.strength)
    assert found.degenerate == 0
    assert found.tried.strength.is_monotonic_increasing
    broken = found.tried.dropna()
    assert (broken[broken.strength > found.strength].degenerate > 0.1).any()


def test_a_steering_that_breaks_replies_at_every_strength_is_refused(model, monkeypatch):
    with_replies(monkeypatch, lambda strength: 0.4)
    with pytest.raises(sl.SteerlensError, match=r"10% degenerate .* a larger degenerate_b"):
        whole(model)


def test_replies_may_be_as_broken_as_unsteered_ones(model, monkeypatch):
    with_replies(monkeypatch, lambda strength: 0.5, unsteered=0.5)
    found = whole(model)
    assert (found.degenerate, found.degenerate_budget) == (0.5, 0.6)  # 3 of the first 5
    assert found.kl == pytest.approx(1, rel=0.05)


def test_strengths_by_layer_keep_their_proportions_when_they_are_lowered(model, monkeypatch):
    with_replies(monkeypatch, lambda strength: 0.4 if strength > 2 else 0.0)
    for module in (calibration, kl_search):
        monkeypatch.setattr(
            module, "percentiles", lambda m, rows, plans, **run: [p.strengths[0] for p in plans]
        )
    found = whole(model, sl.Steering(ONE, strength=(1.0, 3.0)))
    first, second = found.steering.strengths
    assert second == pytest.approx(3 * first)
    assert first == pytest.approx(0.45, rel=0.05)
    assert found.strength == pytest.approx(first)


def test_default_steerings_are_calibrated_without_condition_or_as_learned(model, monkeypatch):
    with_replies(monkeypatch, lambda strength: 0.0)
    monkeypatch.setattr(calibration, "instructions", lambda: TEN)
    gated = sl.Steering(ONE, [1], 9.0, when=sl.Condition(ONE, 0, above=1e9))
    found, words = default_steering(model, gated, **QUIET)
    assert found.strength == pytest.approx(0.5, rel=0.05)  # the default budget
    assert found.when is gated.when
    assert "calibrated" in words
    assert "0 of 10 replies degenerate" in words
    learned = replace(ONE, provenance={"objective": "bipo"})
    found, words = default_steering(model, sl.Steering(learned, strength=9.0))
    assert (found.strength, "learned" in words) == (1.0, True)


def test_a_budget_of_replies_is_a_share(model):
    with pytest.raises(sl.SteerlensError, match="expected a share from 0 to 1"):
        whole(model, degenerate_budget=2.0)


def test_a_candidate_whose_replies_fall_apart_is_not_suggested(model, plan, monkeypatch):
    """Layer 1 has the greatest effect, and its replies repeat themselves."""

    def replies(_, prompts, plans, **options):
        acts = {int(plan.steering.layers_steered[0]): plan.strength[:, 0] != 0 for plan in plans}
        return [
            "d no no no no no"
            if acts[1][row]
            else "d for a change"
            if acts[2][row]
            else "a whole one"
            for row in range(len(prompts))
        ]

    monkeypatch.setattr(suggestion, "generate", replies)
    d = Judge("d", lambda texts: [2.0 * ("d no" in text) + ("d for" in text) for text in texts])
    found = sl.suggest(
        model, plan.vector, PROMPTS, d, kl_budget=0.05, layers=[1, 2], widths=[1], texts=TEXTS,
        **QUIET,
    )  # fmt: skip
    assert found.steering.layers_steered == (2,)
    assert found.table.effect.tolist() == [1, 2]
    assert found.table.degeneration.tolist() == [0, 1]


def by_window(monkeypatch, text_of):
    """Let `text_of` window and strength be every reply; returns how many each call asked for."""
    asked = []

    def replies(_, prompts, plans, **options):
        asked.append(len(prompts))
        texts = [text_of((), 0.0)] * len(prompts)
        for plan in plans:
            for row, strengths in enumerate(plan.strength.tolist()):
                if any(strengths):
                    texts[row] = text_of(plan.steering.layers_steered, sum(strengths))
        return texts

    monkeypatch.setattr(suggestion, "generate", replies)
    monkeypatch.setattr(whole_replies, "generate", replies)
    return asked


TWELVE = [f"Question {number}?" for number in range(12)]


@pytest.mark.parametrize(
    ("finalists", "rows", "n"),
    [(3, [10 * 4, 4 * 12], [12] * 3 + [4] * 6), (1, [10 * 4, 4 * 8, 2 * 12], [12, 8, 8] + [4] * 6)],
)
def test_a_third_of_many_candidates_stays_in_each_round_and_the_best_survives(
    finalists, rows, n, model, plan, monkeypatch
):
    """One window of nine is better than all others, wherever it stands."""
    monkeypatch.setattr(suggestion, "FINALISTS", finalists)
    windows = suggestion.neighbours(range(4), (1, 2, 3))
    d = Judge("d", lambda texts: [text.count("d") for text in texts])
    for best in ((0,), (2, 3), (1, 2, 3)):
        words = {window: "a plain text " + "d" * (5 if window == best else 1) for window in windows}
        words[()] = "a plain text"
        asked = by_window(monkeypatch, lambda window, strength, words=words: words[window])
        found = sl.suggest(
            model, plan.vector, TWELVE, d, kl_budget=0.05, widths=(1, 2, 3), texts=TEXTS, **QUIET
        )
        assert found.steering.layers_steered == best
        assert asked == rows
        counts = found.table.status.value_counts()
        assert dict(counts) == {MET: finalists, "dropped": 9 - finalists}
        assert found.table.n.tolist() == n
        assert found.table.effect.tolist()[:2] == [5, 1]


def test_the_best_candidate_is_lowered_until_its_replies_are_whole(model, plan, monkeypatch):
    at_budget = calibrate_layers(
        model, replace(plan, strength=1.0), 0.05, TEXTS, layers=[1], **QUIET
    )
    limit = 0.7 * at_budget[1].strength
    text = lambda window, strength: "d no no no no" if strength > limit else f"d whole {window}"  # noqa: E731
    by_window(monkeypatch, text)
    d = Judge("d", lambda texts: [float("d" in text and "()" not in text) for text in texts])
    found = sl.suggest(
        model, plan.vector, TWELVE, d, kl_budget=0.05, layers=[1], widths=[1], texts=TEXTS, **QUIET
    )
    assert 0.6 * limit < found.steering.strength <= limit
    best = found.table.iloc[0]
    assert (best.strength, best.degeneration) == (found.steering.strength, 0)
    assert best.kl_p95 < 0.05
    assert best.effect == 1


def test_a_suggestion_compares_at_equal_side_effect(model, plan):
    d = Judge("d", lambda texts: [text.count("d") for text in texts])
    found = sl.suggest(
        model, plan.vector, PROMPTS, d, kl_budget=0.05, texts=TEXTS, max_new_tokens=6,
        degenerate_budget=1.0, **QUIET,
    )  # fmt: skip
    assert set(found.table.layers) == {(0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3)}
    met = found.table[found.table.status == MET]
    assert met.kl_p95.between(0.05 * 0.95, 0.05).all()
    assert met.effect.is_monotonic_decreasing
    assert found.steering.layers_steered == found.table.layers[0]
    best = found.table.iloc[0]
    steered = sl.generate(model, PROMPTS, found.steering, max_new_tokens=6, **QUIET)
    unsteered = sl.generate(model, PROMPTS, max_new_tokens=6, **QUIET)
    assert best.steered == pytest.approx(d(list(steered)).mean())
    assert best.effect == pytest.approx((d(list(steered)) - d(list(unsteered))).mean())
    lowest = sl.suggest(
        model, plan.vector, PROMPTS, d, raises=False,
        kl_budget=0.05, texts=TEXTS, max_new_tokens=6, degenerate_budget=1.0, **QUIET,
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
