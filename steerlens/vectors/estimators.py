"""Estimators: from the two sides of a contrast to one direction per layer.

Every estimator takes the activations of both sides, `[pair, layer, d_model]`, and returns
directions `[layer, d_model]` that point from negative to positive: swapping the sides negates them.
A principal direction has no sign of its own: it gets the one that most pairs agree with, or, if
they tie, that of the mean difference. Fitted directions keep their sign. At least float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.numerics import at_least_float32, unit
from steerlens.shapes import Directions, PerLayer, Samples, Side
from steerlens.vectors.discriminants import whitened
from steerlens.vectors.eigenvectors import top_eigenvectors

ROUNDING = 1e-6
"""Differences below this share of the largest activation are not a contrast."""

Estimator = Callable[[Side, Side], Directions]


def mean_difference(positive: Side, negative: Side) -> Directions:
    """The mean of p − n, not normalised: the shift from the mean negative to the mean positive.

    CAA's vector (arXiv 2312.06681) and, as pairs make both classes equally large, the difference
    of cluster means that RepE reads (arXiv 2310.01405).

    Args:
        positive: Activations of the positive side, [pair, layer, d_model].
        negative: Activations of the negative side, in the same order of pairs.

    >>> mean_difference(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    tensor([[1., 1., 1.]])
    """
    return reduce(
        at_least_float32(positive) - at_least_float32(negative),
        "pair layer d_model -> layer d_model",
        "mean",
    )


def negative_mean(positive: Side, negative: Side) -> Directions:
    """The mean of the negatives: not a direction, but the reference of `hooks.affine_direction`.

    >>> negative_mean(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    tensor([[0., 0., 0.]])
    """
    return reduce(at_least_float32(negative), "pair layer d_model -> layer d_model", "mean")


def midpoint(positive: Side, negative: Side) -> Directions:
    """The point half-way between the means: the boundary of `hooks.move_to_projection`.

    >>> midpoint(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    return (negative_mean(negative, positive) + negative_mean(positive, negative)) / 2


def pca_pairwise(positive: Side, negative: Side) -> Directions:
    """Unit top principal direction of ±(p − n)/2: each pair is centred on its midpoint.

    Keeps the mean difference (unlike `pca_difference`). CAST's default, arXiv 2409.05907, and
    repeng's "pca_center".

    Args:
        positive: Activations of the positive side, [pair, layer, d_model].
        negative: Activations of the negative side, in the same order of pairs.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> pca_pairwise(positive, -positive)
    tensor([[1., 0.]])
    """
    return _principal_direction(pairwise_centred(positive, negative), positive, negative)


def pca_uncentred(positive: Side, negative: Side) -> Directions:
    """The axis of `pca_pairwise`, signed as the mean difference even if most pairs disagree.

    The PCA of steering-vectors: that of ±(p − n), about the origin.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> pca_uncentred(positive, -positive)
    tensor([[1., 0.]])
    """
    directions = pca_pairwise(positive, negative)
    along = reduce(
        directions * mean_difference(positive, negative), "layer d_model -> layer", "sum"
    )
    return directions * torch.where(along < 0, -1, 1)[:, None]


def pca_center(positive: Side, negative: Side) -> Directions:
    """Unit top principal direction of all activations minus their common mean.

    Finds the widest spread of the data, which is the contrast only if nothing varies more. CAST's
    "pca_center".

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> pca_center(positive, -positive)
    tensor([[1., 0.]])
    """
    return _principal_direction(commonly_centred(positive, negative), positive, negative)


def pca_difference(positive: Side, negative: Side) -> Directions:
    """Unit top principal direction of the *centred* differences p − n.

    Centring, as scikit-learn's PCA does it, removes the mean difference, so that this finds where
    the differences vary most. Kept for parity with CAST's `pca_diff` and repeng.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> pca_difference(positive, -positive)
    tensor([[1., 0.]])
    """
    return _principal_direction(centred_differences(positive, negative), positive, negative)


def repe_pca(
    positive: Side,
    negative: Side,
    *,
    seed: int = 0,
    signs: Float[Tensor, " pair"] | None = None,
) -> Directions:
    """Unit top principal direction of s(p − n) minus their mean, where s reverses half the pairs.

    Unlike in `pca_difference`, centring thus keeps the mean difference. RepE's PCA reader, arXiv
    2310.01405.

    Args:
        positive: Activations of the positive side, [pair, layer, d_model].
        negative: Activations of the negative side, in the same order of pairs.
        seed: Chooses the reversed half; the result depends on the order of pairs.
        signs: s itself, +1 or −1 for each pair, as RepE's labels state it; None draws it.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> repe_pca(positive, -positive)
    tensor([[1., 0.]])
    """
    difference = at_least_float32(positive) - at_least_float32(negative)
    if signs is None:
        signs = torch.ones(len(difference))
        order = torch.randperm(len(difference), generator=torch.Generator().manual_seed(seed))
        signs[order[: len(difference) // 2]] = -1
    rows = difference * rearrange(signs.to(difference), "pair -> pair 1 1")
    rows = rows - reduce(rows, "pair layer d_model -> layer d_model", "mean")
    return _principal_direction(rows, positive, negative)


def linear_discriminant(positive: Side, negative: Side) -> Directions:
    """Unit Σ⁻¹ d: the mean difference d, downweighted where activations vary within each side.

    Σ is the covariance of each side about its own mean, shrunk after Ledoit and Wolf (2004). The
    sign is that of d, as Σ is positive definite. Fisher (1936).

    Args:
        positive: Activations of the positive side, [pair, layer, d_model].
        negative: Activations of the negative side, in the same order of pairs.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> linear_discriminant(positive, -positive)
    tensor([[1., 0.]])
    """
    sides = [at_least_float32(side).double() for side in (positive, negative)]
    within = [side - reduce(side, "pair layer d_model -> layer d_model", "mean") for side in sides]
    shift = mean_difference(*sides)
    dtype = torch.promote_types(positive.dtype, torch.float32)
    return unit(whitened(torch.cat(within), shift[..., None])[..., 0]).to(dtype)


def probe(classifier: Any, *, paired: bool = True) -> Estimator:
    """An estimator from any linear classifier of scikit-learn: its unit weights, with their sign.

    A `random_state` of None becomes 0. Swapping the sides negates the weights if `paired`; if not,
    only those of a classifier without class weights that is run to convergence.

    Args:
        classifier: A linear classifier with `coef_` once fitted, such as `LinearSVC(C=0.1)`.
        paired: Fit +(p − n)/2 against −(p − n)/2, from which everything that a pair shares drops
            out; False fits p against n, both minus their common mean.

    Returns:
        A function of (positive, negative), for `extract`.

    >>> from sklearn.svm import LinearSVC
    >>> probe(LinearSVC(C=0.1))(torch.ones(2, 1, 3), torch.zeros(2, 1, 3)).shape
    torch.Size([1, 3])
    """
    from sklearn.base import clone  # slow to import, needed only here

    try:
        seeded = clone(classifier)
    except TypeError as error:
        raise SteerlensError(
            f"got probe({short_repr(classifier)}); expected a scikit-learn classifier, which it "
            "needs to clone: probe(LinearSVC())"
        ) from error
    if "random_state" in seeded.get_params() and seeded.random_state is None:
        seeded.set_params(random_state=0)
    name = f"probe({' '.join(repr(seeded).split())}{'' if paired else ', paired=False'})"

    def estimator(positive: Side, negative: Side) -> Directions:
        if paired:
            half = pairwise_centred(positive, negative)
            rows = torch.cat([half, -half])
        else:
            rows = commonly_centred(positive, negative)
        labels = [1] * len(positive) + [-1] * len(negative)
        weights = []
        for layer in rearrange(rows, "sample layer d_model -> layer sample d_model"):
            fitted = clone(seeded).fit(layer.cpu().double().numpy(), labels)
            weight = torch.as_tensor(getattr(fitted, "coef_", ())).reshape(-1)
            if len(weight) != rows.shape[2]:
                raise SteerlensError(
                    f"got {len(weight)} weights from {name}; expected the {rows.shape[2]} of a "
                    "direction: use a linear classifier with coef_, outside a pipeline"
                )
            weights.append(weight)
        return unit(torch.stack(weights)).to(rows)

    estimator.__name__ = estimator.__qualname__ = name
    return estimator


def logistic_probe(positive: Side, negative: Side) -> Directions:
    """Unit weights of a logistic regression, without intercept, of +(p − n)/2 against −(p − n)/2.

    L2-regularised with C = 1, as in steering-vectors; the sign is the regression's. For another C:
    `probe(LogisticRegression(C=10, fit_intercept=False))`.

    Args:
        positive: Activations of the positive side, [pair, layer, d_model].
        negative: Activations of the negative side, in the same order of pairs.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> logistic_probe(positive, -positive)
    tensor([[1., 0.]])
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, needed only here

    return probe(LogisticRegression(fit_intercept=False, max_iter=1000))(positive, negative)


def pairwise_centred(positive: Side, negative: Side) -> Samples:
    """(p − n)/2; adding the mirrored −(p − n)/2 would not change a principal direction."""
    return (at_least_float32(positive) - at_least_float32(negative)).div_(2)


def commonly_centred(positive: Side, negative: Side) -> Samples:
    """All positives and negatives, minus their common mean."""
    rows = torch.cat([at_least_float32(positive), at_least_float32(negative)])
    return rows - reduce(rows, "sample layer d_model -> layer d_model", "mean")


def centred_differences(positive: Side, negative: Side) -> Samples:
    """p − n, minus their mean."""
    rows = at_least_float32(positive) - at_least_float32(negative)
    return rows - reduce(rows, "sample layer d_model -> layer d_model", "mean")


cluster_mean = mean_difference
"""RepE's cluster-mean reader."""

CENTRING: dict[Estimator, Estimator] = {
    pca_center: commonly_centred,
    pca_difference: centred_differences,
}
"""The samples for an estimator's explained variance; all others use `pairwise_centred`."""

ESTIMATORS: dict[str, Estimator] = {
    **{
        estimator.__name__: estimator
        for estimator in (
            pca_pairwise,
            pca_uncentred,
            pca_center,
            pca_difference,
            repe_pca,
            mean_difference,
            linear_discriminant,
            logistic_probe,
        )
    },
    "cluster_mean": cluster_mean,
}
"""Estimators by name, for the command line."""


def explained_variance(rows: Samples, directions: Directions) -> PerLayer:
    """Share of the centred samples' squared norm that is along each layer's direction.

    >>> explained_variance(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0, 0.0]]))
    tensor([0.3600])
    """
    along = einsum(
        rows, unit(directions.to(rows)), "sample layer d_model, layer d_model -> sample layer"
    )
    total = reduce(rows.square(), "sample layer d_model -> layer", "sum")
    return along.square().sum(dim=0) / total.clamp_min(torch.finfo(total.dtype).tiny)


def _principal_direction(rows: Samples, positive: Side, negative: Side) -> Directions:
    """Top eigenvector of the scatter; zero where centring left nothing but rounding."""
    no_contrast = _is_rounding(rows, positive, negative)[:, None]
    directions = top_eigenvectors(rows).masked_fill(no_contrast, 0).to(rows.dtype)
    return _pointing_to_positive(directions, positive, negative)


def _pointing_to_positive(directions: Directions, positive: Side, negative: Side) -> Directions:
    """Give each direction the sign that most pairs agree with; the mean difference breaks ties."""
    votes = sign_votes(directions, positive, negative)
    if (votes == 0).any():
        along = (directions * mean_difference(positive, negative)).sum(dim=1)
        votes = torch.where(votes == 0, along, votes)
    return directions * torch.where(votes < 0, -1, 1)[:, None]


def sign_votes(directions: Directions, positive: Side, negative: Side) -> PerLayer:
    """Pairs that agree with each direction's sign, minus pairs that do not.

    >>> positive = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]])
    >>> sign_votes(torch.tensor([[1.0, 0.0]]), positive, -positive)
    tensor([2.])
    """
    return torch.stack(
        [
            (p @ direction.to(p) - n @ direction.to(p)).sign().sum()
            for p, n, direction in zip(
                at_least_float32(positive).unbind(dim=1),
                at_least_float32(negative).unbind(dim=1),
                directions,
                strict=True,
            )
        ]
    )


def require_contrast(positive: Side, negative: Side) -> None:
    """Refuse activations that are not finite, or identical on both sides."""
    require_finite(positive, negative)
    same = _is_rounding(positive - negative, positive, negative)
    if same.any():
        raise SteerlensError(
            f"positives and negatives are identical in layer row(s) {same.nonzero().tolist()}; "
            "expected a contrast: check the pairs, the suffixes and the tokens that are read"
        )


def require_finite(positive: Side, negative: Side) -> None:
    """Refuse activations that are NaN or infinite."""
    for side, activations in (("positive", positive), ("negative", negative)):
        if not activations.isfinite().all():
            raise SteerlensError(
                f"the {side} activations hold NaN or infinite values; "
                "run the model in float32 or bfloat16, or look for the prompt that overflows"
            )


def _is_rounding(rows: Samples, positive: Side, negative: Side) -> Bool[Tensor, " layer"]:
    """Whether a layer's samples are nothing but float32's rounding of the activations."""
    size = torch.maximum(largest(positive), largest(negative))
    return largest(rows) <= ROUNDING * size


def largest(rows: Samples) -> PerLayer:
    """The largest magnitude of each layer, without the copy that `abs` would make."""
    return torch.maximum(rows.amax(dim=2).amax(dim=0), -rows.amin(dim=2).amin(dim=0))
