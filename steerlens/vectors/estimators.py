"""Estimators: from the two sides of a contrast to one direction per layer.

Every estimator takes `positive, negative: Float["pair layer d_model"]` and returns
`Float["layer d_model"]` pointing from negative to positive: swapping the sides negates it.
A principal direction has no sign of its own: it gets the one that most pairs agree to, or, where
they tie, that of the mean difference. What is fitted keeps its sign. At least float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.numerics import at_least_float32, unit
from steerlens.vectors.eigenvectors import top_eigenvectors

ROUNDING = 1e-6
"""Differences below this share of the largest activation are not a contrast."""

Estimator = Callable[
    [Float[Tensor, "pair layer d_model"], Float[Tensor, "pair layer d_model"]],
    Float[Tensor, "layer d_model"],
]


def mean_difference(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """The mean of p − n, at its own length: the shift that turns the average negative positive.

    CAA's vector (arXiv 2312.06681) and, as pairs make both classes equally large, the difference
    of cluster means that RepE reads (arXiv 2310.01405).

    >>> mean_difference(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    tensor([[1., 1., 1.]])
    """
    return reduce(
        at_least_float32(positive) - at_least_float32(negative),
        "pair layer d_model -> layer d_model",
        "mean",
    )


def negative_mean(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """The mean of the negatives: no direction, but the reference of `hooks.affine_direction`."""
    return reduce(at_least_float32(negative), "pair layer d_model -> layer d_model", "mean")


def pca_pairwise(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit top principal direction of the rows ±(p − n)/2, each pair centred on its midpoint.

    Keeps the mean difference (unlike `pca_difference`). CAST's default, arXiv 2409.05907, and
    repeng's "pca_center".
    """
    return _principal_direction(pairwise_centred(positive, negative), positive, negative)


def pca_uncentred(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """The unit line of `pca_pairwise`, signed as the mean difference, even against most pairs.

    The PCA of steering-vectors: of ±(p − n), about the origin.
    """
    directions = pca_pairwise(positive, negative)
    along = reduce(
        directions * mean_difference(positive, negative), "layer d_model -> layer", "sum"
    )
    return directions * torch.where(along < 0, -1, 1)[:, None]


def pca_center(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit top principal direction of all rows minus their common mean.

    Finds the widest spread of the data, which is the contrast only if nothing varies more. CAST's
    "pca_center".
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


def repe_pca(
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
    *,
    seed: int = 0,
    signs: Float[Tensor, " pair"] | None = None,
) -> Float[Tensor, "layer d_model"]:
    """Unit top principal direction of s(p − n) minus their mean, where s reverses half the pairs.

    So that, unlike in `pca_difference`, the centring leaves the mean difference in. `seed` chooses
    the reversed half, hence the order of pairs matters; `signs` (+1, −1) states s outright, as
    RepE's labels do. Signed by most pairs. RepE's PCA reader, arXiv 2310.01405.
    """
    difference = at_least_float32(positive) - at_least_float32(negative)
    if signs is None:
        signs = torch.ones(len(difference))
        order = torch.randperm(len(difference), generator=torch.Generator().manual_seed(seed))
        signs[order[: len(difference) // 2]] = -1
    rows = difference * rearrange(signs.to(difference), "pair -> pair 1 1")
    rows = rows - reduce(rows, "pair layer d_model -> layer d_model", "mean")
    return _principal_direction(rows, positive, negative)


def linear_discriminant(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit Σ⁻¹ d: the mean difference d, less of it where the activations vary anyway.

    Σ is the covariance of each side about its own mean, shrunk after Ledoit and Wolf (2004).
    Signed as d, which it never opposes, Σ being positive definite. Fisher (1936).
    """
    sides = [at_least_float32(side).double() for side in (positive, negative)]
    within = [side - reduce(side, "pair layer d_model -> layer d_model", "mean") for side in sides]
    shift = mean_difference(*sides)
    white = _whitened(torch.cat(within), shift)
    return unit(white).to(torch.promote_types(positive.dtype, torch.float32))


def probe(classifier: Any, *, paired: bool = True) -> Estimator:
    """An estimator from any linear classifier of scikit-learn: its unit weights, as it signs them.

    Fitted to +(p − n)/2 against −(p − n)/2, where all that a pair shares drops out; or, not
    `paired`, to p against n about their common mean. A `random_state` of None becomes 0.
    Swapping the sides mirrors paired rows, which negates the weights of any linear model. Unpaired,
    the classes trade places: the negative comes back only from a classifier that treats them alike
    (no class weights) and is run to convergence.

    >>> from sklearn.svm import LinearSVC
    >>> probe(LinearSVC(C=0.1))(torch.ones(2, 1, 3), torch.zeros(2, 1, 3)).shape
    torch.Size([1, 3])
    """
    from sklearn.base import clone  # slow to import, needed only here

    try:
        seeded = clone(classifier)
    except TypeError as error:
        raise SteerlensError(f"probe({classifier!r}) needs a scikit-learn classifier") from error
    if "random_state" in seeded.get_params() and seeded.random_state is None:
        seeded.set_params(random_state=0)
    name = f"probe({' '.join(repr(seeded).split())}{'' if paired else ', paired=False'})"

    def estimator(
        positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
    ) -> Float[Tensor, "layer d_model"]:
        if paired:
            half = pairwise_centred(positive, negative)
            rows = torch.cat([half, -half])
        else:
            rows = commonly_centred(positive, negative)
        labels = [1] * len(positive) + [-1] * len(negative)
        weights = []
        for layer in rearrange(rows, "row layer d_model -> layer row d_model"):
            fitted = clone(seeded).fit(layer.cpu().double().numpy(), labels)
            found = torch.as_tensor(getattr(fitted, "coef_", ())).reshape(-1)
            if len(found) != rows.shape[2]:
                raise SteerlensError(
                    f"{name} found {len(found)} weights, not the {rows.shape[2]} of a direction; "
                    "needed is a linear classifier with coef_, by itself and not in a pipeline"
                )
            weights.append(found)
        return unit(torch.stack(weights)).to(rows)

    estimator.__name__ = estimator.__qualname__ = name
    return estimator


def logistic_probe(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Unit weights of a logistic regression, without intercept, of +(p − n)/2 against −(p − n)/2.

    L2-regularised with C = 1, as steering-vectors fits it; signed by the regression. For another C:
    `probe(LogisticRegression(C=10, fit_intercept=False))`.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import, needed only here

    return probe(LogisticRegression(fit_intercept=False, max_iter=1000))(positive, negative)


def pairwise_centred(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> Float[Tensor, "row layer d_model"]:
    """(p − n)/2; the mirrored rows −(p − n)/2 add nothing to a principal direction."""
    return (at_least_float32(positive) - at_least_float32(negative)).div_(2)


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


cluster_mean = mean_difference
"""RepE's cluster-mean reader."""

CENTRING: dict[Estimator, Estimator] = {
    pca_center: commonly_centred,
    pca_difference: centred_differences,
}
"""The rows behind an estimator's explained variance; all others use `pairwise_centred`."""

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
"""The names of the estimators, for the command line."""


def explained_variance(
    rows: Float[Tensor, "row layer d_model"], directions: Float[Tensor, "layer d_model"]
) -> Float[Tensor, " layer"]:
    """Share of the centred rows' squared length that lies along each layer's direction."""
    along = einsum(rows, unit(directions.to(rows)), "row layer d_model, layer d_model -> row layer")
    total = reduce(rows.square(), "row layer d_model -> layer", "sum")
    return along.square().sum(dim=0) / total.clamp_min(torch.finfo(total.dtype).tiny)


def _principal_direction(
    rows: Float[Tensor, "row layer d_model"],
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Top eigenvector of the rows' scatter; zero where centring left nothing but rounding."""
    nothing = _is_rounding(rows, positive, negative)[:, None]
    directions = top_eigenvectors(rows).masked_fill(nothing, 0).to(rows.dtype)
    return _pointing_to_positive(directions, positive, negative)


def _whitened(
    rows: Float[Tensor, "row layer d_model"], vectors: Float[Tensor, "layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Σ⁻¹ v, where Σ is the rows' covariance about zero, shrunk after Ledoit and Wolf (2004)."""
    n_rows, _, d_model = rows.shape
    many = n_rows >= d_model
    small = (
        einsum(rows, rows, "row layer d_model, row layer other -> layer d_model other")
        if many
        else einsum(rows, rows, "row layer d_model, other layer d_model -> layer row other")
    )
    squares = reduce(rows.square(), "row layer d_model -> row layer", "sum")
    variance = squares.sum(dim=0) / (n_rows * d_model)
    spread = small.square().sum(dim=(1, 2)) / n_rows**2  # Σ's squared length
    doubt = (squares.square().sum(dim=0) / n_rows - spread) / n_rows
    shrinkage = (doubt / (spread - d_model * variance**2)).nan_to_num(1).clamp(0, 1)
    # invertible even where nothing varies
    floor = torch.where(variance > 0, (shrinkage * variance).maximum(1e-6 * variance), 1)
    scale = (1 - shrinkage) / n_rows
    shrunk = scale[:, None, None] * small + torch.diag_embed(floor[:, None].expand(small.shape[:2]))
    if many:
        return torch.linalg.solve(shrunk, vectors)
    # Woodbury's identity, times `floor`
    along = einsum(rows, vectors, "row layer d_model, layer d_model -> layer row")
    weights = scale[:, None] * torch.linalg.solve(shrunk, along)
    return vectors - einsum(rows, weights, "row layer d_model, layer row -> layer d_model")


def _pointing_to_positive(
    directions: Float[Tensor, "layer d_model"],
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Signed so that most pairs agree; where they tie, so that the mean difference does."""
    votes = sign_votes(directions, positive, negative)
    if (votes == 0).any():
        along = (directions * mean_difference(positive, negative)).sum(dim=1)
        votes = torch.where(votes == 0, along, votes)
    return directions * torch.where(votes < 0, -1, 1)[:, None]


def sign_votes(
    directions: Float[Tensor, "layer d_model"],
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Float[Tensor, " layer"]:
    """How many more pairs agree with each direction's sign than would turn it round."""
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


def require_contrast(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> None:
    """Refuse activations that are not finite, or equal on both sides: no direction is in them."""
    require_finite(positive, negative)
    same = _is_rounding(positive - negative, positive, negative)
    if same.any():
        raise SteerlensError(
            f"positives and negatives are identical in layer row(s) {same.nonzero().tolist()}; "
            "nothing sets them apart: check the pairs, the suffixes and the tokens that are read"
        )


def require_finite(
    positive: Float[Tensor, "pair layer d_model"], negative: Float[Tensor, "pair layer d_model"]
) -> None:
    """Refuse activations that are NaN or infinite."""
    for side, activations in (("positive", positive), ("negative", negative)):
        if not activations.isfinite().all():
            raise SteerlensError(
                f"the {side} activations hold NaN or infinite values; "
                "run the model in float32 or bfloat16, or look for the prompt that overflows"
            )


def _is_rounding(
    rows: Float[Tensor, "row layer d_model"],
    positive: Float[Tensor, "pair layer d_model"],
    negative: Float[Tensor, "pair layer d_model"],
) -> Bool[Tensor, " layer"]:
    """Whether a layer's rows are no more than float32's rounding of the activations they are of."""
    size = torch.maximum(largest(positive), largest(negative))
    return largest(rows) <= ROUNDING * size


def largest(rows: Float[Tensor, "row layer d_model"]) -> Float[Tensor, " layer"]:
    """The largest magnitude of each layer; `abs` would write a copy first."""
    return torch.maximum(rows.amax(dim=2).amax(dim=0), -rows.amin(dim=2).amin(dim=0))
