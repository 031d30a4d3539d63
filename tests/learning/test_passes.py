"""What is learned is what `Steering` runs, on every host and by every short cut."""

import pytest
import torch
from helpers import assert_no_hooks_left

import steerlens as sl
from steerlens.learning.learning import passes_of
from steerlens.learning.passes import Passes
from steerlens.learning.replies import reply_pairs, shared_beginning, steered_places
from steerlens.learning.streams import keep_streams, start_of
from steerlens.models.sites import site_width
from steerlens.models.tokenizing import left_padded, pad_token
from steerlens.steering.clocks import DecodingClock

LESSONS = [
    ("How do I bake bread?", "I will not say."),
    ("Why?", "No, I would rather not talk about it."),
    ("Tell me about the sea and its ships.", "I cannot"),
]


@pytest.fixture(scope="module")
def texts(model):
    return [pair.wanted for pairs in reply_pairs(model, LESSONS) for pair in pairs]


def vector_of(model, layers=(1,), site="resid_post"):
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(len(layers), site_width(model, site), generator=generator)
    return sl.SteeringVector(directions, layers, site)


def plain_logs(model, text, steering=None):
    """The reply's log-probabilities by the host's own forward pass under the plan's own hooks."""
    hooks = [] if steering is None else steering.hooks(model=model)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits = model(torch.tensor([text.ids]), return_type="logits")[0].log_softmax(-1)
    said = torch.tensor(text.ids[text.start : text.end])
    return logits[text.start - 1 : text.end - 1].gather(1, said[:, None])[:, 0]


@pytest.mark.parametrize(
    "site",
    ["resid_pre", "ln1_out", "z", "attn_out", "resid_mid", "ln2_out", "mlp_out", "resid_post"],
)
@pytest.mark.parametrize("layers", [(0,), (3,), (1, 2)], ids=str)
def test_learning_sees_what_the_plan_does(model, texts, site, layers):
    vector = vector_of(model, layers, site)
    passes = passes_of(model, sl.Steering(vector), texts, progress=False)
    found = passes.reply_logs(passes.read(texts, vector.directions, 1.5))
    for text, values, real in zip(texts, found.values, found.real, strict=True):
        expected = plain_logs(model, text, sl.Steering(vector, strength=1.5))
        torch.testing.assert_close(values[real], expected, rtol=1e-4, atol=1e-4)
    assert_no_hooks_left(model)


@pytest.mark.parametrize(
    "positions",
    ["all", "prompt", "generated", "last", "reply", slice(2, None), slice(-3, None), [0, -1]],
    ids=str,
)
@pytest.mark.parametrize("skip_bos", [False, True])
def test_places_are_those_that_generate_steers(model, texts, positions, skip_bos):
    """The decode loop's own clock, shown the prompts and then one reply token after the other."""
    rows, mask = left_padded([text.ids[: text.start] for text in texts], pad_token(model))
    clock = DecodingClock(mask, torch.tensor([text.words_end for text in texts]))
    chosen = steered_places(texts, positions, skip_bos)
    clock.show(0, rows.shape[1])
    prompt = clock.current.steered(positions, skip_bos)
    for row, text in enumerate(texts):
        own = (
            torch.ones(text.start, dtype=torch.bool)
            if prompt is None
            else (prompt.expand(len(texts), -1)[row][mask[row]])
        )
        assert chosen[row, : text.start].tolist() == own.tolist()
    for step in range(min(text.end - text.start for text in texts)):
        clock.show(rows.shape[1] + step, 1)
        new = clock.current.steered(positions, skip_bos)
        for row, text in enumerate(texts):
            expected = True if new is None else bool(new.expand(len(texts), -1)[row, 0])
            assert bool(chosen[row, text.start + step]) == expected


def gradient_of(passes, texts, direction, strength=1.0):
    live = direction.clone().requires_grad_()
    logs = passes.reply_logs(passes.read(texts, live, strength))
    [gradient] = torch.autograd.grad(logs.means.sum(), [live])
    return logs.values.detach(), gradient


def test_short_cuts_change_nothing(model, texts):
    """Beginning midway, sharing the texts' beginning, and the disk: same numbers, same gradient."""
    vector = vector_of(model)
    plan, direction = sl.Steering(vector), vector.directions
    start = start_of(model, "resid_post", 1)
    shared = shared_beginning(texts)
    assert shared > 0
    expected = gradient_of(Passes(model, plan, None), texts, direction)
    for n_shared, memory in ((0, 2**30), (shared, 2**30), (shared, 0)):
        kept = keep_streams(model, texts, start, n_shared, progress=False, memory_bytes=memory)
        found = gradient_of(Passes(model, plan, kept), texts, direction)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_bridge_learns_the_same(model, model_folder, texts):
    bridge = sl.load_model(str(model_folder), host="bridge")
    vector = vector_of(model)
    ours, theirs = (
        passes_of(host, sl.Steering(vector), texts, progress=False) for host in (model, bridge)
    )
    assert theirs.streams is None
    for one, other in zip(
        gradient_of(ours, texts, vector.directions),
        gradient_of(theirs, texts, vector.directions),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    streams = [passes.first_stream(texts) for passes in (ours, theirs)]
    torch.testing.assert_close(
        *(one.values * one.real[..., None] for one in streams), rtol=1e-3, atol=1e-4
    )


def test_a_strength_for_each_text_is_differentiated(model, texts):
    vector = vector_of(model)
    passes = passes_of(model, sl.Steering(vector), texts, progress=False)
    strength = torch.tensor([0.5, 1.0, -1.0], requires_grad=True)
    found = passes.reply_logs(passes.read(texts, vector.directions, strength))
    for row, text in enumerate(texts):
        expected = plain_logs(model, text, sl.Steering(vector, strength=strength[row].item()))
        torch.testing.assert_close(
            found.values[row][found.real[row]].detach(), expected, rtol=1e-4, atol=1e-4
        )
    [gradient] = torch.autograd.grad(found.sums.sum(), [strength])
    assert gradient.all()


def test_weights_ask_for_gradients_as_before_and_get_none(model, texts):
    asked = {name: weight.requires_grad for name, weight in model.named_parameters()}
    passes = passes_of(model, sl.Steering(vector_of(model)), texts, progress=False)
    gradient_of(passes, texts, vector_of(model).directions)
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == asked
    assert all(weight.grad is None for weight in model.parameters())


def test_drift_is_the_divergence_after_the_reply(model, texts):
    """Of the tokens behind a beginning, from full logits of both models."""
    vector = vector_of(model)
    longer = [text._replace(ids=(*text.ids, *text.ids[:5])) for text in texts[:2]] + texts[2:]
    passes = passes_of(model, sl.Steering(vector), longer, progress=False)
    found = passes.drift(passes.read(longer, vector.directions))
    for text, kl in zip(longer, found, strict=True):
        logs = []
        for hooks in ([], sl.Steering(vector).hooks()):
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                logs.append(model(torch.tensor([text.ids]))[0].log_softmax(-1))
        before, after = (one[text.end - 1 : len(text.ids) - 1] for one in logs)
        expected = (before.exp() * (before - after)).sum(-1)
        mean = expected.mean() if len(expected) else torch.tensor(0.0)
        torch.testing.assert_close(kl, mean, rtol=1e-4, atol=1e-5)
