"""Which heads and MLPs write along a direction."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.provenance import check_provenance
from steerlens.activations.reading import read_residual
from steerlens.activations.selection import Tokens
from steerlens.errors import SteerlensError
from steerlens.models.host import Model
from steerlens.models.tokenizing import Readable
from steerlens.models.weights import require_free_writers
from steerlens.vectors.vector import SteeringVector


class Writers(NamedTuple):
    """How much each head and MLP of the blocks below writes along one layer's direction."""

    layer: int
    """The layer of the direction; the rows are the blocks 0 to this one."""
    heads: Float[Tensor, "layer head"]
    mlps: Float[Tensor, " layer"]
    measure: str
    """What the numbers are, with their unit."""


def mean_writers(
    model: Model,
    vector: SteeringVector,
    layer: int,
    prompts: Sequence[Readable],
    *,
    tokens: Tokens = "last",
    chat: bool | None = None,
    progress: bool = True,
) -> Writers:
    """What each head and MLP writes along a layer's direction, on average over prompts.

    Signed lengths in units of the stream. With the embedding's and the biases' they add up to the
    stream's own mean projection. Of two kinds of prompts, compare `.heads`.

    >>> v = SteeringVector(torch.ones(1, 192), layers=(3,))
    >>> mean_writers(load_model(), v, 3, ["Hi there."]).heads.shape
    torch.Size([4, 6])
    """
    unit = _written_direction(model, vector, layer)
    blocks = range(layer + 1)

    def mean(site: str) -> Float[Tensor, "layer site_width"]:
        read = read_residual(
            model, prompts, blocks, tokens=tokens, site=site, chat=chat, progress=progress
        )
        return reduce(read, "prompt layer site_width -> layer site_width", "mean")

    z = rearrange(mean("z"), "layer (head d_head) -> layer head d_head", head=model.cfg.n_heads)
    along = einsum(
        _output_weights(model, layer),
        unit,
        "layer head d_head d_model, d_model -> layer head d_head",
    )
    mlps = torch.zeros(layer + 1)
    if not model.cfg.attn_only:
        mlps = einsum(mean("mlp_out"), unit, "layer d_model, d_model -> layer").float()
    heads = einsum(z, along.to(z), "layer head d_head, layer head d_head -> layer head").float()
    return Writers(layer, heads, mlps, f"mean over {len(prompts)} prompts, in units of the stream")


def weight_writers(model: Model, vector: SteeringVector, layer: int) -> Writers:
    """Share of each head's and MLP's output weights that lies along a layer's direction.

    ‖W d‖² / ‖W‖² for the unit direction d: what share of its output a head would write along d if
    its inputs were noise. By chance it is 1 / d_model. Needs no prompts.

    >>> weight_writers(load_model(), SteeringVector(torch.ones(1, 192), layers=(3,)), 3).mlps.shape
    torch.Size([4])
    """
    unit = _written_direction(model, vector, layer)

    def share(weights: Float[Tensor, "part d_in d_model"]) -> Float[Tensor, " part"]:
        along = einsum(weights, unit, "part d_in d_model, d_model -> part d_in")
        total = reduce(weights.square(), "part d_in d_model -> part", "sum")
        return reduce(along.square(), "part d_in -> part", "sum") / total

    heads = torch.stack([share(block) for block in _output_weights(model, layer)])
    mlps = torch.zeros(layer + 1)
    if not model.cfg.attn_only:
        blocks = (model.blocks[index].mlp.W_out for index in range(layer + 1))
        mlps = torch.cat([share(weight.detach().float().cpu()[None]) for weight in blocks])
    return Writers(layer, heads, mlps, "share of the output weights, ‖W d‖² / ‖W‖²")


def _written_direction(
    model: Model, vector: SteeringVector, layer: int
) -> Float[Tensor, " d_model"]:
    """The unit direction, of a site that all heads and MLPs up to the layer have written to."""
    require_free_writers(model, "who writes a direction")
    if vector.site != "resid_post":
        raise SteerlensError(
            f"got {vector}, read at {vector.site}; expected resid_post, to which all heads and "
            "MLPs up to that layer have written"
        )
    check_provenance(model, vector)
    return vector.at([layer]).normalized().directions[0]


def _output_weights(model: Model, last: int) -> Float[Tensor, "layer head d_head d_model"]:
    blocks = (model.blocks[index].attn.W_O for index in range(last + 1))
    return torch.stack([weight.detach().float().cpu() for weight in blocks])
