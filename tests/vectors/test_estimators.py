from functools import partial

import numpy as np
import pytest
import torch
from helpers import planted_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import steerlens as sl
from steerlens.vectors import eigenvectors, estimators
from steerlens.vectors.eigenvectors import top_eigenvectors
from steerlens.vectors.estimators import explained_variance, probe, require_contrast

svm_probe = probe(LinearSVC())
ridge_probe = probe(RidgeClassifier(), paired=False)
ESTIMATORS = [
    *dict.fromkeys(estimators.ESTIMATORS.values()),
    svm_probe,
    ridge_probe,
]
SIGNED_BY_NATURE = (
    estimators.mean_difference,
    estimators.pca_uncentred,
    estimators.linear_discriminant,
    estimators.logistic_probe,
    svm_probe,
    ridge_probe,
)
PCA_ROWS = {
    estimators.pca_pairwise: lambda p, n: np.concatenate([(p - n) / 2, (n - p) / 2]),
    estimators.pca_uncentred: lambda p, n: np.concatenate([p - n, n - p]),
    estimators.pca_center: lambda p, n: np.concatenate([p, n]),
    estimators.pca_difference: lambda p, n: p - n,
}
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)
seeds = st.integers(0, 10_000)
shapes = st.sampled_from([(7, 2, 12), (30, 3, 5)])  # fewer and more pairs than dimensions


