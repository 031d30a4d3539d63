"""Top eigenvectors of a scatter matrix that is never formed, for all layers at once."""

from collections.abc import Callable, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.numerics import unit

WHOLE = 128
"""Up to this many rows or dimensions, eigenvectors come from the whole matrix."""
LANCZOS_STEPS = 200
LANCZOS_TOLERANCE = 1e-5


def top_eigenvectors(
    rows: Float[Tensor, "row layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """Unit top eigenvector of Σ x xᵀ over the rows x of each layer, of either sign.

    Small problems are solved whole, large ones by Lanczos's method, which needs the rows only for a
    few products with vectors; layers where it does not settle are solved whole.
    """
    n_rows, _, d_model = rows.shape
    if min(n_rows, d_model) <= WHOLE:
        return _by_whole_matrix(rows)

    # Layer by layer: an einsum over all would copy the rows for each product.
    layers = rows.unbind(dim=1)

    def product(vectors: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
        each = zip(layers, vectors.to(rows), strict=True)
        return torch.stack([own.T @ (own @ vector) for own, vector in each]).double()

    ones = rows.new_ones(n_rows)
    near = torch.stack([own.T @ ones for own in layers])

    def whole(layer: int) -> Float[Tensor, " d_model"]:
        return _by_whole_matrix(rows[:, layer : layer + 1])[0]

    return lanczos(product, near, whole, min(LANCZOS_STEPS, n_rows, d_model))


def _by_whole_matrix(
    rows: Float[Tensor, "row layer d_model"],
) -> Float[Tensor, "layer d_model"]:
    """By way of the smaller of Gram and scatter matrix."""
    wide = rows.double()
    n_rows, _, d_model = wide.shape
    if n_rows < d_model:
        gram = einsum(wide, wide, "row layer d_model, other layer d_model -> layer row other")
        weights = torch.linalg.eigh(gram).eigenvectors[..., -1]
        directions = einsum(wide, weights, "row layer d_model, layer row -> layer d_model")
    else:
        scatter = einsum(wide, wide, "row layer d_model, row layer other -> layer d_model other")
        directions = torch.linalg.eigh(scatter).eigenvectors[..., -1]
    return unit(directions)


def lanczos(
    product: Callable[[Float[Tensor, "layer d_model"]], Float[Tensor, "layer d_model"]],
    near: Float[Tensor, "layer d_model"],
    whole: Callable[[int], Float[Tensor, " d_model"]],
    steps: int,
) -> Float[Tensor, "layer d_model"]:
    """Unit top eigenvectors of symmetric matrices known by their products with vectors.

    All layers at once, fully reorthogonalised; a layer for which `steps` do not suffice is left to
    `whole`. Settled when the residual, hence the sine of the angle to the eigenvector times its
    gap, is below `LANCZOS_TOLERANCE` of the gap. Lanczos (1950); Parlett, The Symmetric Eigenvalue
    Problem.
    """
    random = torch.randn(near.shape, generator=torch.Generator().manual_seed(0))
    # Close to the answer, where `near` is, and orthogonal to nothing.
    new = unit(unit(near.double()) + unit(random.to(near).double()))
    basis = new[:, None, :][:, :0]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(1, steps + 1):
        basis = torch.cat([basis, new[:, None]], dim=1)
        image = product(new)
        diagonal.append((image * new).sum(dim=1))
        for _ in range(2):  # once leaves rounding behind
            inside = einsum(basis, image, "layer step d_model, layer d_model -> layer step")
            image = image - einsum(basis, inside, "layer step d_model, layer step -> layer d_model")
        beside.append(image.norm(dim=1))
        new = unit(image)
        if step % 2 and step < steps:
            continue
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside[:-1]))
        residual = beside[-1] * vectors[:, -1, -1].abs()
        gap = values[:, -1] - values[:, -2]
        settled = residual <= LANCZOS_TOLERANCE * gap
        if settled.all():
            break
    found = einsum(basis, vectors[..., -1], "layer step d_model, layer step -> layer d_model")
    directions = unit(found)
    for layer in (~settled).nonzero().flatten().tolist():
        directions[layer] = whole(layer)
    return directions


def _tridiagonal(
    diagonal: Sequence[Float[Tensor, " layer"]], beside: Sequence[Float[Tensor, " layer"]]
) -> Float[Tensor, "layer step step"]:
    matrix = torch.diag_embed(torch.stack(list(diagonal), dim=1))
    if beside:
        off = torch.stack(list(beside), dim=1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return matrix
