"""Estimators: from the two sides of a contrast to one direction per layer.

Every estimator takes `positive, negative: Float["pair layer d_model"]` and returns
`Float["layer d_model"]` pointing from negative to positive: swapping the sides negates it.
"""

from collections.abc import Callable

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError

Estimator = Callable[
    [Float[Tensor, "pair layer d_model"], Float[Tensor, "pair layer d_model"]],
    Float[Tensor, "layer d_model"],
]


def mean_difference(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """The mean of p − n, at its own length: the shift that turns the average negative positive.

    >>> mean_difference(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    tensor([[1., 1., 1.]])
    """
    return reduce(
        at_least_float32(positive) - at_least_float32(negative),
        "pair layer d_model -> layer d_model",
        "mean",
    )


def pca_pairwise(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit top principal direction of the rows ±(p − n)/2, each pair centred on its midpoint.

    Keeps the mean difference (unlike `pca_difference`). CAST's default, arXiv 2409.05907.
    """
    return _principal_direction(pairwise_centred(positive, negative), positive, negative)


def pca_center(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit top principal direction of all rows minus their common mean.

    Finds the widest spread of the data, which is the contrast only if nothing varies more.
    """
    return _principal_direction(commonly_centred(positive, negative), positive, negative)


def pca_difference(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit top principal direction of the *centred* differences p − n.

    Centring, as scikit-learn's PCA does it, removes the mean difference, so that this finds how
    pairs differ in their difference. Kept for parity with CAST's `pca_diff` and repeng.
    """
    return _principal_direction(centred_differences(positive, negative), positive, negative)


def logistic_probe(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit weights of a logistic regression, without intercept, of +(p − n)/2 against −(p − n)/2.

    L2-regularised with C = 1, as steering-vectors fits it.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, needed only here

    half = (at_least_float32(positive) - at_least_float32(negative)) / 2
    rows = torch.cat([half, -half]).cpu().double().numpy()
    labels = [1] * len(half) + [0] * len(half)
    weights = [
        LogisticRegression(fit_intercept=False, max_iter=1000).fit(rows[:, layer], labels).coef_[0]
        for layer in range(rows.shape[1])
    ]
    directions = torch.stack([torch.from_numpy(weight) for weight in weights]).to(half)
    return _pointing_to_positive(_unit(directions), positive, negative)


def pairwise_centred(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "row layer d_model"]:
    """(p − n)/2; the mirrored rows −(p − n)/2 add nothing to a principal direction."""
    return (at_least_float32(positive) - at_least_float32(negative)) / 2


def commonly_centred(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "row layer d_model"]:
    """All positives and negatives, minus their common mean."""
    rows = torch.cat([at_least_float32(positive), at_least_float32(negative)])
    return rows - reduce(rows, "row layer d_model -> layer d_model", "mean")


def centred_differences(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "row layer d_model"]:
    """p − n, minus their mean."""
    rows = at_least_float32(positive) - at_least_float32(negative)
    return rows - reduce(rows, "row layer d_model -> layer d_model", "mean")


CENTRING: dict[Estimator, Estimator] = {
    pca_center: commonly_centred,
    pca_difference: centred_differences,
}
"""The rows behind an estimator's explained variance; all others use `pairwise_centred`."""

ESTIMATORS: dict[str, Estimator] = {
    estimator.__name__: estimator
    for estimator in (pca_pairwise, pca_center, pca_difference, mean_difference, logistic_probe)
}
"""The names of the estimators, for the command line."""


def explained_variance(
    rows: Float[Tensor, "row layer d_model"], directions: Float[Tensor, "layer d_model"]
) -> Float[Tensor, " layer"]:
    """Share of the centred rows' squared length that lies along each layer's direction."""
    along = einsum(
        rows, _unit(directions.to(rows)), "row layer d_model, layer d_model -> row layer"
    )
    total = reduce(rows.square(), "row layer d_model -> layer", "sum")
    return along.square().sum(dim=0) / total.clamp_min(torch.finfo(total.dtype).tiny)


def at_least_float32(activations: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision widened; float32 and float64 as they are."""
    return activations.to(torch.promote_types(activations.dtype, torch.float32))


def _principal_direction(
    rows: Float[Tensor, "row layer d_model"],
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Top eigenvector of the rows' scatter, by way of the smaller of Gram and covariance."""
    wide = rows.double()
    n_rows, _, d_model = wide.shape
    if n_rows < d_model:
        gram = einsum(wide, wide, "row layer d_model, other layer d_model -> layer row other")
        weights = torch.linalg.eigh(gram).eigenvectors[..., -1]
        directions = einsum(wide, weights, "row layer d_model, layer row -> layer d_model")
    else:
        scatter = einsum(wide, wide, "row layer d_model, row layer other -> layer d_model other")
        directions = torch.linalg.eigh(scatter).eigenvectors[..., -1]
    return _pointing_to_positive(_unit(directions).to(rows.dtype), positive, negative)


def _pointing_to_positive(
    directions: Float[Tensor, "layer d_model"],
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Signed so that most pairs agree; where they tie, so that the mean difference does."""
    difference = at_least_float32(positive) - at_least_float32(negative)
    along = einsum(
        difference, directions.to(difference), "pair layer d_model, layer d_model -> pair layer"
    )
    votes = along.sign().sum(dim=0)
    sign = torch.where(votes == 0, along.sum(dim=0), votes).sign()
    return directions * torch.where(sign == 0, 1, sign)[:, None]


def _unit(directions: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
    lengths = rearrange(directions.norm(dim=-1), "layer -> layer 1")
    return directions / lengths.clamp_min(torch.finfo(directions.dtype).tiny)


def require_contrast(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> None:
    """Refuse activations that are not finite, or equal on both sides: no direction is in them."""
    for side, activations in (("positive", positive), ("negative", negative)):
        if not activations.isfinite().all():
            raise SteerlensError(
                f"the {side} activations hold NaN or infinite values; "
                "run the model in float32 or bfloat16, or look for the prompt that overflows"
            )
    same = (positive == negative).all(dim=2).all(dim=0)
    if same.any():
        raise SteerlensError(
            f"positives and negatives are identical in layer row(s) {same.nonzero().tolist()}; "
            "nothing sets them apart: check the pairs, the suffixes and the tokens that are read"
        )