def activations(seed, shape):
    """Two sides with a spectrum that leaves no doubt about the first component."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0.5, -1, shape[2])
    sides = torch.randn(2, *shape, generator=generator) * scales
    return sides[0] + 0.5, sides[1] - 0.5


@every_estimator
@given(seeds, shapes)
@settings(max_examples=10, deadline=None)
def test_swapping_the_sides_negates(estimator, seed, shape):
    positive, negative = activations(seed, shape)
    torch.testing.assert_close(estimator(negative, positive), -estimator(positive, negative))


@every_estimator
@given(seeds, shapes)
@settings(max_examples=10, deadline=None)
def test_most_pairs_lie_on_the_positive_side(estimator, seed, shape):
    positive, negative = activations(seed, shape)
    along = torch.einsum("pld,ld->pl", positive - negative, estimator(positive, negative))
    if estimator in SIGNED_BY_NATURE:
        assert (along.sum(dim=0) >= 0).all()
    else:
        assert (along.sign().sum(dim=0) >= 0).all()


@pytest.mark.parametrize(
    "estimator",
    # RepE reverses pairs by their place; the SVM visits its rows in an order drawn at random
    [e for e in ESTIMATORS if e not in (estimators.repe_pca, svm_probe)],
    ids=lambda e: e.__name__,
)
@given(seeds, shapes, st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_the_order_of_pairs_does_not_matter(estimator, seed, shape, random):
    positive, negative = activations(seed, shape)
    order = list(range(shape[0]))
    random.shuffle(order)
    torch.testing.assert_close(
        estimator(positive[order], negative[order]),
        estimator(positive, negative),
        atol=1e-4,  # the probe's solver stops early
        rtol=1e-3,
    )


@every_estimator
def test_layers_do_not_see_one_another(estimator):
    positive, negative = activations(0, (9, 3, 12))
    together = estimator(positive, negative)
    alone = [estimator(positive[:, [l]], negative[:, [l]]) for l in range(3)]  # noqa: E741
    torch.testing.assert_close(together, torch.cat(alone))


@every_estimator
def test_lengths(estimator):
    positive, negative = activations(0, (9, 2, 12))
    found = estimator(positive, negative)
    if estimator is estimators.mean_difference:
        torch.testing.assert_close(found, (positive - negative).mean(dim=0))
    else:
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@every_estimator
@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_widened(estimator, dtype, wanted):
    positive, negative = (side.to(dtype) for side in activations(0, (9, 2, 12)))
    assert estimator(positive, negative).dtype == wanted


# Oracles


@pytest.mark.parametrize("shape", [(7, 2, 12), (30, 3, 5), (12, 1, 12)])
@pytest.mark.parametrize("estimator", PCA_ROWS, ids=lambda e: e.__name__)
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_directions_are_those_of_scikit_learn(estimator, shape, seed):
    positive, negative = activations(seed, shape)
    found = estimator(positive, negative)
    centred = estimators.CENTRING.get(estimator, estimators.pairwise_centred)
    shares = explained_variance(centred(positive, negative), found)
    for layer in range(shape[1]):
        rows = PCA_ROWS[estimator](positive[:, layer].double(), negative[:, layer].double())
        pca = PCA(n_components=1, svd_solver="full").fit(rows)
        assert abs(pca.components_[0] @ found[layer].double().numpy()) == pytest.approx(1, abs=1e-5)
        assert shares[layer].item() == pytest.approx(pca.explained_variance_ratio_[0], abs=1e-5)


def test_the_probe_is_scikit_learns():
    positive, negative = activations(0, (20, 1, 6))
    rows = torch.cat([positive - negative, negative - positive])[:, 0].double().numpy() / 2
    fitted = LogisticRegression(fit_intercept=False).fit(rows, [1] * 20 + [0] * 20).coef_[0]
    found = estimators.logistic_probe(positive, negative)[0].numpy()
    np.testing.assert_allclose(found, fitted / np.linalg.norm(fitted), atol=1e-3)


@pytest.mark.parametrize("shape", [(30, 2, 5), (7, 2, 12)])
def test_the_discriminant_is_the_whitened_mean_difference(shape):
    positive, negative = activations(3, shape)
    found = estimators.linear_discriminant(positive, negative)
    for layer in range(shape[1]):
        p, n = positive[:, layer].double().numpy(), negative[:, layer].double().numpy()
        within = LedoitWolf(assume_centered=True).fit(
            np.concatenate([p - p.mean(0), n - n.mean(0)])
        )
        wanted = within.precision_ @ (p - n).mean(0)
        np.testing.assert_allclose(found[layer], wanted / np.linalg.norm(wanted), atol=1e-5)


def test_with_many_pairs_the_discriminant_is_scikit_learns():
    positive, negative = activations(0, (4000, 1, 5))
    rows = torch.cat([positive, negative])[:, 0].double().numpy()
    fitted = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, [1] * 4000 + [0] * 4000).coef_[0]
    found = estimators.linear_discriminant(positive, negative)[0].double().numpy()
    # the shrinkage dies out with the number of rows, at about 1/n
    assert found @ fitted / np.linalg.norm(fitted) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    "classifier",
    [
        LinearSVC(C=0.1),
        RidgeClassifier(alpha=2.0),
        SGDClassifier(random_state=3),
        LogisticRegression(C=10),
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_probe_has_the_classifiers_weights(classifier, paired):
    positive, negative = activations(1, (20, 2, 6))
    found = probe(classifier, paired=paired)(positive, negative)
    assert not hasattr(classifier, "coef_")  # the caller's own stays unfitted
    reference = clone(classifier)
    if isinstance(classifier, LinearSVC):
        reference.set_params(random_state=0)
    p, n = positive.double().numpy(), negative.double().numpy()
    centre = (p + n) / 2 if paired else np.concatenate([p, n]).mean(0)
    rows = np.concatenate([p - centre, n - centre])
    for layer in range(2):
        weights = reference.fit(rows[:, layer], [1] * 20 + [-1] * 20).coef_.reshape(-1)
        # the probe's rows are centred in float32
        np.testing.assert_allclose(found[layer], weights / np.linalg.norm(weights), atol=1e-4)


@pytest.mark.parametrize("classifier", [SGDClassifier(), LinearSVC(), LogisticRegression(C=10)])
@given(seeds)
@settings(max_examples=5, deadline=None)
def test_paired_probes_of_any_kind_are_negated_exactly(classifier, seed):
    positive, negative = activations(seed, (9, 1, 6))
    estimator = probe(classifier)
    assert torch.equal(estimator(negative, positive), -estimator(positive, negative))


def test_a_probe_repeats_itself_and_tells_its_settings():
    positive, negative = activations(0, (9, 1, 6))
    estimator = probe(SGDClassifier(alpha=0.01), paired=False)
    assert torch.equal(estimator(positive, negative), estimator(positive, negative))
    assert estimator.__name__ == "probe(SGDClassifier(alpha=0.01, random_state=0), paired=False)"


def test_repes_reader_is_scikit_learns_pca_of_the_signed_differences():
    positive, negative = activations(2, (7, 2, 12))
    signs = torch.tensor([1.0, -1, -1, 1, 1, 1, -1])
    found = estimators.repe_pca(positive, negative, signs=signs)
    rows = ((positive - negative) * signs[:, None, None]).double().numpy()
    for layer in range(2):
        component = PCA(n_components=1, svd_solver="full").fit(rows[:, layer]).components_[0]
        assert abs(component @ found[layer].double().numpy()) == pytest.approx(1, abs=1e-6)


def test_repes_seed_settles_everything():
    positive, negative = activations(2, (8, 1, 12))
    first = estimators.repe_pca(positive, negative)
    torch.manual_seed(5)
    assert torch.equal(first, estimators.repe_pca(positive, negative, seed=0))
    assert not torch.equal(first, estimators.repe_pca(positive, negative, seed=1))


# Signs


def lopsided():
    """Two pairs differ a little one way along the first axis, one differs much the other way."""
    difference = torch.tensor([-1.0, -1, 5])
    positive = torch.stack([difference, 0.1 * torch.tensor([1.0, -1, 1])], dim=1)[:, None]
    return positive, torch.zeros_like(positive)


def test_the_two_rules_for_signs_differ_where_most_pairs_oppose_the_mean():
    positive, negative = lopsided()
    by_pairs = estimators.pca_pairwise(positive, negative)
    by_mean = estimators.pca_uncentred(positive, negative)
    assert by_pairs[0, 0] < 0 < by_mean[0, 0]
    assert torch.equal(by_pairs, -by_mean)


# Planted truth


@pytest.mark.parametrize(
    "estimator",
    [
        estimators.mean_difference,
        estimators.pca_pairwise,
        estimators.pca_uncentred,
        estimators.repe_pca,
        estimators.logistic_probe,
        svm_probe,
    ],
    ids=lambda e: e.__name__,
)
def test_a_planted_direction_comes_back(estimator):
    planted = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator()), dim=0)
    found = estimator(*planted_pairs(planted, n_pairs=40, noise=0.05))
    cosine = torch.cosine_similarity(found, planted[None], dim=1)
    assert (cosine > 0.99).all()


def test_the_widest_spread_is_found_by_pca_center():
    planted = torch.eye(24)[3]
    found = estimators.pca_center(*planted_pairs(10 * planted))
    assert (found @ planted > 0.99).all()


def test_pca_difference_does_not_see_the_mean_difference():
    planted = torch.eye(24)[3]
    found = estimators.pca_difference(*planted_pairs(10 * planted))
    assert (found @ planted < 0.9).all()


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_repes_signs_keep_the_mean_difference_in(seed):
    planted = torch.eye(24)[3]
    found = estimators.repe_pca(*planted_pairs(10 * planted), seed=seed)
    assert (found @ planted > 0.99).all()


def test_the_discriminant_looks_past_what_varies_on_both_sides():
    """The prompts spread widely, along an axis that the mean difference is not free of."""
    generator = torch.Generator().manual_seed(0)
    signal, nuisance = torch.eye(12)[:2]

    def side(sign, n=60):
        spread = 5 * torch.randn(n, 1, 1, generator=generator) * nuisance
        return sign * (signal + nuisance) + spread + torch.randn(n, 1, 12, generator=generator)

    positive, negative, unseen, unseen_negative = side(1), side(-1), side(1), side(-1)

    def accuracy(estimator):
        found = estimator(positive, negative)[0]
        return (
            (unseen @ found > 0).float().mean() + (unseen_negative @ found < 0).float().mean()
        ) / 2

    discriminant = accuracy(estimators.linear_discriminant)
    assert discriminant > 0.8  # at best 0.85: the signal is one standard deviation from zero
    assert discriminant > accuracy(estimators.mean_difference) + 0.1


def test_the_discriminant_of_one_pair_is_its_difference():
    positive, negative = torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.0, 5.0]]])
    found = estimators.linear_discriminant(positive, negative)
    torch.testing.assert_close(found, torch.tensor([[0.6, -0.8]]))


def test_one_pair_is_enough_for_its_difference():
    positive, negative = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    found = estimators.pca_pairwise(positive, negative)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))


# Bad input


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_are_refused(bad):
    fine = torch.randn(4, 2, 3)
    broken = fine.clone()
    broken[1, 1, 1] = bad
    with pytest.raises(sl.SteerlensError, match="negative activations hold NaN or infinite"):
        require_contrast(fine, broken)


def test_sides_that_do_not_differ_are_refused():
    same = torch.randn(4, 2, 3)
    other = same.clone()
    other[:, 0] += 1
    with pytest.raises(sl.SteerlensError, match=r"identical in layer row\(s\) \[\[1\]\]"):
        require_contrast(same, other)


def test_differences_of_rounding_alone_are_refused():
    same = torch.randn(4, 1, 3)
    with pytest.raises(sl.SteerlensError, match="identical in layer row"):
        require_contrast(same, same * (1 + 1e-7))


@pytest.mark.parametrize("estimator", [estimators.pca_difference, estimators.repe_pca])
def test_rounding_that_centring_leaves_is_no_direction(estimator):
    positive, negative = 0.7 * torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    assert not estimator(positive, negative).any()
    alike = estimators.pca_difference(*(side.expand(3, 2, 3) for side in (positive, negative)))
    assert not alike.any()


def test_probes_of_something_else_are_refused():
    positive, negative = activations(0, (9, 1, 6))
    with pytest.raises(sl.SteerlensError, match="expected a scikit-learn classifier"):
        probe("logistic")
    for useless in (KNeighborsClassifier(), make_pipeline(StandardScaler(), LinearSVC())):
        with pytest.raises(sl.SteerlensError, match=r"got 0 weights .*; expected the 6 of a dir"):
            probe(useless)(positive, negative)


def test_a_vector_remembers_the_seed_of_its_estimator(model):
    pairs = (["I am happy.", "So glad today.", "Joy!"], ["I am sad.", "So gloomy today.", "Woe!"])
    found = sl.extract(model, pairs, partial(estimators.repe_pca, seed=3), progress=False)
    assert found.provenance["estimator"] == "repe_pca(seed=3)"


# Large problems


@pytest.mark.parametrize("shape", [(300, 3, 200), (150, 2, 400), (1000, 1, 160)])
@pytest.mark.parametrize("decay", [1.0, 0.3])
def test_lanczos_is_the_whole_matrix_and_scikit_learn(shape, decay):
    n_rows, layers, width = shape
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, width + 1) ** -decay
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    rows = (torch.randn(n_rows, layers, width, generator=generator) * spectrum) @ turn
    found = top_eigenvectors(rows)
    whole = eigenvectors._by_full_matrix(rows).float()
    assert ((found.float() * whole).sum(dim=1).abs() > 1 - 1e-6).all()
    mirrored = torch.cat([rows, -rows])
    for layer in range(layers):
        pca = PCA(1, svd_solver="full").fit(mirrored[:, layer].double().numpy())
        along = torch.as_tensor(pca.components_[0]) @ found[layer].double()
        assert along.abs() > 1 - 1e-6


def test_what_lanczos_cannot_settle_is_solved_whole(monkeypatch):
    rows = torch.randn(200, 2, 150, generator=torch.Generator().manual_seed(0))
    whole = eigenvectors._by_full_matrix(rows)
    monkeypatch.setattr(eigenvectors, "LANCZOS_STEPS", 3)
    assert torch.equal(top_eigenvectors(rows), whole)


def test_lanczos_ends_where_rows_span_little():
    rows = torch.zeros(200, 1, 150)
    rows[:, 0, 7] = torch.linspace(1, 2, 200)
    assert top_eigenvectors(rows)[0].abs().argmax() == 7
    assert top_eigenvectors(torch.zeros(200, 1, 150)).isfinite().all()
