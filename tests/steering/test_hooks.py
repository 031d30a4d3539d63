import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.steering import hooks
from steerlens.steering.hooks import steering_hook

EDITS = [hooks.add_direction, hooks.ablate_direction, hooks.ablate_then_add]
every_edit = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
law = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10_000)
strengths = st.floats(-8, 8)


def drawn(seed, rows=3, width=5, d_model=6):
    generator = torch.Generator().manual_seed(seed)
    resid = torch.randn(rows, width, d_model, generator=generator)
    return resid, torch.randn(d_model, generator=generator)


def edited(edit, resid, direction, strength=1.0, where=None, **options):
    return edit(
        resid, None, direction=direction, strength=strength, where=lambda: where, **options
    )  # fmt: skip


def along(resid, direction):
    return resid @ direction / direction.norm()


@given(seeds)
@law
def test_an_ablated_stream_has_no_projection(seed):
    resid, direction = drawn(seed)
    found = edited(hooks.ablate_direction, resid, direction)
    torch.testing.assert_close(along(found, direction), torch.zeros(3, 5), atol=1e-5, rtol=0)


@given(seeds)
@law
def test_ablating_changes_nothing_across_the_direction_nor_twice(seed):
    resid, direction = drawn(seed)
    found = edited(hooks.ablate_direction, resid, direction)
    across = torch.linalg.svd(direction[None]).Vh[1:]
    torch.testing.assert_close(found @ across.T, resid @ across.T, atol=1e-5, rtol=1e-5)
    again = edited(hooks.ablate_direction, found, direction)
    torch.testing.assert_close(again, found, atol=1e-5, rtol=1e-5)


@given(seeds, strengths)
@law
def test_what_each_edit_does_to_the_projection(seed, strength):
    resid, direction = drawn(seed)
    before, length = along(resid, direction), direction.norm()
    expected = {
        hooks.add_direction: before + strength * length,
        hooks.ablate_direction: before - strength * before,
        hooks.ablate_then_add: (strength * length).expand(3, 5),
    }
    for edit, projection in expected.items():
        found = edited(edit, resid, direction, strength)
        torch.testing.assert_close(along(found, direction), projection, atol=1e-4, rtol=1e-4)


@every_edit
@given(seeds, st.lists(st.sampled_from([0.0, 1.0, -2.5]), min_size=3, max_size=3))
@law
def test_one_strength_per_row_is_each_row_on_its_own(edit, seed, per_row):
    resid, direction = drawn(seed)
    found = edited(edit, resid, direction, lambda: torch.tensor(per_row)[:, None])
    for row, strength in enumerate(per_row):
        alone = edited(edit, resid[[row]], direction, strength)
        torch.testing.assert_close(found[row], alone[0])


@every_edit
def test_what_is_not_chosen_stays_bit_identical(edit):
    resid, direction = drawn(0)
    where = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    found = edited(edit, resid, direction, where=where)
    assert torch.equal(found[~where], resid[~where])
    torch.testing.assert_close(found[where], edited(edit, resid, direction)[where])


@every_edit
def test_nothing_chosen_keeps_the_stream(edit):
    resid, direction = drawn(0)
    assert edited(edit, resid, direction, where=torch.zeros(3, 1, dtype=torch.bool)) is None


@every_edit
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_streams_dtype_is_kept(edit, dtype):
    resid, direction = drawn(0)
    for strength in (1.5, lambda: torch.tensor([[1.0], [0.0], [2.0]])):
        found = edited(
            edit, resid.to(dtype), direction, strength, keep_norm=hooks.restore_norm
        )  # fmt: skip
        assert found.dtype == dtype


@every_edit
def test_a_zero_direction_or_stream_makes_no_nan(edit):
    resid, direction = drawn(0)
    resid[1] = 0
    for d in (direction, torch.zeros(6)):
        for keep_norm in (None, hooks.restore_norm, hooks.restore_grown_norm):
            assert edited(edit, resid, d, keep_norm=keep_norm).isfinite().all()


def test_the_edit_stays_reachable_under_its_own_name():
    for edit in EDITS:
        assert edit.__name__ == edit.edit.__name__
        assert edit.__doc__ == edit.edit.__doc__
        assert vars(hooks)[edit.__name__] is edit


def test_an_edit_of_ones_own():
    @steering_hook
    def flip(resid, direction, strength):
        return -strength * resid

    resid, direction = drawn(0)
    assert flip.__name__ == "flip"
    assert torch.equal(edited(flip, resid, direction, 2.0), -2 * resid)


def test_a_direction_of_another_width_is_refused(unchecked):
    with pytest.raises(sl.SteerlensError, match="of width 4; expected 6"):
        edited(hooks.add_direction, torch.randn(1, 2, 4), torch.randn(6))


# Kept norms


@every_edit
@given(seeds, strengths)
@law
def test_kept_norms_are_kept(edit, seed, strength):
    resid, direction = drawn(seed)
    found = edited(edit, resid, direction, strength, keep_norm=hooks.restore_norm)
    found = resid if found is None else found
    torch.testing.assert_close(found.norm(dim=-1), resid.norm(dim=-1), atol=1e-4, rtol=1e-4)


def test_grown_norms_are_restored_row_by_row():
    before = torch.ones(3, 2, 4)
    after = before * torch.tensor([[2.0, 0.5], [0.5, 0.5], [1.0, 1.0]])[..., None]
    found = hooks.restore_grown_norm(before, after).norm(dim=-1)
    assert found.tolist() == [[2.0, 2.0], [1.0, 1.0], [2.0, 2.0]]
