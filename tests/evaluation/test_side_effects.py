"""Side effects: the laws of KL, one text at a time as the oracle, and the embedded model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import PROMPTS, assert_no_hooks_left, random_vector, splitting_condition
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.evaluation.side_effects import neutral_texts, prompt_effects, text_effects
from steerlens.evaluation.teacher_forcing import (
    WORTH_A_PASS,
    _groups,
    _kl,
    as_text,
    kl_percentiles,
    teacher_forced,
)
from steerlens.models.tokenizing import tokenize
from steerlens.steering.batch_plans import stacked

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def rows(model):
    return tokenize(model, PROMPTS)


@pytest.fixture(scope="module")
def plan(model):
    return sl.Steering(random_vector(model, scale=0.5), layers=[1, 2], strength=2.0)


def by_hand(model, row, plan):
    """KL of each token and surprise, of one unpadded text under the plan's plain hooks."""
    tokens = torch.tensor([row.ids])
    with torch.no_grad():
        before = model(tokens)[0].double().log_softmax(-1)
        with model.hooks(fwd_hooks=plan.hooks()):
            after = model(tokens)[0].double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    return kl.numpy(), -after[torch.arange(len(row.ids) - 1), list(row.ids[1:])].numpy()


def test_a_batch_of_texts_and_plans_is_each_alone(model, rows, plan):
    plans = [
        plan,
        replace(plan, strength=-2.0),
        replace(plan, positions=slice(1, 4)),
        replace(plan, layers=[2], when=splitting_condition(model), skip_bos=True),
    ]
    together = teacher_forced(model, rows, plans, **QUIET)
    for row, forced in zip(rows, together, strict=True):
        for index, alone in enumerate(plans):
            kl, surprise = by_hand(model, row, alone)
            np.testing.assert_allclose(forced.kl[index], kl, atol=1e-5)
            np.testing.assert_allclose(forced.surprise[index + 1], surprise, atol=1e-4)
    assert_no_hooks_left(model)


def test_no_batching_and_no_grouping_of_plans_changes_a_number(model, rows, plan):
    plans = [replace(plan, strength=strength) for strength in (0.5, 1.0, 2.0)]
    whole = teacher_forced(model, rows, plans, **QUIET)
    cut = teacher_forced(model, rows, plans, batch_tokens=40, **QUIET)
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one.kl, other.kl, atol=1e-5)
        np.testing.assert_allclose(one.surprise, other.surprise, atol=1e-4)


def test_what_runs_from_different_layers_up_comes_back_in_order(model, rows, plan):
    """Enough steerings of each layer that each has a pass of its own, above what it shares."""
    plans = [
        replace(plan, layers=[layer], strength=strength)
        for strength in np.linspace(-3, 3, WORTH_A_PASS)
        for layer in (3, 0, 2)
    ]
    groups = _groups(plans, most=100)
    assert [{plans[index].layers_steered for index in group} for group in groups] == [
        {(0,)}, {(2,)}, {(3,)},
    ]  # fmt: skip
    assert [len(group) for group in _groups(plans, most=4)] == [4, 4, 4, 4, 2]
    for row, forced in zip(rows, teacher_forced(model, rows, plans, **QUIET), strict=True):
        for index, alone in enumerate(plans):
            kl, surprise = by_hand(model, row, alone)
            np.testing.assert_allclose(forced.kl[index], kl, atol=1e-5)
            np.testing.assert_allclose(forced.surprise[index + 1], surprise, atol=1e-4)


def test_a_zero_vector_and_a_closed_gate_change_nothing(model, rows, plan):
    condition = splitting_condition(model)
    nothing = replace(plan, vector=plan.vector * 0)
    gated = replace(plan, layers=[2], when=condition, strength=3.0)
    forced = teacher_forced(model, rows, [nothing, gated], **QUIET)
    assert all((text.kl[0] == 0).all() for text in forced)
    opened = [bool(text.open[1]) for text in forced]
    assert set(opened) == {True, False}
    for text, is_open in zip(forced, opened, strict=True):
        assert text.open[0]
        assert (text.kl[1].max() > 0.01) == is_open


logits = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


@settings(deadline=None)
@given(logits, logits)
def test_kl_is_never_negative_and_is_scipys(first, second):
    from scipy.stats import entropy

    p, q = (torch.tensor([one], dtype=torch.float64).log_softmax(-1) for one in (first, second))
    [[found]] = _kl(p, q[None]).tolist()
    assert found >= -1e-12
    assert found == pytest.approx(entropy(p[0].exp(), q[0].exp()), rel=1e-6, abs=1e-9)
    assert _kl(p, p[None]).item() == 0


def test_kl_survives_impossible_tokens_and_broken_numbers():
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[[0.25, 0.75, 0.0]], [[1.0, 0.0, 0.0]], [[torch.nan] * 3]]).log()
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert _kl(p, q)[:, 0].tolist() == pytest.approx([expected, np.inf, np.inf])


