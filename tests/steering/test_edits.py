"""Edits that clamp, compare with a reference or rotate; and what every edit promises."""

import math

import pytest
import torch
from helpers import PROMPTS, random_vector
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.models.tokenizing import left_padded, pad_token, tokenize
from steerlens.steering import hooks
from steerlens.vectors import estimators

EDITS = {
    hooks.add_direction: 0,
    hooks.ablate_direction: 0,
    hooks.ablate_then_add: 0,
    hooks.clamp_direction: 0,
    hooks.cap_direction: 0,
    hooks.floor_direction: 0,
    hooks.move_to_projection: 1,
    hooks.mirror_direction: 1,
    hooks.affine_direction: 1,
    hooks.rotate_to_direction: 1,
}
"""Each edit, and how many references it takes."""
ONE_SIDED = [
    hooks.cap_direction, hooks.floor_direction, hooks.move_to_projection, hooks.mirror_direction,
]  # fmt: skip
"""Edits that leave tokens as they are on one side of a bound."""
every_edit = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
law = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)
strengths = st.floats(-6, 6).filter(lambda strength: abs(strength) > 1e-3)


def drawn(seed, rows=3, width=5, d_model=6):
    generator = torch.Generator().manual_seed(seed)
    resid = torch.randn(rows, width, d_model, generator=generator)
    return resid, *torch.randn(2, d_model, generator=generator)


def edited(edit, resid, direction, reference, strength=1.0, where=None, **options):
    """The stream after the hook; the very same where it changes nothing."""
    found = edit(
        resid, None, direction=direction, strength=strength, where=lambda: where,
        reference=reference if EDITS[edit] else None, **options,
    )  # fmt: skip
    return resid if found is None else found


def along(resid, direction):
    return resid @ direction / direction.norm()


def across(resid, *axes):
    """What of the stream is orthogonal to the axes, in coordinates of its own."""
    basis = torch.linalg.svd(torch.stack(axes)).Vh[len(axes) :]
    return resid @ basis.T


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Theorems


@given(seeds, strengths)
@law
def test_a_clamped_stream_has_that_length_along_the_direction(seed, strength):
    resid, direction, _ = drawn(seed)
    for scaled in (direction, 7 * direction):  # in units of the stream, not of the direction
        found = edited(hooks.clamp_direction, resid, scaled, None, strength)
        close(along(found, direction), torch.full((3, 5), strength))
        close(across(found, direction), across(resid, direction))


@given(seeds, strengths)
@law
def test_an_affine_edit_starts_from_the_reference(seed, strength):
    resid, direction, reference = drawn(seed)
    found = edited(hooks.affine_direction, resid, direction, reference, strength)
    expected = along(reference, direction) + strength * direction.norm()
    close(along(found, direction), expected.expand(3, 5))
    close(across(found, direction), across(resid, direction))


def test_an_affine_edit_moves_each_class_to_the_negatives_mean():
    """Affine concept editing: along the direction, positives are where negatives are on average."""
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn(40, 1, 6, generator=generator) + 3
    positive = torch.randn(40, 1, 6, generator=generator) + 3 + torch.arange(6.0)
    direction = estimators.mean_difference(positive, negative)[0]
    reference = estimators.negative_mean(positive, negative)[0]
    close(reference, negative.mean(dim=0)[0])
    found = edited(hooks.affine_direction, positive, direction, reference, 0.0)
    close(along(found, direction), along(negative, direction).mean().expand(40, 1))
    # where plain ablation leaves them at zero, which no text of either class has
    assert along(negative, direction).mean() > 1
    # and strength 1 puts the negatives where the positives are on average
    found = edited(hooks.affine_direction, negative, direction, reference, 1.0)
    close(along(found, direction), along(positive, direction).mean().expand(40, 1))


@given(seeds, st.floats(-7, 7))
@law
def test_a_rotation_keeps_lengths_and_all_that_is_out_of_its_plane(seed, angle):
    resid, direction, reference = drawn(seed)
    found = edited(hooks.rotate_to_direction, resid, direction, reference, angle)
    close(found.norm(dim=-1), resid.norm(dim=-1))
    close(across(found, direction, reference), across(resid, direction, reference))


