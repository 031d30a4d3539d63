"""Gates that are read at every token, soft gates, schedules and places, in generation."""

from dataclasses import replace

import pytest
import torch
from helpers import (
    PROMPTS,
    assert_no_hooks_left,
    plain_generate,
    random_vector,
    splitting_condition,
)

import steerlens as sl
from steerlens.activations.reading import every_token
from steerlens.evaluation.teacher_forcing import as_text, teacher_forced
from steerlens.models.tokenizing import tokenize
from steerlens.steering import generation, hooks, places
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.positions import reads_text
from steerlens.steering.schedules import Decay, Ramp
from steerlens.steering.similarities import projection
from steerlens.steering.soft_gates import Linear, Logistic, Relu, SoftGate

READ, STEERED = 1, 2
"""The layers that conditions read, and that are steered."""


def replied(model, prompts=PROMPTS, steering=None, max_new_tokens=10, **options):
    return sl.generate(
        model, prompts, steering, max_new_tokens=max_new_tokens, progress=False, **options
    )


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.fixture(scope="module")
def angry(model):
    """Fires on about half of all tokens."""
    values = [
        every_token(model, row.ids, [("resid_post", READ)])["resid_post", READ]
        @ random_vector(model, 7)[READ]
        for row in tokenize(model, PROMPTS)
    ]
    middle = torch.cat(values).median().item() / random_vector(model, 7)[READ].norm().item()
    return sl.Condition(
        random_vector(model, 7), READ, above=middle, similarity=projection, name="angry"
    )


@pytest.fixture(scope="module")
def harmful(model):
    return splitting_condition(model, seed=3, name="harmful")


@pytest.fixture
def rows_end_early(model, monkeypatch):
    tokens = replied(model).tokens
    ends = frozenset({tokens[0][2], tokens[1][5], tokens[3][0]})
    monkeypatch.setattr(generation, "end_tokens", lambda model: ends)


def plans(vector, angry, harmful):
    add = sl.Steering(vector, [STEERED], 1.5, when_token=angry)
    few = places.generated(stop=3) | places.at([1, -1])
    return {
        "hard": add,
        "not": replace(add, when_token=~angry),
        "prompt and token": replace(add, when=harmful),
        "with places": replace(add, when_token=angry & ~places.generated(step=2)),
        "places": replace(add, when_token=None, positions=few),
        "exclusions": replace(add, positions=~places.tokens(range(100, 1500))),
        "soft": replace(add, when_token=SoftGate(angry, Linear(0.5, 0.1))),
        "soft prompt": replace(add, when=SoftGate(harmful, Logistic(2.0)), when_token=None),
        "decay": replace(add, schedule=Decay(3)),
        "ramp": replace(add, when_token=None, schedule=Ramp(4), positions="last"),
        "capped": replace(add, edit=hooks.cap_direction, strength=-0.5),
    }


@pytest.fixture(
    params=[
        "hard", "not", "prompt and token", "with places", "places", "exclusions", "soft",
        "soft prompt", "decay", "ramp", "capped",
    ]
)  # fmt: skip
def plan(request, vector, angry, harmful):
    return plans(vector, angry, harmful)[request.param]


# Laws


def test_a_batch_is_its_rows_and_the_cache_changes_nothing(model, plan, rows_end_early):
    together = replied(model, steering=plan)
    alone = [replied(model, [prompt], plan) for prompt in PROMPTS]
    assert together.tokens == tuple(reply.tokens[0] for reply in alone)
    assert together.tokens == replied(model, steering=plan, use_cache=False).tokens
    assert together.tokens != replied(model).tokens
    for report in together.token_gates:
        for row, line in enumerate(report.timelines):
            [own] = alone[row].token_gates[0].timelines
            assert line.open.equal(own.open)
            assert line.tokens == own.tokens
    assert_no_hooks_left(model)


def test_plain_hooks_do_the_same(model, plan):
    """In the host's own loop, with and without cache; rules about the text itself are refused."""
    [row] = tokenize(model, PROMPTS[3:4])
    ours = replied(model, [row], plan, max_new_tokens=6).tokens[0]
    if reads_text(plan.positions):
        with pytest.raises(sl.SteerlensError, match="needs to see which tokens there are"):
            plain_generate(model, row.ids, [plan])
        return
    for use_cache in (True, False):
        assert plain_generate(model, row.ids, [plan], use_cache=use_cache)[: len(ours)] == ours


