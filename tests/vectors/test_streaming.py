"""Statistics that stream: equal to those of all pairs, however these are cut."""

import pytest
import torch
from helpers import PROMPTS, planted_pairs
from hypothesis import given
from hypothesis import strategies as st

import steerlens as sl
from steerlens.activations import pairs, reading
from steerlens.activations.extraction import extract
from steerlens.models import tokenizing
from steerlens.vectors.estimators import (
    explained_variance,
    linear_discriminant,
    mean_difference,
    pairwise_centred,
    pca_center,
    pca_difference,
    pca_pairwise,
    pca_uncentred,
)
from steerlens.vectors.streaming import ContrastMoments, Moments, estimate

STREAMED = (mean_difference, pca_pairwise, pca_uncentred, pca_center, pca_difference)


def rows(n, seed=0, layers=2, width=5):
    return torch.randn(n, layers, width, generator=torch.Generator().manual_seed(seed)) + 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_parts_merge_to_the_whole(sizes, seed):
    whole = rows(sum(sizes), seed)
    merged = None
    for part in whole.split(sizes):
        merged = Moments.of(part) if merged is None else merged + Moments.of(part)
    alone = Moments.of(whole)
    assert merged.n == alone.n
    torch.testing.assert_close(merged.mean, alone.mean)
    torch.testing.assert_close(merged.scatter, alone.scatter)
    torch.testing.assert_close(
        merged.about_zero, torch.einsum("rld,rle->lde", whole.double(), whole.double())
    )


@pytest.mark.parametrize("estimator", STREAMED)
@pytest.mark.parametrize("shape", [(300, 3, 40), (30, 2, 200)])
def test_moments_give_what_the_pairs_give(estimator, shape):
    n_pairs, layers, width = shape
    direction = torch.randn(width, generator=torch.Generator().manual_seed(1))
    sides = planted_pairs(0.3 * direction, n_pairs, layers, noise=0.5)
    moments = ContrastMoments.of(*(side[: n_pairs // 3] for side in sides))
    moments += ContrastMoments.of(*(side[n_pairs // 3 :] for side in sides))
    found = estimate(estimator, moments)
    plain = estimator(*sides)
    if not found.sign_is_certain:
        flip = (found.directions * plain).sum(dim=1, keepdim=True).sign()
        found = found._replace(directions=found.directions * flip)
    torch.testing.assert_close(found.directions, plain, atol=2e-5, rtol=1e-4)
    if estimator is pca_pairwise:
        explained = explained_variance(pairwise_centred(*sides), plain)
        torch.testing.assert_close(found.explained, explained)
        assert found.sign_is_certain


def test_a_sign_that_most_pairs_might_contradict_is_not_called_certain():
    # most pairs differ by −1, a few by so much that the mean is positive
    positive = torch.tensor([-1.0] * 8 + [30.0] * 2).reshape(10, 1, 1).repeat(1, 1, 3)
    moments = ContrastMoments.of(positive, torch.zeros_like(positive))
    assert not estimate(pca_pairwise, moments).sign_is_certain
    assert estimate(pca_uncentred, moments).sign_is_certain


@pytest.mark.parametrize("estimator", STREAMED)
@pytest.mark.parametrize("tokens", ["last", [-1, -2, 0] * 4])
def test_extraction_in_parts_is_extraction_at_once(model, estimator, tokens):
    data = list(PROMPTS), [prompt[::-1] for prompt in PROMPTS]
    whole = extract(model, data, estimator, tokens=tokens, progress=False)
    parts = extract(model, data, estimator, tokens=tokens, pairs_at_once=2, progress=False)
    torch.testing.assert_close(parts.directions, whole.directions, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(parts.norms, whole.norms)
    torch.testing.assert_close(parts.explained, whole.explained, atol=1e-4, rtol=1e-3)
    assert parts.provenance == whole.provenance


def test_pairs_vote_in_a_second_reading_where_moments_leave_doubt(model, monkeypatch):
    sides = torch.tensor([-1.0] * 8 + [30.0] * 2).reshape(10, 1, 1).repeat(1, 4, 32)

    def read(model, rows, layers, **settings):
        at = [row.ids[0] - 1 for row in rows]
        values = torch.stack([sides[i] if i < 10 else torch.zeros(4, 32) for i in at])
        ones = torch.ones(len(rows), 4)
        return reading.Reading(values, ones, ones, ones.long())

    monkeypatch.setattr(pairs, "read_rows", read)
    rows = [tokenizing.TokenRow((i,)) for i in range(1, 21)]
    given = [tuple(row.ids) for row in rows[:10]], [tuple(row.ids) for row in rows[10:]]
    whole = extract(model, given, pca_pairwise, progress=False)
    parts = extract(model, given, pca_pairwise, pairs_at_once=3, progress=False)
    torch.testing.assert_close(parts.directions, whole.directions)
    assert (parts.directions < 0).all()  # the sign of eight pairs of ten


def test_what_needs_the_pairs_themselves_is_refused(model):
    with pytest.raises(sl.SteerlensError, match="linear_discriminant needs all pairs in memory"):
        extract(model, (["a"], ["b"]), linear_discriminant, pairs_at_once=2, progress=False)
    with pytest.raises(sl.SteerlensError, match="got pairs_at_once=0; expected at least 1"):
        extract(model, (["a"], ["b"]), pca_pairwise, pairs_at_once=0, progress=False)
    moments = ContrastMoments.of(rows(3), rows(3, seed=1), with_sum=False)
    with pytest.raises(sl.SteerlensError, match="gather them with with_sum=True"):
        estimate(pca_center, moments)


def test_equal_sides_are_refused():
    with pytest.raises(sl.SteerlensError, match="identical in layer row"):
        estimate(mean_difference, ContrastMoments.of(rows(3), rows(3)))
