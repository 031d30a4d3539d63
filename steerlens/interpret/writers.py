"""Which heads and MLPs write along a direction, on prompts or by their weights."""

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
from steerlens.models.tokenizing import Readable, as_prompts
from steerlens.models.weights import require_free_writers
from steerlens.shapes import Direction
from steerlens.vectors.vector import SteeringVector


class Writers(NamedTuple):
    """How much each head and MLP up to a layer writes along that layer's direction."""

    layer: int
    """The layer of the direction; rows are blocks 0 to this one."""
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
    """The mean projection of each head's and MLP's output on a layer's unit direction.

    In units of the stream. Together with those of the embedding and the biases they add up to the
    mean projection of the stream itself. To contrast two sets of prompts, subtract their results.

    Args:
        model: The model that the vector was extracted from.
        vector: A vector read at resid_post.
        layer: The layer of the direction.
        prompts: Texts, chats or token ids to average over.
        tokens: Which tokens of a prompt are averaged, as in `extract`.
        chat: Whether to apply the chat template; None: if the model has one.
        progress: Show a progress bar.

    >>> v = SteeringVector(torch.ones(1, 192), layers=(3,))
    >>> mean_writers(load_model(), v, 3, ["Hi there."]).heads.shape
    torch.Size([4, 6])
    """
    prompts = as_prompts(prompts)
    unit = _written_direction(model, vector, layer)
    blocks = range(layer + 1)

    def mean(site: str) -> Float[Tensor, "layer site_width"]:
        outputs = read_residual(
            model, prompts, blocks, tokens=tokens, site=site, chat=chat, progress=progress
        )
        return reduce(outputs, "prompt layer site_width -> layer site_width", "mean")

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
    """Share of each head's and MLP's output weights along a layer's direction; needs no prompts.

    ‖W d‖² / ‖W‖² for the unit direction d: the share of its output that a head would write along d
    if its inputs were noise. The expected share of a random direction is 1 / d_model.

    Args:
        model: The model that the vector was extracted from.
        vector: A vector read at resid_post.
        layer: The layer of the direction.

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


def _written_direction(model: Model, vector: SteeringVector, layer: int) -> Direction:
    """The unit direction at a layer, to whose stream all heads and MLPs so far have written."""
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
