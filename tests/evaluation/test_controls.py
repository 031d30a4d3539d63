"""Controls are as long as what they control, and hold nothing of its labels."""

import pytest
import torch
from helpers import random_vector
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlens as sl
from steerlens.evaluation.controls import random_directions, shuffled_labels
from steerlens.vectors.estimators import linear_discriminant, mean_difference, pca_pairwise

QUIET = {"progress": False}
PAIRS = (
    [f"I love the number {n}." for n in range(24)],
    [f"We hate the number {n}." for n in range(24)],
)


def assert_same_lengths(vector, controls):
    for control in controls:
        assert (control.layers, control.site) == (vector.layers, vector.site)
        torch.testing.assert_close(
            control.directions.norm(dim=1), vector.directions.norm(dim=1), rtol=1e-4, atol=0
        )


@settings(deadline=None)
@given(st.integers(0, 9), st.floats(1e-3, 1e3), st.integers(1, 5))
def test_random_directions_are_as_long_seeded_and_different(seed, scale, count):
    directions = scale * torch.randn(3, 64, generator=torch.Generator().manual_seed(99))
    vector = sl.SteeringVector(directions, (1, 2, 4), norms=torch.ones(3))
    controls = random_directions(vector, count, seed=seed)
    assert_same_lengths(vector, controls)
    again = random_directions(vector, count, seed=seed)
    assert all((a.directions == b.directions).all() for a, b in zip(controls, again, strict=True))
    assert all(control.cosine(vector).abs().max() < 0.6 for control in controls)
    other = random_directions(vector, 1, seed=seed + 1)[0]
    assert other.cosine(controls[0]).abs().max() < 0.6


def test_random_directions_have_no_preferred_axis():
    vector = sl.SteeringVector(torch.ones(1, 16), (0,))
    drawn = torch.cat([one.directions for one in random_directions(vector, 4000)])
    covariance = drawn.T @ drawn / len(drawn)  # of length 4: the identity, up to sampling
    torch.testing.assert_close(covariance, torch.eye(16), rtol=0, atol=0.12)


@pytest.mark.parametrize("estimator", [mean_difference, linear_discriminant, pca_pairwise])
def test_shuffled_labels_leave_nothing_of_the_vector(model, estimator):
    vector = sl.extract(model, PAIRS, estimator, layers=[1, 3], tokens="all", **QUIET)
    controls = shuffled_labels(model, vector, PAIRS, 4, **QUIET)
    assert_same_lengths(vector, controls)
    cosines = torch.stack([control.cosine(vector) for control in controls]).abs()
    assert cosines.max() < 0.9
    assert cosines.mean() < 0.5
    again = shuffled_labels(model, vector, PAIRS, 4, **QUIET)
    assert (again[3].directions == controls[3].directions).all()
    assert controls[0].cosine(controls[1]).abs().max() < 0.999


def test_pca_of_pairs_does_not_see_flipped_labels_so_mean_differences_stand_in(model):
    by_pca, by_mean = (
        sl.extract(model, PAIRS, estimator, layers=[2], tokens="all", **QUIET)
        for estimator in (pca_pairwise, mean_difference)
    )
    for one, other in zip(
        shuffled_labels(model, by_pca, PAIRS, **QUIET),
        shuffled_labels(model, by_mean, PAIRS, **QUIET),
        strict=True,
    ):
        assert one.cosine(other) == pytest.approx(1)


@pytest.mark.parametrize("tokens", [slice(1, None), slice(-3, None), slice(None, None, 2), 2])
def test_the_tokens_that_a_vector_notes_are_read_again(model, tokens):
    vector = sl.extract(model, PAIRS, mean_difference, layers=[2], tokens=tokens, **QUIET)
    [noted] = shuffled_labels(model, vector, PAIRS, 1, **QUIET)
    [given] = shuffled_labels(model, vector, PAIRS, 1, tokens=tokens, **QUIET)
    assert (noted.directions == given.directions).all()


def test_a_function_of_the_tokens_must_be_passed_again(model):
    def third(str_tokens):
        return [2]

    vector = sl.extract(model, PAIRS, mean_difference, layers=[2], tokens=third, **QUIET)
    with pytest.raises(sl.SteerlensError, match=r"third'.*pass what it was .* as tokens="):
        shuffled_labels(model, vector, PAIRS, **QUIET)
    assert shuffled_labels(model, vector, PAIRS, 1, tokens=third, **QUIET)


def test_other_pairs_or_an_unknown_estimator_are_refused(model):
    vector = sl.extract(model, PAIRS, mean_difference, layers=[2], tokens="all", **QUIET)
    others = ["The sea.", "A ship."], ["My house.", "Our street."]
    with pytest.raises(sl.SteerlensError, match="give another direction"):
        shuffled_labels(model, vector, others, **QUIET)
    with pytest.raises(sl.SteerlensError, match="at least two pairs"):
        shuffled_labels(model, vector, (PAIRS[0][:1], PAIRS[1][:1]), **QUIET)
    with pytest.raises(sl.SteerlensError, match="pass the function as estimator="):
        shuffled_labels(model, random_vector(model), PAIRS, **QUIET)