@given(seeds, st.floats(-3, 3), st.floats(-3, 3))
@law
def test_rotations_add_up_and_undo_each_other(seed, one, other):
    resid, direction, reference = drawn(seed)

    def turned(resid, angle):
        return edited(hooks.rotate_to_direction, resid, direction, reference, angle)

    close(turned(turned(resid, one), other), turned(resid, one + other))
    close(turned(turned(resid, one), -one), resid)
    close(turned(resid, one + 2 * math.pi), turned(resid, one))


@given(seeds)
@law
def test_a_rotation_goes_from_the_reference_to_the_direction(seed):
    _, direction, reference = drawn(seed)
    angle = torch.arccos(torch.cosine_similarity(reference, direction, dim=0)).item()
    found = edited(
        hooks.rotate_to_direction, reference[None, None], direction, reference, angle
    )[0, 0]  # fmt: skip
    close(found, direction / direction.norm() * reference.norm())


def test_a_rotation_by_nothing_is_nothing():
    resid, direction, reference = drawn(0)
    close(edited(hooks.rotate_to_direction, resid, direction, reference, 0.0), resid)


# Nothing to go by


@every_edit
@pytest.mark.parametrize("strength", [1.5, -2.0])
def test_a_zero_direction_changes_nothing(edit, strength):
    resid, direction, reference = drawn(0)
    found = edited(edit, resid, 0 * direction, reference, strength)
    torch.testing.assert_close(found, resid, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [0, 1, 3, -1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_rotation_without_a_plane_turns_nothing(factor, dtype):
    """Rounding alone would else make up a plane."""
    for d_model in (6, 512):
        resid, direction, _ = (part.to(dtype) for part in drawn(1, d_model=d_model))
        found = edited(hooks.rotate_to_direction, resid, direction, factor * direction, 1.0)
        assert torch.equal(found, resid)


@every_edit
@pytest.mark.parametrize("keep_norm", [None, hooks.restore_norm, hooks.restore_grown_norm])
def test_a_zero_activation_makes_no_nan(edit, keep_norm):
    resid, direction, reference = drawn(0)
    resid[1] = 0
    assert edited(edit, resid, direction, reference, 2.0, keep_norm=keep_norm).isfinite().all()
    assert edited(edit, resid, direction, 0 * reference, keep_norm=keep_norm).isfinite().all()


@every_edit
@pytest.mark.parametrize("keep_norm", [None, hooks.restore_norm, hooks.restore_grown_norm])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_padding_holds_reaches_no_real_token(edit, keep_norm, poison):
    resid, direction, reference = drawn(0)
    mask = torch.tensor([[True] * 5, [False, False, True, True, True], [False] + [True] * 4])
    clean = edited(edit, resid, direction, reference, 1.5, where=mask, keep_norm=keep_norm)
    resid = resid.masked_fill(~mask[..., None], poison)
    found = edited(edit, resid, direction, reference, 1.5, where=mask, keep_norm=keep_norm)
    torch.testing.assert_close(found[~mask], resid[~mask], equal_nan=True)  # left as it is
    if keep_norm is not hooks.restore_grown_norm:  # which looks at a whole row, pads too
        assert torch.equal(found[mask], clean[mask])
    assert found[mask].isfinite().all()


# Every edit: rows, dtypes


@every_edit
@given(seeds, st.lists(st.sampled_from([0.0, 1.0, -2.5]), min_size=3, max_size=3))
@law
def test_one_strength_per_row_is_each_row_on_its_own(edit, seed, per_row):
    resid, direction, reference = drawn(seed)
    found = edited(edit, resid, direction, reference, lambda: torch.tensor(per_row)[:, None])
    for row, strength in enumerate(per_row):
        alone = edited(edit, resid[[row]], direction, reference, strength)
        torch.testing.assert_close(found[[row]], alone)


@every_edit
@half
@pytest.mark.parametrize("keep_norm", [None, hooks.restore_norm, hooks.restore_grown_norm])
def test_half_precision_is_kept_and_close_to_full(edit, dtype, keep_norm):
    resid, direction, reference = drawn(0, d_model=64)
    per_row = torch.tensor([[1.0], [0.0], [-0.5]])
    for strength in (0.75, lambda: per_row):
        exact = edited(edit, resid, direction, reference, strength, keep_norm=keep_norm)
        found = edited(edit, resid.to(dtype), direction, reference, strength, keep_norm=keep_norm)
        assert found.dtype == dtype
        assert found.shape == resid.shape
        error = (found.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() < 4 * torch.finfo(dtype).eps  # of a handful of roundings


@every_edit
def test_large_half_precision_activations_do_not_overflow(edit):
    """Squares of these pass float16's 65504."""
    resid, direction, reference = drawn(0)
    resid = (4000 * resid).half()
    for scale in (1, 300):
        found = edited(
            edit, resid, scale * direction, scale * reference, 0.5, keep_norm=hooks.restore_norm
        )
        assert found.isfinite().all()


# One-sided edits

one_sided = pytest.mark.parametrize(
    "edit", [hooks.cap_direction, hooks.floor_direction], ids=lambda edit: edit.__name__
)


@one_sided
@given(seeds, st.floats(-3, 3), st.sampled_from([1e-3, 1.0, 300.0]))
@law
def test_no_token_is_beyond_the_bound_and_those_within_are_not_touched(edit, seed, bound, scale):
    resid, direction, reference = drawn(seed)
    found = edited(edit, resid, scale * direction, reference, bound)
    sign = 1 if edit is hooks.cap_direction else -1
    beyond = sign * (along(found, direction) - bound)
    assert (beyond <= 1e-5 * resid.norm(dim=-1).clamp_min(1)).all()
    within = sign * (along(resid, direction) - bound) <= 0
    assert found[within].equal(resid[within])
    close(across(found, direction), across(resid, direction))


@given(seeds, st.floats(-3, 3))
@law
def test_a_floor_is_a_cap_of_the_opposite_direction(seed, bound):
    resid, direction, reference = drawn(seed)
    close(
        edited(hooks.floor_direction, resid, direction, reference, bound),
        edited(hooks.cap_direction, resid, -direction, reference, -bound),
    )


@given(seeds, st.floats(-3, 3))
@law
def test_only_tokens_below_the_boundary_move_or_are_mirrored(seed, target):
    resid, direction, reference = drawn(seed)
    boundary, before = along(reference, direction), along(resid, direction)
    moved = edited(hooks.move_to_projection, resid, direction, reference, target)
    close(along(moved, direction), torch.where(before < boundary, target, before))
    mirrored = edited(hooks.mirror_direction, resid, direction, reference, 1.0)
    close(along(mirrored, direction), boundary + (before - boundary).abs())
    for found in (moved, mirrored):
        assert found[before >= boundary].equal(resid[before >= boundary])
        close(across(found, direction), across(resid, direction))


def test_the_midpoint_is_the_boundary_between_two_kinds():
    positive, negative = torch.full((2, 1, 2), 3.0), torch.full((2, 1, 2), -1.0)
    assert estimators.midpoint(positive, negative).tolist() == [[1.0, 1.0]]


# In a plan


@pytest.fixture(scope="module")
def vector(model):
    return random_vector(model)


@pytest.fixture(scope="module")
def reference(model):
    return random_vector(model, seed=1)


def plan_of(edit, vector, reference, **fields):
    return sl.Steering(vector, edit=edit, reference=reference if EDITS[edit] else None, **fields)


@every_edit
def test_a_batch_is_its_rows_and_the_cache_changes_nothing(model, vector, reference, edit):
    steering = plan_of(edit, vector, reference, layers=[1, 2], strength=1.3)
    options = {"max_new_tokens": 5, "progress": False}
    together = sl.generate(model, PROMPTS, steering, **options).tokens
    assert together == sl.generate(model, PROMPTS, steering, use_cache=False, **options).tokens
    alone = [sl.generate(model, [prompt], steering, **options).tokens[0] for prompt in PROMPTS]
    assert list(together) == alone
    assert together != sl.generate(model, PROMPTS, **options).tokens


@every_edit
def test_padding_is_never_steered_where_positions_are_counted(model, vector, reference, edit):
    tokens, mask = left_padded([row.ids for row in tokenize(model, PROMPTS)], pad_token(model))
    steering = plan_of(edit, vector, reference, layers=[0], positions=slice(0, None))
    seen = []
    looks = [("blocks.0.hook_resid_post", lambda resid, hook: seen.append(resid.clone()))]
    with torch.no_grad(), model.hooks(fwd_hooks=[*looks, *steering.hooks(mask), *looks]):
        model(tokens, attention_mask=mask.int())
    before, after = seen
    assert torch.equal(after[~mask], before[~mask])
    moved = (after[mask] - before[mask]).norm(dim=-1)
    assert (moved.mean() if edit in ONE_SIDED else moved.min()) > 1e-3


def test_each_layer_is_compared_with_its_own_reference(model, vector):
    """Layers of the reference that are not steered may be missing, or be more."""
    reference = random_vector(model, seed=1).at([1, 2])
    steering = plan_of(hooks.affine_direction, vector, reference, layers=[2], strength=0.5)
    seen = []
    look = ("blocks.2.hook_resid_post", lambda resid, hook: seen.append(resid.clone()))
    with torch.no_grad(), model.hooks(fwd_hooks=[*steering.hooks(), look]):
        model(torch.tensor([[1, 5, 9]]))
    expected = along(reference[2], vector[2]) + 0.5 * vector[2].norm()
    torch.testing.assert_close(
        along(seen[0], vector[2]), expected.expand(1, 3), atol=1e-3, rtol=1e-4
    )


# Bad input


def two(resid, direction):
    return resid


def five(resid, direction, strength, reference, more):
    return resid


def three(resid, direction, strength):
    return resid


def optional(resid, direction, strength, reference=None):
    return resid


@pytest.mark.parametrize("edit", [two, five])
@pytest.mark.parametrize("with_reference", [True, False])
def test_operators_of_wrong_arity_are_refused(vector, reference, edit, with_reference):
    with pytest.raises(
        sl.SteerlensError, match=rf"edit {edit.__name__}\(resid, .* expected one that"
    ):
        sl.Steering(vector, edit=edit, reference=reference if with_reference else None)


@pytest.mark.parametrize("edit", [hooks.affine_direction, hooks.rotate_to_direction])
def test_a_missing_reference_is_refused(vector, edit):
    with pytest.raises(sl.SteerlensError, match="give Steering a reference= if it needs one"):
        sl.Steering(vector, edit=edit)


@pytest.mark.parametrize("edit", [hooks.add_direction, hooks.clamp_direction, three])
def test_an_unwanted_reference_is_refused(vector, reference, edit):
    with pytest.raises(sl.SteerlensError, match="leave reference= out, or give an edit that takes"):
        sl.Steering(vector, edit=edit, reference=reference)


def test_an_edit_may_leave_the_reference_open(vector, reference):
    assert sl.Steering(vector, edit=optional).reference is None
    assert sl.Steering(vector, edit=optional, reference=reference).reference is reference


def test_a_reference_without_the_steered_layers_is_refused(vector, reference):
    with pytest.raises(sl.SteerlensError, match="no direction for layer 3; it has 0–1"):
        sl.Steering(vector, [1, 3], edit=hooks.affine_direction, reference=reference.at([0, 1]))


def test_a_reference_of_another_width_is_refused(vector, other_model):
    narrow = random_vector(other_model)
    with pytest.raises(sl.SteerlensError, match="got a reference of width 16; expected 32"):
        sl.Steering(vector, [1], edit=hooks.affine_direction, reference=narrow)
