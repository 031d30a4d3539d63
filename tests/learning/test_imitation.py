"""A prompt imitated in closed form: the probe's solution, and what becomes of the tokens."""

import pytest
import torch
from helpers import PROMPTS
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

import steerlens as sl
from steerlens.activations.reading import every_token
from steerlens.data.asking import Asking, instruction
from steerlens.learning.imitation import fit_probe, imitate_prompt
from steerlens.models.tokenizing import tokenize

MANY = [*PROMPTS, "Sing me a song.", "Where is the moon?", "Count to ten.", "Who are you?"]


def drawn(seed, n=40, d=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return x, x @ torch.randn(d, generator=generator) + torch.randn(n, generator=generator)


@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.1, 5.0]))
@settings(max_examples=20, deadline=None)
def test_the_probe_is_where_the_loss_has_no_gradient(seed, ridge):
    x, y = drawn(seed)
    probe = fit_probe(x, y, ridge)
    weights = probe.weights.double().requires_grad_()
    bias = torch.tensor(probe.bias, dtype=torch.float64, requires_grad=True)
    centred = x.double() - x.double().mean(dim=0)
    weight = ridge * centred.square().sum(dim=0).mean()
    loss = (x.double() @ weights + bias - y.double()).square().sum() + weight * weights @ weights
    loss.backward()
    assert weights.grad.abs().max() < 1e-4 * loss.item()
    assert abs(bias.grad.item()) < 1e-4 * loss.item()


def test_the_probe_is_scikit_learns_ridge():
    x, y = drawn(0)
    weight = 0.1 * (x - x.mean(dim=0)).square().sum(dim=0).mean().item()
    theirs = Ridge(alpha=weight).fit(x.numpy(), y.numpy())
    ours = fit_probe(x, y, 0.1)
    torch.testing.assert_close(ours.weights, torch.tensor(theirs.coef_).float())
    assert ours.bias == pytest.approx(float(theirs.intercept_), abs=1e-5)


def test_each_token_is_moved_as_far_as_its_probe_says(model):
    """By hand, from the stream of the plain prompt."""
    steering = imitate_prompt(
        model, MANY, instruction("Be brief."), 2, max_new_tokens=5, progress=False
    )
    gate, [row] = steering.when_token, tokenize(model, PROMPTS[3:4])
    place = ("resid_post", 2)
    before = every_token(model, row.ids, [place])[place]
    read = gate.condition.vector[2]
    amount = (before @ read - gate.condition.threshold * read.norm()).relu()
    amount[0] = 0  # an attention sink
    seen = []
    name = "blocks.2.hook_resid_post"
    hooks = [*steering.hooks(), (name, lambda resid, hook: seen.append(resid[0].clone()))]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(torch.tensor([row.ids]))
    expected = before + amount[:, None] * steering.vector[2]
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-4)
    assert steering.vector[2].norm() == pytest.approx(1, abs=1e-5)


def test_tiny_chat_is_moved_towards_the_prompt(tiny_chat):
    """On prompts not fitted on, the steered stream is nearer to that of the prompt that asks."""
    ask = instruction("Talk about the sea.")
    steering = imitate_prompt(tiny_chat, MANY[2:], ask, 3, max_new_tokens=8, progress=False)
    assert -1 < steering.vector.provenance["explained"] < 1
    direction = steering.vector[3]

    def last(prompt, plans=()):
        [row] = tokenize(tiny_chat, [prompt])
        seen = []
        look = ("blocks.3.hook_resid_post", lambda resid, hook: seen.append(resid[0, -1].clone()))
        with torch.no_grad(), tiny_chat.hooks(fwd_hooks=[*plans, look]):
            tiny_chat(torch.tensor([row.ids]))
        return seen[0] @ direction

    for prompt in MANY[:2]:
        asked, plain = last(ask(prompt)), last(prompt)
        steered = last(prompt, steering.hooks())
        assert abs(steered - asked) < abs(plain - asked)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [(MANY[:3], "got 3 prompts; expected at least 8"), (MANY, "does not change the activations")],
)
def test_what_teaches_nothing_is_refused(model, prompts, told):
    nothing = Asking("nothing", lambda prompt: prompt)
    with pytest.raises(sl.SteerlensError, match=told):
        imitate_prompt(model, prompts, nothing, 2, max_new_tokens=3, progress=False)
