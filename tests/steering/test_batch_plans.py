"""What differs from row to row of a batch stands apart from the steering."""

import pytest
import torch
from helpers import PROMPTS, random_vector

import steerlens as sl
from steerlens.steering import hooks
from steerlens.steering.batch_plans import BatchPlan, for_rows, stacked

EYE = sl.SteeringVector(torch.eye(4), (0, 1, 2, 3))
OPTIONS = {"max_new_tokens": 6, "progress": False}


def tokens(model, prompts, plan):
    return sl.generate(model, prompts, plan, **OPTIONS).tokens


@pytest.mark.parametrize("edit", [hooks.add_direction, hooks.clamp_direction])
def test_stacked_steerings_are_each_on_its_own(model, edit):
    """Strength 0 too, which is an edit where it clamps; None is unsteered."""
    one, other = random_vector(model, 0), random_vector(model, 1)
    steerings = [
        None,
        *(sl.Steering(one, [1, 2], strength, edit=edit) for strength in (1.0, 0.0, (0.5, -2.0))),
        sl.Steering(other, [2], 2.0, edit=edit, positions=[1, -1]),
        sl.Steering(one, [1, 2], 2.0, edit=edit, positions=torch.tensor([True, False, True])),
    ]
    plans = stacked(steerings, len(PROMPTS))
    assert len(plans) == 3  # the first three differ in strength only
    together = tokens(model, [*PROMPTS] * len(steerings), plans)
    apart = [reply for one in steerings for reply in tokens(model, PROMPTS, one)]
    assert list(together) == apart


def test_hooks_are_shared_by_value_not_by_identity():
    positions = [torch.tensor([True, False]) for _ in range(2)]
    plans = [sl.Steering(EYE, strength=n, positions=one) for n, one in enumerate(positions, 1)]
    [plan] = stacked(plans, 3)
    assert plan.strength.sum(dim=1).tolist() == [1, 1, 1, 2, 2, 2]
    plans[1] = sl.Steering(EYE, strength=2, positions=torch.tensor([True, True]))
    assert len(stacked(plans, 3)) == 2


def test_a_part_of_the_rows_has_their_settings():
    strength = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]])
    where = torch.tensor([[True], [False], [False]])
    plan = BatchPlan(sl.Steering(EYE, [1, 3]), strength, where)
    part = for_rows(plan, [2, 1])
    assert part.strength.tolist() == [[2, 3], [0, 0]]
    assert part.where.tolist() == [[False], [False]]  # nothing to be steered, and no complaint
    assert part.settings.acts.tolist() == [[True, True], [False, False]]
    assert for_rows(plan.steering, [2, 1]) is plan.steering


def test_rows_that_do_not_act_are_left_alone_whatever_the_edit(model):
    acts = torch.zeros(len(PROMPTS), 4, dtype=torch.bool)
    acts[1::2] = True
    steering = sl.Steering(random_vector(model), edit=hooks.ablate_then_add, keep_norm=True)
    plan = BatchPlan(steering, torch.ones(len(PROMPTS), 4), acts=acts)
    changed = [
        a != b
        for a, b in zip(tokens(model, PROMPTS, plan), tokens(model, PROMPTS, None), strict=True)
    ]
    assert changed == [False, True] * 3


def test_one_number_for_each_layer(model):
    vector = random_vector(model)
    by_layer = sl.Steering(vector, [3, 1], (0.5, -2.0))
    assert by_layer.strengths == (0.5, -2.0)  # of layers 1 and 3, in order
    apart = [sl.Steering(vector, [1], 0.5), sl.Steering(vector, [3], -2.0)]
    assert tokens(model, PROMPTS, by_layer) == tokens(model, PROMPTS, apart)


@pytest.mark.parametrize(
    "strength", [(1.0,), torch.ones(2, 4), "1", None, [1, "a"], True, torch.ones(4).bool()]
)
def test_strengths_that_are_not_one_number_or_one_a_layer_are_refused(unchecked, strength):
    with pytest.raises(sl.SteerlensError, match="expected one number, or one for each of the 4"):
        sl.Steering(EYE, strength=strength)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strength": torch.ones(4)}, r"expected a matrix \[batch, layer\]"),
        ({"strength": torch.ones(2, 3)}, "for the 4 steered layers"),
        ({"strength": torch.full((2, 4), torch.nan)}, "of finite numbers"),
        ({"where": torch.ones(3, 5, dtype=torch.bool)}, r"got where .* each of the 2 rows"),
        ({"where": torch.ones(2, 5)}, "expected a Boolean mask"),
        ({"acts": torch.ones(2, 3, dtype=torch.bool)}, "got acts"),
    ],
)
def test_settings_that_do_not_fit_are_refused(unchecked, settings, told):
    with pytest.raises(sl.SteerlensError, match=told):
        BatchPlan(sl.Steering(EYE), **{"strength": torch.ones(2, 4)} | settings)
