"""The joint discriminant against its formula, its case of two groups, and planted clusters."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from steerlens.vectors.discriminants import joint_discriminant, whitened
from steerlens.vectors.estimators import linear_discriminant


def groups_of(sizes, width=12, layers=2, seed=0, apart=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return [
        torch.randn(n, layers, width, generator=generator) @ mixing
        + apart * torch.randn(layers, width, generator=generator)
        for n in sizes
    ]


@pytest.mark.parametrize("sizes", [(40, 30, 20), (4, 3, 3)])
def test_scores_are_those_of_the_formula(sizes):
    groups = groups_of(sizes)
    found = joint_discriminant(groups)
    asked = groups_of((5,), seed=1)[0]
    for layer in range(2):
        sides = [group[:, layer].double().numpy() for group in groups]
        within = np.concatenate([side - side.mean(0) for side in sides])
        inverse = np.linalg.inv(ledoit_wolf(within, assume_centered=True)[0])
        means = np.stack([side.mean(0) for side in sides])
        x = asked[:, layer].double().numpy()
        expected = x @ inverse @ means.T - 0.5 * np.einsum("cd,de,ce->c", means, inverse, means)
        ours = found.scores(asked)[:, layer].numpy()
        expected, ours = (of - of.mean(axis=1, keepdims=True) for of in (expected, ours))
        np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=1e-3)


def test_of_two_groups_it_is_the_linear_discriminant():
    one, other = groups_of((30, 30))
    found = joint_discriminant([one, other])
    direction = found.weights[0] - found.weights[1]
    cosine = torch.cosine_similarity(direction, linear_discriminant(one, other), dim=1)
    torch.testing.assert_close(cosine, torch.ones(2), atol=1e-5, rtol=0)


def test_planted_clusters_are_told_apart():
    groups = groups_of((60, 60, 60, 60), apart=8.0)
    found = joint_discriminant([group[:30] for group in groups])
    for index, group in enumerate(groups):
        said = found.scores(group[30:]).mean(dim=1).argmax(dim=1)
        assert (said == index).float().mean() > 0.95


@pytest.mark.parametrize("n", [5, 50])
def test_whitened_is_the_inverse_whether_or_not_there_are_enough_samples(n):
    rows = groups_of((n,), layers=1)[0].double()
    covariance, _ = ledoit_wolf(rows[:, 0].numpy(), assume_centered=True)
    vectors = torch.randn(1, 12, 3, dtype=torch.float64)
    expected = np.linalg.solve(covariance, vectors[0].numpy())
    np.testing.assert_allclose(whitened(rows, vectors)[0].numpy(), expected, rtol=1e-6, atol=1e-9)
