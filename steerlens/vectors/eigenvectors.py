"""Top eigenvectors of scatter matrices, which need not be formed, for all layers at once."""

from collections.abc import Callable, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.numerics import unit
from steerlens.shapes import Direction, Directions, PerLayer, Samples

EXACT_SIZE = 128
"""Up to this many samples or dimensions, eigenvectors are computed from the full matrix."""
LANCZOS_STEPS = 200
LANCZOS_TOLERANCE = 1e-5


def top_eigenvectors(samples: Samples) -> Directions:
    """Unit top eigenvector of Σ x xᵀ over the samples x of each layer, of either sign.

    Small problems are solved by `eigh`, large ones by Lanczos's method, which multiplies the
    samples with a few vectors only; layers where it does not converge are solved by `eigh`.

    >>> top_eigenvectors(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])).abs()
    tensor([[1., 0.]], dtype=torch.float64)
    """
    n_samples, _, d_model = samples.shape
    if min(n_samples, d_model) <= EXACT_SIZE:
        return _by_full_matrix(samples)

    # Layer by layer: an einsum over all would copy the samples for each product.
    layers = samples.unbind(dim=1)

    def product(vectors: Directions) -> Directions:
        pairs = zip(layers, vectors.to(samples), strict=True)
        return torch.stack([layer.T @ (layer @ vector) for layer, vector in pairs]).double()

    ones = samples.new_ones(n_samples)
    start = torch.stack([layer.T @ ones for layer in layers])

    def exact(layer: int) -> Direction:
        return _by_full_matrix(samples[:, layer : layer + 1])[0]

    return lanczos(product, start, exact, min(LANCZOS_STEPS, n_samples, d_model))


def _by_full_matrix(samples: Samples) -> Directions:
    """By `eigh` of the Gram or the scatter matrix, whichever is smaller."""
    wide = samples.double()
    n_samples, _, d_model = wide.shape
    if n_samples < d_model:
        gram = einsum(wide, wide, "sample layer d_model, other layer d_model -> layer sample other")
        weights = torch.linalg.eigh(gram).eigenvectors[..., -1]
        directions = einsum(wide, weights, "sample layer d_model, layer sample -> layer d_model")
    else:
        pattern = "sample layer d_model, sample layer other -> layer d_model other"
        scatter = einsum(wide, wide, pattern)
        directions = torch.linalg.eigh(scatter).eigenvectors[..., -1]
    return unit(directions)


def lanczos(
    product: Callable[[Directions], Directions],
    start: Directions,
    exact: Callable[[int], Direction],
    steps: int,
) -> Directions:
    """Unit top eigenvectors of symmetric matrices known by their products with vectors.

    All layers at once, fully reorthogonalised. A layer has converged when the residual, and hence
    the sine of the angle to the eigenvector times its gap, is below `LANCZOS_TOLERANCE` of the gap.
    Lanczos (1950); Parlett, The Symmetric Eigenvalue Problem.

    Args:
        product: Multiplies each layer's matrix with a vector.
        start: Vectors to start from, the closer to the eigenvectors the better.
        exact: The eigenvector of one layer, for those that have not converged.
        steps: Most products per layer.

    >>> matrix = torch.diag(torch.tensor([1.0, 3.0]).double())
    >>> top = lanczos(lambda v: v @ matrix, torch.ones(1, 2), lambda layer: matrix[1], steps=2)
    >>> top.abs().round()
    tensor([[0., 1.]], dtype=torch.float64)
    """
    random = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    # As close to the eigenvector as `start` is, and surely not orthogonal to it.
    new = unit(unit(start.double()) + unit(random.to(start).double()))
    basis = new[:, None, :][:, :0]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    for step in range(1, steps + 1):
        basis = torch.cat([basis, new[:, None]], dim=1)
        rest = product(new)
        diagonal.append((rest * new).sum(dim=1))
        for _ in range(2):  # once leaves rounding behind
            inside = einsum(basis, rest, "layer step d_model, layer d_model -> layer step")
            rest = rest - einsum(basis, inside, "layer step d_model, layer step -> layer d_model")
        off_diagonal.append(rest.norm(dim=1))
        new = unit(rest)
        if step % 2 and step < steps:
            continue
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, off_diagonal[:-1]))
        residual = off_diagonal[-1] * vectors[:, -1, -1].abs()
        gap = values[:, -1] - values[:, -2]
        converged = residual <= LANCZOS_TOLERANCE * gap
        if converged.all():
            break
    top = einsum(basis, vectors[..., -1], "layer step d_model, layer step -> layer d_model")
    directions = unit(top)
    for layer in (~converged).nonzero().flatten().tolist():
        directions[layer] = exact(layer)
    return directions


def _tridiagonal(
    diagonal: Sequence[PerLayer], off_diagonal: Sequence[PerLayer]
) -> Float[Tensor, "layer step step"]:
    matrix = torch.diag_embed(torch.stack(list(diagonal), dim=1))
    if off_diagonal:
        values = torch.stack(list(off_diagonal), dim=1)
        matrix = matrix + torch.diag_embed(values, 1) + torch.diag_embed(values, -1)
    return matrix
