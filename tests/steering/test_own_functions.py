"""Edits, similarities and norms of the user's own: honoured as meant, or refused by name."""

import numpy as np
import pytest
import torch
from helpers import PROMPTS, random_vector, splitting_condition

import steerlens as sl
from steerlens.steering.batch_plans import BatchPlan
from steerlens.steering.similarities import projection

OPTIONS = {"max_new_tokens": 6, "progress": False}
STRENGTH = torch.tensor([[2.0, 2.0], [0.0, 0.0]] * 3)


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


def tokens(model, plan, prompts=PROMPTS):
    return sl.generate(model, prompts, plan, **OPTIONS).tokens


def out_of_place(resid, direction, strength):
    return resid + (strength + 1) * direction


def in_place(resid, direction, strength):
    resid += (strength + 1) * direction
    direction.zero_()
    return resid


def in_float64(resid, direction, strength):
    return resid.double() + (strength + 1) * direction.double()


@pytest.mark.parametrize("edit", [in_place, in_float64])
@pytest.mark.parametrize(
    "setting", ["everywhere", "when", "positions", "keep_norm", "rows", "mask", "reads"]
)
def test_an_edit_that_works_in_place_or_in_another_dtype_is_as_any_other(
    model, vector, edit, setting
):
    def plan(edit):
        fields = {
            "when": {"when": splitting_condition(model, layer=0)},
            "positions": {"positions": [1]},
            "keep_norm": {"keep_norm": True},
        }.get(setting, {})
        steering = sl.Steering(vector, [2, 3], edit=edit, **fields)
        if setting == "rows":
            return BatchPlan(steering, STRENGTH)
        if setting == "mask":
            where = torch.zeros(6, 3, dtype=torch.bool)
            where[::2, 1:] = True
            return BatchPlan(steering, torch.ones(6, 2), where)
        return [steering, sl.Steering(vector, [3], -1.0)] if setting == "reads" else steering

    before = vector.directions.clone()
    expected = tokens(model, plan(out_of_place))
    assert tokens(model, plan(edit)) == expected
    assert expected != tokens(model, None)
    assert torch.equal(vector.directions, before)


def test_the_unsteered_cell_of_a_sweep_is_unsteered_whatever_the_edit(model, vector):
    steering = sl.Steering(vector, edit=in_place)
    found = sl.sweep(model, steering, PROMPTS, layers=[1], strengths=[1.0], **OPTIONS)
    unsteered = found.table[found.table["layers"] == ""].sort_values("prompt_index")
    assert len(unsteered) == len(PROMPTS)
    with torch.no_grad():
        assert unsteered["reply"].tolist() == list(sl.generate(model, PROMPTS, **OPTIONS))
    assert set(found.table["reply"]) - set(unsteered["reply"])


def test_references_and_what_keep_norm_sees_are_copies(model, vector):
    def greedy(resid, direction, strength, reference):
        return resid + reference.mul_(2)

    def shrinking(before, after):
        before.zero_()
        return after

    before = vector.directions.clone()
    plan = sl.Steering(vector, [2], edit=greedy, reference=vector, keep_norm=shrinking)
    same = sl.Steering(vector, [2], 2.0)
    assert tokens(model, plan) == tokens(model, same)
    assert torch.equal(vector.directions, before)


WRONG = {
    "nothing": lambda resid: None,
    "a list": lambda resid: resid.tolist(),
    "an array": lambda resid: resid.numpy(),
    "one row": lambda resid: resid[:1],
    "one token": lambda resid: resid[:, -1:],
    "a direction": lambda resid: resid[0, 0],
    "a number": lambda resid: 1.0,
    "NaN": lambda resid: resid * float("nan"),
    "complex": lambda resid: resid.to(torch.complex64),
}


@pytest.mark.parametrize("returned", WRONG)
@pytest.mark.parametrize("fields", [{}, {"positions": slice(2, None)}], ids=["all", "some"])
def test_what_cannot_be_a_stream_is_refused_by_name(model, vector, returned, fields):
    def edit(resid, direction, strength):
        return WRONG[returned](resid)

    def norm(before, after):
        return WRONG[returned](after)

    with pytest.raises(sl.SteerlensError, match="the edit edit returned"):
        tokens(model, sl.Steering(vector, [2], edit=edit, **fields))
    with pytest.raises(sl.SteerlensError, match="keep_norm returned"):
        tokens(model, sl.Steering(vector, [2], keep_norm=norm, **fields))


def test_nan_where_nothing_is_steered_does_no_harm(model, vector):
    def edit(resid, direction, strength):
        resid = resid + direction
        resid[:, 0] = float("nan")
        return resid

    plan = sl.Steering(vector, [2], edit=edit, positions=[1, 2])
    prompts = PROMPTS[1:2]  # one row: its first token is not a pad
    assert tokens(model, plan, prompts) == tokens(
        model, sl.Steering(vector, [2], positions=[1, 2]), prompts
    )


def dot(pooled, direction):
    return pooled @ direction


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy(), lambda x: x.double()])
def test_similarities_may_be_arrays(model, vector, form):
    def gates(similarity):
        condition = sl.Condition(vector, 0, above=0, similarity=similarity)
        plan = sl.Steering(vector, [2], when=condition)
        return sl.generate(model, PROMPTS, plan, **OPTIONS).gates[0]

    found, right = gates(lambda pooled, direction: form(dot(pooled, direction))), gates(dot)
    torch.testing.assert_close(found.similarity, right.similarity)
    assert torch.equal(found.open, right.open)


def test_a_similarity_that_works_in_place_changes_no_vector(model, vector):
    def cosine(pooled, direction):
        direction /= direction.norm()
        pooled /= pooled.norm(dim=1, keepdim=True)
        return pooled @ direction

    before = vector.directions.clone()
    condition = sl.Condition(vector, 0, above=0, similarity=cosine)
    gate = sl.generate(model, PROMPTS, sl.Steering(vector, [2], when=condition), **OPTIONS).gates[0]
    right = sl.Condition(vector, 0, above=0, similarity=sl.similarities.cosine)
    other = sl.generate(model, PROMPTS, sl.Steering(vector, [2], when=right), **OPTIONS).gates[0]
    torch.testing.assert_close(gate.similarity, other.similarity)
    assert torch.equal(vector.directions, before)


@pytest.mark.parametrize(
    "returned",
    [
        lambda found: None, lambda found: found[:, None], lambda found: found[:1],
        lambda found: found.tolist(),
        lambda found: float(found[0]), lambda found: "high", lambda found: [None] * len(found),
        lambda found: np.array(["a"] * len(found)),
    ],
)  # fmt: skip
def test_what_is_no_similarity_is_refused_by_name(model, vector, returned):
    condition = sl.Condition(
        vector, 0, above=0, similarity=lambda pooled, way: returned(projection(pooled, way))
    )
    told = "similarity of Condition.* one real number for each of the 6 rows"
    with pytest.raises(sl.SteerlensError, match=told):
        tokens(model, sl.Steering(vector, [2], when=condition))
