"""A vector within a budget of KL, against the KL that the host's own passes give."""

import pytest
import torch

import steerlens as sl
from steerlens.evaluation.side_effects import neutral_texts
from steerlens.learning.budgets import within_budget
from steerlens.models.tokenizing import tokenize

LESSONS = [(f"What is {n}?", "No, I will not.") for n in range(10)]
FEW = {"steps": 12, "batch_size": 4, "learning_rate": 0.05}


def learned(model, budget, **options):
    training = sl.Training(**FEW, kl_budget=budget)
    return sl.learn(model, LESSONS, training=training, progress=False, **options)


@torch.no_grad()
def kl_p95(model, vector):
    """Text by text, with nothing of steerlens but the hooks."""
    kls = []
    for text in neutral_texts()[:24]:
        ids = torch.tensor([tokenize(model, [text], chat=False)[0].ids])
        plain = model(ids)[0].double().log_softmax(-1)
        with model.hooks(fwd_hooks=sl.Steering(vector).hooks()):
            steered = model(ids)[0].double().log_softmax(-1)
        kls.append((plain.exp() * (plain - steered)).sum(-1))
    return torch.cat(kls).quantile(0.95).item()


@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_what_exceeds_the_budget_is_shortened_to_it(model, layers):
    free = learned(model, None, layers=layers)
    budget = kl_p95(model, free) / 4
    held = learned(model, budget, layers=layers)
    assert 0.97 * budget < kl_p95(model, held) <= budget * (1 + 1e-4)
    share = held.provenance["shortened_to"]
    assert 0 < share < 1
    torch.testing.assert_close(held.directions, share * free.directions, rtol=1e-3, atol=1e-4)
    assert held.provenance["kl_p95"] == pytest.approx(kl_p95(model, held), rel=1e-3)


def test_its_account_is_of_the_shortened_vector(model):
    free = learned(model, None)
    held = learned(model, kl_p95(model, free) / 10)
    assert held.provenance["gain"]["learned"] < free.provenance["gain"]["learned"]
    lengths = held.directions.norm(dim=1).tolist()
    assert held.provenance["lengths"] == pytest.approx(lengths, abs=1e-3)


def test_what_is_within_the_budget_stays_as_it_was(model):
    free = learned(model, None)
    held = learned(model, 100.0)
    assert torch.equal(held.directions, free.directions)
    assert held.provenance["shortened_to"] == 1
    assert held.provenance["kl_p95"] == pytest.approx(kl_p95(model, free), rel=1e-3)


def test_a_budget_that_no_length_meets_is_told(model):
    vector = sl.SteeringVector(torch.ones(1, model.cfg.d_model), (1,))
    with pytest.raises(sl.SteerlensError, match="at every length"):
        within_budget(model, sl.Steering(vector), 1e-300)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(sl.SteerlensError, match="kl_budget=0"):
        sl.Training(kl_budget=0)