def test_positions_after_the_prompt_begin_after_the_first_token_of_a_text(model, rows, plan):
    for positions, same_as in (("generated", slice(1, None)), ("last", "all")):
        plans = [as_text(replace(plan, positions=p)) for p in (positions, same_as)]
        for text in teacher_forced(model, rows, plans, **QUIET):
            np.testing.assert_allclose(text.kl[0], text.kl[1], atol=1e-6)
            assert text.kl[0].max() > 0.01
    with pytest.raises(sl.SteerlensError, match="would touch no token"):
        teacher_forced(model, rows, [replace(plan, positions=slice(200, None))], **QUIET)


def test_the_table_says_what_the_tokens_say(model, rows, plan):
    texts = [prompt for prompt in PROMPTS if len(prompt) > 5]
    table = text_effects(model, {"a": plan, "b": replace(plan, strength=4.0)}, texts, **QUIET)
    cell = table.set_index(["steering", "measure"])["value"]
    forced = teacher_forced(model, tokenize(model, texts, chat=False), [plan], **QUIET)
    kl = np.concatenate([text.kl[0] for text in forced])
    surprise = np.concatenate([text.surprise for text in forced], axis=1)
    assert cell["a", "kl_mean"] == pytest.approx(kl.mean(), rel=1e-4)
    assert cell["a", "kl_p95"] == pytest.approx(np.quantile(kl, 0.95), rel=1e-4)
    assert kl_percentiles(forced) == pytest.approx([np.quantile(kl, 0.95)])
    ratio = np.exp(np.diff(surprise.mean(axis=1))[0])
    assert cell["a", "perplexity_ratio"] == pytest.approx(ratio, rel=1e-4)
    change = cell["a", "bits_per_character"] - cell["unsteered", "bits_per_character"]
    assert cell["a", "bits_per_character_change"] == pytest.approx(change)
    assert cell["b", "kl_mean"] > cell["a", "kl_mean"]
    intervals = table.dropna(subset=["low"])
    assert (intervals.low <= intervals.value).all()
    assert (intervals.value <= intervals.high).all()
    assert set(table.n) == {len(texts)}


def test_stacked_plans_reply_as_each_alone(model, plan):
    plans = [None, plan, replace(plan, strength=-1.0), replace(plan, layers=[3], strength=4.0)]
    options = {"max_new_tokens": 6, "progress": False}
    together = sl.generate(model, PROMPTS * 4, stacked(plans, len(PROMPTS)), **options)
    apart = [reply for p in plans for reply in sl.generate(model, PROMPTS, p, **options).tokens]
    assert list(together.tokens) == apart
    assert len(set(apart)) > len(PROMPTS)


def test_neutral_text_mixes_its_kinds():
    texts = neutral_texts()
    assert len(texts) == len(set(texts)) >= 60
    assert texts[2].startswith("Put the flour")


@pytest.mark.slow
def test_a_conditional_refusal_leaves_harmless_prompts_alone(tiny_chat):
    """Where the gate is closed nothing drifts; where it is open, the first token does."""
    refusals = sl.ContrastiveDataset.load(sl.demo_file("refusal.json")).train
    refusals = replace(refusals, pairs=refusals.pairs[:10])
    refuse = sl.extract(tiny_chat, refusals, tokens="suffix", layers=[2, 3], **QUIET)
    harms = sl.ContrastiveDataset.load(sl.demo_file("harmful.json"))
    estimator = sl.estimators.linear_discriminant
    harm = sl.extract(tiny_chat, harms.train, estimator, tokens="last", layers=[0, 1], **QUIET)
    found = sl.search_conditions(
        tiny_chat,
        harm,
        harms.validation,
        tokens="last",
        similarity=sl.similarities.cosine,
        **QUIET,
    )
    always = sl.Steering(refuse, strength=0.6, relative=True)
    plans = {"always": always, "gated": replace(always, when=found.best)}
    harmless, harmful = zip(*[pair[::-1] for pair in harms.test.pairs[:20]], strict=True)
    cell = prompt_effects(tiny_chat, plans, harmless, max_new_tokens=20, **QUIET)
    cell = cell.set_index(["steering", "measure"])
    assert cell.value["gated", "drift_closed"] < 1e-9
    assert cell.n["gated", "drift_closed"] >= 18
    assert cell.value["gated", "open"] <= 0.1
    assert ("always", "drift_closed") not in cell.index
    assert cell.low["always", "drift_mean"] > 0.1
    assert cell.high["gated", "refusal"] < cell.low["always", "refusal"]
    assert cell.value["unsteered", "reply_tokens"] > 5
    on_harm = prompt_effects(tiny_chat, plans, harmful, max_new_tokens=20, **QUIET)
    assert on_harm.set_index(["steering", "measure"]).value["gated", "refusal"] > 0.8
