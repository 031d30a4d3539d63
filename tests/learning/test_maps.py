"""The two maps against what they promise, on planted activations and in use."""

import numpy as np
import pytest
import torch
from helpers import splitting_condition
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations.reading import read_residual
from steerlens.learning.maps import linear_transport, null_space_map

PROMPTS = ["How do I bake bread?", "Why?", "Tell me about the sea and its ships.", "Name a colour."]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 40), st.floats(0.2, 5), st.floats(-50, 50))
def test_the_whole_way_gives_the_targets_mean_and_variance(seed, n, widest, furthest):
    """Samples that differ in place and width, in an order of their own in each coordinate."""
    source = normal(n, 6, seed=seed)
    stretch = torch.linspace(0.1, widest, 6)
    target = source * stretch + furthest
    for column in range(6):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + column))
        target[:, column] = target[order, column]
    moved = source[None] + linear_transport(source, target, 0).shift(source[None])
    scale = 1 + abs(furthest)
    torch.testing.assert_close(moved[0].mean(0), target.mean(0), rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(moved[0].var(0), target.var(0), rtol=1e-4, atol=1e-5 * scale)


def test_any_target_is_met_as_closely_as_a_line_can():
    """NumPy's least squares between the sorted samples."""
    source, target = normal(50, 3), normal(50, 3, seed=1).exp()
    moved = source + linear_transport(source, target, 0).shift(source[None])[0]
    for column in range(3):
        x, y = (np.sort(side[:, column].numpy()) for side in (source, target))
        slope, base = np.polyfit(x, y, 1)
        torch.testing.assert_close(
            moved[:, column], slope * source[:, column] + base, rtol=1e-4, atol=1e-4
        )


def test_a_coordinate_that_never_varies_is_moved_only():
    source, target = torch.ones(5, 1), torch.arange(5.0)[:, None]
    moved = source + linear_transport(source, target, 0).shift(source[None])[0]
    torch.testing.assert_close(moved, torch.full((5, 1), 2.0))


def test_benign_activations_stay_and_harmful_ones_get_the_direction():
    """Benign ones in a plane of 20 of 64 axes, harmful ones beyond it."""
    axes = torch.linalg.qr(normal(64, 64).double()).Q.float()
    benign = normal(100, 20, seed=1) @ axes[:, :20].T
    beyond = axes[:, 20] * 4 + 0.1 * normal(60, 44, seed=2) @ axes[:, 20:].T
    harmful = normal(60, 20, seed=3) @ axes[:, :20].T + beyond
    direction = normal(64, seed=4)
    found = null_space_map(benign, harmful, direction, 0)
    unseen = normal(500, 20, seed=5) @ axes[:, :20].T
    assert found.shift(unseen[None]).norm(dim=-1).max() <= 1e-4
    moved = found.shift(harmful[None])[0]
    torch.testing.assert_close(moved.mean(0), direction, rtol=0.05, atol=0.05)
    share = moved @ direction / (direction @ direction)
    assert share.min() > 0.8


def test_the_regression_is_the_papers():
    """Δ P from its closed form with the whole matrix of targets."""
    axes = torch.linalg.qr(normal(16, 16).double()).Q
    benign = normal(30, 6, seed=1).double() @ axes[:, :6].T
    harmful, direction = normal(12, 16, seed=3).double(), normal(16, seed=4).double()
    project = axes[:, 6:] @ axes[:, 6:].T
    seen = project @ harmful.T
    wanted = direction[:, None].expand(-1, 12)
    alpha = 1e-3 * (seen @ seen.T).trace() / 10
    delta = wanted @ seen.T @ torch.linalg.pinv(seen @ seen.T + alpha * project, rtol=1e-9)
    x = normal(5, 16, seed=6)
    found = null_space_map(benign.float(), harmful.float(), direction.float(), 0)
    torch.testing.assert_close(
        found.shift(x[None])[0], (x.double() @ project @ delta.T).float(), rtol=1e-3, atol=1e-4
    )


def test_maps_run_in_batches_behind_conditions(model):
    """Each row as alone; rows whose condition does not hold stay as they are."""
    read = read_residual(model, PROMPTS, [1], progress=False)[:, 0]
    found = linear_transport(read, 3 * read.flip(1), 1)
    condition = splitting_condition(model, PROMPTS, layer=0)
    plan = found.steering(when=condition)
    together = sl.generate(model, PROMPTS, plan, max_new_tokens=6, progress=False)
    [report] = together.gates
    assert 0 < report.open.sum() < len(PROMPTS)
    plain = sl.generate(model, PROMPTS, max_new_tokens=6, progress=False)
    for row, prompt in enumerate(PROMPTS):
        alone = sl.generate(model, [prompt], plan, max_new_tokens=6, progress=False)
        assert together.tokens[row] == alone.tokens[0]
        if not report.open[row]:
            assert together.tokens[row] == plain.tokens[row]
    assert together.tokens != plain.tokens


def test_the_edit_moves_the_stream_where_it_stands(model):
    read = read_residual(model, PROMPTS, [1], progress=False)[:, 0]
    found = linear_transport(read, read.roll(1, 0) * 2 + 1, 1)
    tokens = model.to_tokens(PROMPTS[0])
    _, cache = model.run_with_cache(tokens)
    before = cache["blocks.1.hook_resid_post"]
    seen = {}
    spy = ("blocks.2.hook_resid_pre", lambda resid, hook: seen.update(after=resid))
    with torch.no_grad(), model.hooks(fwd_hooks=[*found.steering(0.5).hooks(), spy]):
        model(tokens)
    torch.testing.assert_close(seen["after"], before + 0.5 * found.shift(before))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_transport(normal(3, 4), normal(5, 4), 0), "equally many"),
        (lambda: linear_transport(normal(3, 4), normal(3, 5), 0), "of shapes"),
        (lambda: null_space_map(normal(9, 4), normal(3, 4), normal(4), 0), "leave no axis"),
        (
            lambda: null_space_map(normal(2, 4), normal(3, 4), normal(4), 0, kept_energy=1.0),
            "kept_energy",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(make, message, unchecked):
    with pytest.raises(sl.SteerlensError, match=message):
        make()
