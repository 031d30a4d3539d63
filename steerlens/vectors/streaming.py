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
    """How many rows there were, their mean, and their scatter about it, for each layer; float64.

    `a + b` is what all rows together give (Chan, Golub and LeVeque 1979).

    >>> (Moments.of(torch.zeros(1, 1, 2)) + Moments.of(torch.ones(3, 1, 2))).mean
    tensor([[0.7500, 0.7500]], dtype=torch.float64)
    """

    n: int
    mean: Float[Tensor, "layer d_model"]
    scatter: Float[Tensor, "layer d_model other"]

    @classmethod
    def of(cls, rows: Float[Tensor, "row layer d_model"]) -> "Moments":
        wide = rows.double()
        mean = reduce(wide, "row layer d_model -> layer d_model", "mean")
        return cls(len(rows), mean, _squared(wide - mean))

    def __add__(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        apart = other.mean - self.mean
        between = _squared(apart[None]) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), self.scatter + other.scatter + between)

    @property
    def about_zero(self) -> Float[Tensor, "layer d_model other"]:
        """Σ x xᵀ of the rows as they are."""
        return self.scatter + self.n * _squared(self.mean[None])


@dataclass(frozen=True, eq=False)
class ContrastMoments:
    """The moments of what pairs have apart, p − n, and in common, p + n."""

    apart: Moments
    common: Moments | None
    """Only `pca_center` needs it."""
    size: Float[Tensor, " layer"]
    """The largest activation."""

    @classmethod
    def of(
        cls,
        positive: Float[Tensor, "pair layer d_model"],
        negative: Float[Tensor, "pair layer d_model"],
        *,
        common: bool = True,
    ) -> "ContrastMoments":
        sides = positive.double(), negative.double()
        size = torch.maximum(*map(largest, sides))
        both = Moments.of(sides[0] + sides[1]) if common else None
        return cls(Moments.of(sides[0] - sides[1]), both, size)

    def __add__(self, other: "ContrastMoments") -> "ContrastMoments":
        both = self.common + other.common if self.common and other.common else None
        size = torch.maximum(self.size, other.size)
        return ContrastMoments(self.apart + other.apart, both, size)


class Estimate(NamedTuple):
    """A direction for each layer, as far as moments determine it."""

    directions: Float[Tensor, "layer d_model"]
    explained: Float[Tensor, " layer"]
    """Share of the scatter along it, as `explained_variance` has it."""
    certain: bool
    """Whether most pairs are known to agree with its sign; else their votes must be counted."""


def require_streamable(estimator: Estimator) -> None:
    """Refuse estimators that need the pairs themselves, such as probes and discriminants."""
    if estimator not in _SCATTERS:
        known = ", ".join(known.__name__ for known in _SCATTERS)
        raise SteerlensError(
            f"{getattr(estimator, '__name__', estimator)} needs all pairs in memory; "
            f"moments suffice for {known}"
        )


def estimate(estimator: Estimator, moments: ContrastMoments) -> Estimate:
    """What an estimator finds in pairs of which only the moments are left.

    Raises where positives and negatives are equal, and for estimators that need the pairs.
    """
    require_streamable(estimator)
    apart = moments.apart
    spread = (_trace(apart.about_zero) / apart.n).sqrt()
    same = spread <= ROUNDING * moments.size
    if same.any():
        raise SteerlensError(
            f"positives and negatives are identical in layer row(s) {same.nonzero().tolist()}; "
            "nothing sets them apart: check the pairs, the suffixes and the tokens that are read"
        )
    scatter = _SCATTERS[estimator](moments)
    if estimator is mean_difference:
        directions, certain = apart.mean, True
    else:
        directions = _top_eigenvector(scatter, apart.mean)
        along = (directions * apart.mean).sum(dim=1)
        directions = directions * torch.where(along < 0, -1, 1)[:, None]
        # By Cantelli's inequality, fewer than half of the pairs lie beyond zero then.
        variance = _along(apart.scatter, directions) / apart.n
        certain = estimator is pca_uncentred or bool((along.square() > variance).all())
    explained = _along(scatter, unit(directions)) / _trace(scatter)
    return Estimate(directions.float(), explained.float(), certain)


def _principal(moments: ContrastMoments) -> Float[Tensor, "layer d_model other"]:
    return moments.apart.about_zero / 4


def _about_common_mean(moments: ContrastMoments) -> Float[Tensor, "layer d_model other"]:
    """p and n are half of (p + n) ± (p − n)."""
    if moments.common is None:
        raise SteerlensError("pca_center needs the moments of p + n: gather them with common=True")
    return (moments.common.scatter + moments.apart.about_zero) / 2


_SCATTERS: dict[Estimator, Callable[[ContrastMoments], Float[Tensor, "layer d_model other"]]] = {
    mean_difference: _principal,
    pca_pairwise: _principal,
    pca_uncentred: _principal,
    pca_center: _about_common_mean,
    pca_difference: lambda moments: moments.apart.scatter,
}
"""The scatter of the rows that each estimator looks at."""


def _top_eigenvector(
    scatter: Float[Tensor, "layer d_model other"], near: Float[Tensor, "layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    def product(vectors: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
        return einsum(scatter, vectors, "layer d_model other, layer other -> layer d_model")

    def whole(layer: int) -> Float[Tensor, " d_model"]:
        return torch.linalg.eigh(scatter[layer]).eigenvectors[:, -1]

    return lanczos(product, near, whole, min(LANCZOS_STEPS, near.shape[1]))


def _squared(rows: Float[Tensor, "row layer d_model"]) -> Float[Tensor, "layer d_model other"]:
    return einsum(rows, rows, "row layer d_model, row layer other -> layer d_model other")


def _along(
    matrix: Float[Tensor, "layer d_model other"], vectors: Float[Tensor, "layer d_model"]
) -> Float[Tensor, " layer"]:
    return einsum(
        matrix, vectors, vectors, "layer d_model other, layer d_model, layer other -> layer"
    )


def _trace(matrix: Float[Tensor, "layer d_model other"]) -> Float[Tensor, " layer"]:
    return reduce(torch.diagonal(matrix, dim1=1, dim2=2), "layer d_model -> layer", "sum")