def test_rows_of_a_batch_plan_have_their_own_strengths(model, vector, angry):
    plan = sl.Steering(vector, [STEERED], when_token=SoftGate(angry, Linear(0.5, 0.1)))
    strengths = torch.tensor([[0.0], [1.0], [2.0], [-1.0], [0.5], [3.0]])
    found = replied(model, steering=BatchPlan(plan, strengths)).tokens
    alone = (
        replied(model, [prompt], replace(plan, strength=strength.item())).tokens[0]
        for prompt, strength in zip(PROMPTS, strengths[:, 0], strict=True)
    )
    assert found == tuple(alone)


# Plain reference


def plain(model, ids, direction, decide, n_new):
    """Greedy decoding without cache or steerlens: `decide(stream, n_prompt)` gives a factor."""
    text, n_prompt = list(ids), len(ids)
    for _ in range(n_new):
        kept = {}

        def read(resid, hook, kept=kept):
            kept["factor"] = decide(resid[0], n_prompt)

        def write(resid, hook, kept=kept):
            return resid + kept["factor"][None, :, None] * direction

        hooked = [
            (f"blocks.{READ}.hook_resid_post", read),
            (f"blocks.{STEERED}.hook_resid_post", write),
        ]
        with torch.no_grad():
            logits = model.run_with_hooks(torch.tensor([text]), fwd_hooks=hooked)
        text.append(int(logits[0, -1].argmax()))
    return tuple(text[n_prompt:])


@pytest.mark.parametrize("opening", [None, Relu(0.7), Linear(-0.3, 0.2), Logistic(3.0)], ids=repr)
def test_each_token_is_decided_by_its_own_stream(model, vector, angry, opening):
    gate = angry if opening is None else SoftGate(angry, opening)
    plan = sl.Steering(vector, [STEERED], 1.5, when_token=gate)
    unit = angry.vector[READ] / angry.vector[READ].norm()

    def decide(stream, n_prompt):
        margin = stream @ unit - angry.threshold
        norms = stream.norm(dim=-1)
        sink = norms > 10 * norms[:n_prompt].median()
        sink[0] = True
        factor = (margin > 0).float() if opening is None else opening(margin)
        return 1.5 * factor.masked_fill(sink, 0.0)

    for row in tokenize(model, PROMPTS[1:4]):
        found = replied(model, [row], plan, max_new_tokens=8).tokens[0]
        assert found == plain(model, row.ids, vector[STEERED], decide, 8)[: len(found)]


def test_a_gate_that_is_always_open_steers_all_but_the_first_token(model, vector):
    always = sl.Condition(vector, READ, above=-1e9, similarity=projection)
    gated = sl.Steering(vector, [STEERED], when_token=always)
    plain = sl.Steering(vector, [STEERED], skip_bos=True)
    assert replied(model, steering=gated).tokens == replied(model, steering=plain).tokens
    with_sinks = replace(gated, when_token=replace(always, sinks=True))
    everywhere = replace(plain, skip_bos=False)
    assert replied(model, steering=with_sinks).tokens == replied(model, steering=everywhere).tokens


def test_long_tokens_never_fire(model, vector):
    """A token that is many times as long as the others is an attention sink."""
    always = sl.Condition(vector, READ, above=-1e9, similarity=projection)
    gated = sl.Steering(vector, [STEERED], when_token=always)

    def lengthen(resid, hook):
        if resid.shape[1] > 1:
            resid[:, 2] *= 400
        return resid

    with model.hooks(fwd_hooks=[(f"blocks.{READ}.hook_resid_post", lengthen)]):
        [line] = replied(model, PROMPTS[3:4], gated).token_gates[0].timelines
    assert line.open.logical_not().nonzero().flatten().tolist() == [0, 2]
    assert line.similarity.isnan().nonzero()[:, 0].tolist() == [0, 2]


# Timelines


