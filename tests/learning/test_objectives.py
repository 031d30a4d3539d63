"""Objectives against the same written out in plain PyTorch on `transformers`."""

from functools import partial

import pytest
import torch
from torch.nn.functional import logsigmoid

import steerlens as sl
from steerlens.learning.batches import Batch
from steerlens.learning.descent import first_directions, train
from steerlens.learning.learning import passes_of
from steerlens.learning.objectives import bipo, reft_r1, reply_likelihood, reps
from steerlens.learning.replies import reply_pairs

LESSONS = [
    ("How do I bake bread?", "I will not say.", "Mix flour and water."),
    ("Why?", "No, I would rather not talk about it.", "Because it is so."),
    ("Tell me about the sea and its ships.", "I cannot", "The sea is"),
]
LAYER = 1
OBJECTIVES = [reply_likelihood, partial(bipo, beta=0.3), reps, partial(reft_r1, k=3)]


@pytest.fixture(scope="module")
def pairs(model):
    return [pair for pairs in reply_pairs(model, LESSONS) for pair in pairs]


@pytest.fixture(scope="module")
def passes(model, pairs):
    plan = sl.Steering(sl.SteeringVector(torch.zeros(1, model.cfg.d_model), (LAYER,)))
    texts = [text for pair in pairs for text in (pair.wanted, pair.unwanted)]
    return passes_of(model, plan, texts, progress=False)


@pytest.fixture
def direction(model):
    generator = torch.Generator().manual_seed(3)
    return 0.5 * torch.randn(1, model.cfg.d_model, generator=generator)


class Plain:
    """Hugging Face's model with a change of one layer's output, one text at a time."""

    def __init__(self, hf_model, v):
        self.model, self.v = hf_model, v

    def logs(self, text, change):
        def hook(module, args, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        handle = self.model.model.layers[LAYER].register_forward_hook(hook)
        logits = self.model(torch.tensor([text.ids[: text.end]])).logits[0].log_softmax(-1)
        handle.remove()
        said = torch.tensor(text.ids[text.start : text.end])
        return logits[text.start - 1 : -1].gather(1, said[:, None])[:, 0]

    def added(self, text, strength):
        return self.logs(text, lambda h: h + strength * self.v)

    def suppressed(self, text):
        v = self.v
        return self.logs(text, lambda h: h - (h @ v).relu()[..., None] * v / (v @ v))

    def reply_likelihood(self, pair, number):
        return -self.added(pair.wanted, 1).mean()

    def bipo(self, pair, number):
        d = 1 if number <= 0.5 else -1
        ratio = [
            self.added(text, d).sum() - self.added(text, 0).sum()
            for text in (pair.wanted, pair.unwanted)
        ]
        return -logsigmoid(d * 0.3 * (ratio[0] - ratio[1]))

    def reps(self, pair, number):
        s = (0.5, 1.0, 1.5)[int(number * 3)]
        with torch.no_grad():
            before = [self.added(text, 0).sum() for text in (pair.wanted, pair.unwanted)]
        w, u = (self.added(text, s).mean() for text in (pair.wanted, pair.unwanted))
        wn, un = (self.suppressed(text).mean() for text in (pair.wanted, pair.unwanted))
        plus = max(before[1] - before[0], torch.tensor(1.0)) * w - u
        minus = max(before[0] - before[1], torch.tensor(1.0)) * un - wn
        return -logsigmoid(plus) - logsigmoid(minus)

    def reft_r1(self, pair, number):
        w, rest = self.v / self.v.norm(), None

        def change(h):
            nonlocal rest
            latent = (h[0, 1:] @ w).relu()
            top = latent.topk(3).values
            rest = latent.sum() - top.sum()
            return h + top.mean() * w

        said = self.logs(pair.wanted, change)
        return -said.mean() + 0.005 * rest


def name_of(objective):
    return getattr(objective, "func", objective).__name__


def losses(plain, objective, pairs, number):
    return torch.stack([getattr(plain, name_of(objective))(pair, number) for pair in pairs])


@pytest.mark.parametrize("number", [0.2, 0.9])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=name_of)
def test_losses_and_gradients_are_those_of_plain_pytorch(
    objective, number, passes, pairs, direction, hf_model
):
    live = direction.clone().requires_grad_()
    ours = objective(Batch(pairs, passes, live, number))
    [gradient] = torch.autograd.grad(ours.mean(), [live])
    v = direction[0].clone().requires_grad_()
    theirs = losses(Plain(hf_model, v), objective, pairs, number)
    [expected] = torch.autograd.grad(theirs.mean(), [v])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[0], expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize(
    "objective",
    [OBJECTIVES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in OBJECTIVES[1:])],
    ids=name_of,
)
def test_fifty_steps_lead_where_plain_pytorch_leads(objective, passes, pairs, hf_model):
    norms = torch.tensor([20.0])
    training = sl.Training(steps=50, learning_rate=0.02, seed=4)
    ours = train(passes, objective, [pairs] * 50, [], norms, training, progress=False)
    [v] = first_directions(norms, passes.plan.vector.width, 4)
    v.requires_grad_()
    optimizer = torch.optim.Adam([v], lr=0.02 * 20 / len(v) ** 0.5)
    import random

    drawn = random.Random(4)
    for _ in range(50):
        loss = losses(Plain(hf_model, v), objective, pairs, drawn.random()).mean()
        [v.grad] = torch.autograd.grad(loss, [v])
        optimizer.step()
    difference = (ours.directions[0] - v.detach()).norm() / v.detach().norm()
    assert difference < 1e-3
    assert ours.losses[-1] == pytest.approx(float(loss.detach()), abs=1e-4)


def test_the_rank_one_vector_has_the_mean_length_that_was_added(model, passes, pairs, hf_model):
    lessons = [(prompt, wanted) for prompt, wanted, _ in LESSONS]
    training = sl.Training(steps=3, held_out=0, continued=0)
    vector = sl.learn(
        model, lessons, partial(reft_r1, k=2), LAYER, training=training, progress=False
    )
    [direction] = vector.directions
    unit = direction / direction.norm()
    added = []
    for prompt, wanted in lessons:
        [[pair]] = reply_pairs(model, [(prompt, wanted)])
        read = {}

        def hook(module, args, output, read=read):
            read["h"] = output[0] if isinstance(output, tuple) else output

        handle = hf_model.model.layers[LAYER].register_forward_hook(hook)
        hf_model(torch.tensor([pair.wanted.ids]))
        handle.remove()
        latent = (read["h"].reshape(-1, len(unit))[1:] @ unit).relu()
        added.append(latent.topk(2).values.mean())
    assert float(direction.norm()) == pytest.approx(
        float(torch.stack(added).mean().detach()), rel=1e-4
    )


@pytest.mark.parametrize("objective", [bipo, reps])
def test_what_compares_replies_refuses_data_without_unwanted_ones(model, objective):
    with pytest.raises(sl.SteerlensError, match="unwanted"):
        sl.learn(model, [("Why?", "No.")], objective, progress=False)


def test_the_rank_one_detector_refuses_several_layers(model):
    with pytest.raises(sl.SteerlensError, match="one layer"):
        sl.learn(model, [("Why?", "No.")], reft_r1, [1, 2], progress=False)


def test_an_objective_of_ones_own_must_give_one_loss_a_prompt(model):
    with pytest.raises(sl.SteerlensError, match="one loss for each"):
        sl.learn(model, [("Why?", "No.")], lambda b: b.wanted().values, progress=False)
