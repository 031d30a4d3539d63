"""Statistics of a contrast that merge exactly, for more pairs than memory holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.numerics import unit
from steerlens.shapes import Direction, Directions, PerLayer, Side
from steerlens.vectors.eigenvectors import LANCZOS_STEPS, lanczos
from steerlens.vectors.estimators import (
    ROUNDING,
    Estimator,
    largest,
    mean_difference,
    pca_center,
    pca_difference,
    pca_pairwise,
    pca_uncentred,
)


@dataclass(frozen=True, eq=False)
class Moments:
    """Number of samples, their mean, and the scatter about it, for each layer; float64.

    `a + b` are the moments of all samples together (Chan, Golub and LeVeque 1979).

    >>> (Moments.of(torch.zeros(1, 1, 2)) + Moments.of(torch.ones(3, 1, 2))).mean
    tensor([[0.7500, 0.7500]], dtype=torch.float64)
    """

    n: int
    mean: Directions
    scatter: Float[Tensor, "layer d_model other"]

    @classmethod
    def of(cls, samples: Float[Tensor, "sample layer d_model"]) -> "Moments":
        """The moments of some samples."""
        wide = samples.double()
        mean = reduce(wide, "sample layer d_model -> layer d_model", "mean")
        return cls(len(samples), mean, _squared(wide - mean))

    def __add__(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        shift = other.mean - self.mean
        between = _squared(shift[None]) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), self.scatter + other.scatter + between)

    @property
    def about_zero(self) -> Float[Tensor, "layer d_model other"]:
        """Σ x xᵀ, the scatter about zero."""
        return self.scatter + self.n * _squared(self.mean[None])


@dataclass(frozen=True, eq=False)
class ContrastMoments:
    """The moments of the pairs' differences, p − n, and sums, p + n."""

    difference: Moments
    sum: Moments | None
    """None unless gathered: only `pca_center` needs it."""
    size: PerLayer
    """The largest activation of either side."""

    @classmethod
    def of(cls, positive: Side, negative: Side, *, with_sum: bool = True) -> "ContrastMoments":
        """The moments of some pairs; `with_sum` gathers those of p + n, too."""
        p, n = positive.double(), negative.double()
        size = torch.maximum(largest(p), largest(n))
        return cls(Moments.of(p - n), Moments.of(p + n) if with_sum else None, size)

    def __add__(self, other: "ContrastMoments") -> "ContrastMoments":
        total = self.sum + other.sum if self.sum and other.sum else None
        size = torch.maximum(self.size, other.size)
        return ContrastMoments(self.difference + other.difference, total, size)


class Estimate(NamedTuple):
    """A direction for each layer, as far as moments determine it."""

    directions: Directions
    explained: PerLayer
    """Share of the scatter along the direction, as in `explained_variance`."""
    sign_is_certain: bool
    """Whether most pairs are known to agree with the sign; else their votes must be counted."""


def require_streamable(estimator: Estimator) -> None:
    """Refuse estimators that need the pairs themselves, such as probes and discriminants."""
    if estimator not in _SCATTERS:
        known = ", ".join(known.__name__ for known in _SCATTERS)
        raise SteerlensError(
            f"{getattr(estimator, '__name__', estimator)} needs all pairs in memory; moments "
            f"suffice for {known}: use one of them, or leave pairs_at_once out"
        )


def estimate(estimator: Estimator, moments: ContrastMoments) -> Estimate:
    """The directions that an estimator gives for the pairs that the moments were gathered from.

    Raises:
        SteerlensError: If positives and negatives are identical at a layer, or the estimator needs
            the pairs themselves.

    >>> pairs = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]]), torch.zeros(2, 1, 2)
    >>> estimate(mean_difference, ContrastMoments.of(*pairs)).directions
    tensor([[2., 0.]])
    """
    require_streamable(estimator)
    difference = moments.difference
    spread = (_trace(difference.about_zero) / difference.n).sqrt()
    same = spread <= ROUNDING * moments.size
    if same.any():
        raise SteerlensError(
            f"positives and negatives are identical in layer row(s) {same.nonzero().tolist()}; "
            "expected a contrast: check the pairs, the suffixes and the tokens that are read"
        )
    scatter = _SCATTERS[estimator](moments)
    if estimator is mean_difference:
        directions, sign_is_certain = difference.mean, True
    else:
        directions = _top_eigenvector(scatter, difference.mean)
        along = (directions * difference.mean).sum(dim=1)
        directions = directions * torch.where(along < 0, -1, 1)[:, None]
        # If mean² > variance, fewer than half of the pairs are negative (Cantelli's inequality).
        variance = _along(difference.scatter, directions) / difference.n
        sign_is_certain = estimator is pca_uncentred or bool((along.square() > variance).all())
    explained = _along(scatter, unit(directions)) / _trace(scatter)
    return Estimate(directions.float(), explained.float(), sign_is_certain)


def _principal(moments: ContrastMoments) -> Float[Tensor, "layer d_model other"]:
    return moments.difference.about_zero / 4


def _about_common_mean(moments: ContrastMoments) -> Float[Tensor, "layer d_model other"]:
    """p and n are half of (p + n) ± (p − n)."""
    if moments.sum is None:
        raise SteerlensError(
            "got moments without those of p + n, which pca_center needs; gather them with "
            "with_sum=True"
        )
    return (moments.sum.scatter + moments.difference.about_zero) / 2


_SCATTERS: dict[Estimator, Callable[[ContrastMoments], Float[Tensor, "layer d_model other"]]] = {
    mean_difference: _principal,
    pca_pairwise: _principal,
    pca_uncentred: _principal,
    pca_center: _about_common_mean,
    pca_difference: lambda moments: moments.difference.scatter,
}
"""The scatter whose leading eigenvector each estimator takes."""


def _top_eigenvector(
    scatter: Float[Tensor, "layer d_model other"], start: Directions
) -> Directions:
    def product(vectors: Directions) -> Directions:
        return einsum(scatter, vectors, "layer d_model other, layer other -> layer d_model")

    def exact(layer: int) -> Direction:
        return torch.linalg.eigh(scatter[layer]).eigenvectors[:, -1]

    return lanczos(product, start, exact, min(LANCZOS_STEPS, start.shape[1]))


def _squared(
    samples: Float[Tensor, "sample layer d_model"],
) -> Float[Tensor, "layer d_model other"]:
    pattern = "sample layer d_model, sample layer other -> layer d_model other"
    return einsum(samples, samples, pattern)


def _along(matrix: Float[Tensor, "layer d_model other"], vectors: Directions) -> PerLayer:
    return einsum(
        matrix, vectors, vectors, "layer d_model other, layer d_model, layer other -> layer"
    )


def _trace(matrix: Float[Tensor, "layer d_model other"]) -> PerLayer:
    return reduce(torch.diagonal(matrix, dim1=1, dim2=2), "layer d_model -> layer", "sum")