def test_replies_say_what_each_token_was(model, vector, angry):
    replies = replied(model, steering=sl.Steering(vector, [STEERED], when_token=angry))
    [report] = replies.token_gates
    for row, line, reply in zip(
        tokenize(model, PROMPTS), report.timelines, replies.tokens, strict=True
    ):
        assert line.n_prompt == len(row.ids)
        assert len(line.tokens) == len(line.open) == len(row.ids) + len(reply) - 1
        assert line.open.equal(angry.fires(line.similarity))
    fired = sum(int(line.open.sum()) for line in report.timelines)
    total = sum(len(line.open) for line in report.timelines)
    assert repr(report) == f"angry: fired on {fired} of {total} tokens"
    assert 0.2 < fired / total < 0.8
    assert report.share[0] == pytest.approx(report.timelines[0].open.float().mean().item())
    html = replies._repr_html_()
    assert "tokens on which angry fired" in html
    assert "<mark>" in html
    assert report.seen_of(0) in html


def test_streamed_timelines_grow(model, vector, angry):
    steering = sl.Steering(vector, [STEERED], when_token=angry)
    steps = list(sl.stream(model, PROMPTS[:2], steering, max_new_tokens=4))
    whole = replied(model, PROMPTS[:2], steering, max_new_tokens=4)
    assert len(steps[0].token_gates[0].timelines[0].open) < len(
        steps[-1].token_gates[0].timelines[0].open
    )
    for ours, theirs in zip(
        steps[-1].token_gates[0].timelines, whole.token_gates[0].timelines, strict=True
    ):
        assert ours.open.equal(theirs.open)


# Texts read at once


def test_texts_are_scored_under_the_gate_of_each_token(model, vector, angry):
    rows = tokenize(model, PROMPTS)
    never = sl.Steering(vector, [STEERED], 1.5, when_token=replace(angry, above=1e9))
    open_ = replace(never, when_token=angry)
    always = replace(never, when_token=replace(angry, above=-1e9))
    for text in teacher_forced(model, rows, [never, open_, always], progress=False):
        kl = text.kl.mean(axis=1)
        assert kl[0] == pytest.approx(0, abs=1e-6)
        assert kl[1] > 1e-4
        assert kl[2] > 1e-4


def test_schedules_count_a_text_from_its_second_token(model, vector):
    rows = tokenize(model, PROMPTS[3:4])
    ramp = sl.Steering(vector, [STEERED], 2.0, schedule=Ramp(4))
    [text] = teacher_forced(model, rows, [as_text(ramp)], progress=False)
    assert text.kl[0, 0] == pytest.approx(0, abs=1e-6)
    assert text.kl[0, 4] > 1e-3


# Rules


def test_a_rule_says_where(model, vector, angry, harmful):
    refuse = sl.Steering(vector, [STEERED], 1.5)
    known = {"harmful": harmful, "angry": angry}
    [ruled] = sl.apply_rules("if harmful then refuse where not angry", known, {"refuse": refuse})
    assert str(ruled.when) == "harmful"
    assert str(ruled.when_token) == "not angry"
    by_hand = replace(refuse, when=harmful, when_token=~angry)
    assert replied(model, steering=ruled).tokens == replied(model, steering=by_hand).tokens


# Refusals


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layers": [0]}, "reads layer 1 .*, but steering starts at layer 0"),
        ({"when_token": "angry"}, "got when_token='angry'; expected a Condition"),
        ({"schedule": 3}, "got schedule=3; expected a function"),
    ],
)
def test_what_cannot_work_is_refused(unchecked, vector, angry, fields, told):
    with pytest.raises(sl.SteerlensError, match=told):
        sl.Steering(vector, **{"layers": [STEERED], "when_token": angry, **fields})


def test_a_condition_is_no_place(vector, angry):
    with pytest.raises(sl.SteerlensError, match=r"places\.generated.*when_token="):
        sl.Steering(vector, [STEERED], positions=~angry)


def test_factors_that_are_no_numbers_are_refused(unchecked, model, vector, angry):
    broken = SoftGate(angry, lambda margin: margin / 0)
    with pytest.raises(sl.SteerlensError, match="expected a finite number for each"):
        replied(model, steering=sl.Steering(vector, [STEERED], when_token=broken))
    with pytest.raises(sl.SteerlensError, match="expected a finite factor for each"):
        replied(
            model, steering=sl.Steering(vector, [STEERED], schedule=lambda age: (1 / age)[:, :1])
        )
    with pytest.raises(sl.SteerlensError, match="expected one Condition and a function"):
        SoftGate(~angry)
