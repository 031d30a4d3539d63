"""What one number as strength means over several layers, and that all of the library means it."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import PROMPTS, at_each_layer, random_vector, stream
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.steering import hooks
from steerlens.steering.batch_plans import stacked

EDITS = {
    hooks.add_direction: False,
    hooks.ablate_direction: False,
    hooks.ablate_then_add: False,
    hooks.clamp_direction: False,
    hooks.affine_direction: True,
    hooks.rotate_to_direction: True,
}
"""Each edit, and whether it takes a reference."""
IDS = [5, 9, 200, 31, 7]
QUIET = {"max_new_tokens": 6, "progress": False}
layer_sets = st.sets(st.integers(0, 3), min_size=1).map(sorted)
strengths = st.floats(-6, 6).filter(lambda strength: abs(strength) > 1e-3)


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model, norms=torch.tensor([1.0, 2.0, 3.0, 4.0]))


def logits(model, steering):
    with torch.no_grad(), model.hooks(fwd_hooks=steering.hooks()):
        return model(torch.tensor([IDS]))


@settings(max_examples=15, deadline=None)
@given(layer_sets, strengths, st.booleans())
def test_one_number_is_shared_equally(model, vector, layers, strength, relative):
    whole = sl.Steering(vector, layers, strength, relative=relative)
    each = [strength / len(layers)] * len(layers)
    assert torch.equal(logits(model, whole), logits(model, replace(whole, strength=each)))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_only_an_addition_is_shared_other_edits_set_at_every_layer(model, vector, edit):
    steering = sl.Steering(
        vector, [1, 2, 3], 1.5, edit=edit,
        reference=random_vector(model, seed=1) if EDITS[edit] else None,
    )  # fmt: skip
    assert steering.strengths == ((0.5,) * 3 if edit is hooks.add_direction else (1.5,) * 3)
    assert edit.adds_up == (edit is hooks.add_direction)
    set_at_each = torch.equal(logits(model, steering), logits(model, at_each_layer(steering)))
    assert set_at_each == (edit is not hooks.add_direction)


def test_more_layers_add_no_force(model):
    """One direction everywhere: what is added in all is one strength, however many share it."""
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    vector = sl.SteeringVector(direction.expand(4, -1), (0, 1, 2, 3))
    for layers in ([2], [1, 2], [0, 1, 2, 3]):
        steering = sl.Steering(vector, layers, 3.0)
        added = [strength * steering.direction(layer) for layer, strength in
                 zip(layers, steering.strengths, strict=True)]  # fmt: skip
        torch.testing.assert_close(sum(added), 3.0 * direction)


def test_an_edit_of_ones_own_gets_the_number_unless_it_says_that_it_adds_up(model, vector):
    seen = []

    def note(resid, direction, strength):
        seen.append(strength)
        return resid + strength * direction

    logits(model, sl.Steering(vector, [1, 2], 3.0, edit=note))
    logits(model, sl.Steering(vector, [1, 2], 3.0, edit=hooks.steering_hook(note, adds_up=True)))
    logits(model, sl.Steering(vector, [1, 2], [3.0, 1.0], edit=note))
    assert seen == [3.0, 3.0, 1.5, 1.5, 3.0, 1.0]


def test_a_layers_own_stream_moves_by_its_share(model, vector):
    steering = sl.Steering(vector, [1, 3], 2.0)
    at_first = partial(stream, model, IDS, layer=1)
    moved = at_first(hooks=steering.hooks()) - at_first()
    torch.testing.assert_close(moved, vector[1].expand_as(moved), rtol=1e-4, atol=1e-4)


def test_cells_of_a_sweep_and_arms_of_a_batch_mean_the_same(model, vector):
    windows = {"1": [1], "1-2": [1, 2], "0-3": [0, 1, 2, 3]}
    found = sl.sweep(
        model, vector, PROMPTS, layers=[*windows.values()], strengths=[0.5, 2.0], **QUIET
    ).table
    plans = [
        sl.Steering(vector, layers, strength)
        for layers in windows.values()
        for strength in (0.5, 2.0)
    ]
    side_by_side = sl.generate(
        model, [*PROMPTS] * len(plans), stacked(plans, len(PROMPTS)), **QUIET
    )
    for index, (name, plan) in enumerate(
        zip([name for name in windows for _ in range(2)], plans, strict=True)
    ):
        alone = list(sl.generate(model, PROMPTS, plan, **QUIET))
        cell = found[(found.layers == name) & (found.strength == plan.strength)]
        assert cell.reply.tolist() == alone
        assert [*side_by_side[index * len(PROMPTS) : (index + 1) * len(PROMPTS)]] == alone


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": [2], "strength": 4}, "4"),
        ({"strength": 4}, "4 over 4 layers: 1 each"),
        ({"strength": 4, "edit": hooks.clamp_direction}, "4 at each of 4 layers"),
        ({"strength": [0.5] * 4}, "0.5 at each of 4 layers"),
        ({"layers": [0, 3], "strength": [0.5, -1]}, "0.5, -1 by layer"),
    ],
)
def test_it_is_said_in_words(vector, fields, words):
    steering = sl.Steering(vector, **fields)
    assert steering.strength_in_words == words
    assert words in steering._repr_html_()
