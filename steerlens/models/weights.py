"""The weights and biases that a steering can be folded into."""

from typing import NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from steerlens.errors import SteerlensError
from steerlens.models.host import Model, is_hooked
from steerlens.models.sites import hook_name


class SiteBias(NamedTuple):
    """Adding `v @ weight` to `bias` adds v at a site; without a weight, v itself is added."""

    bias: Parameter
    weight: Float[Tensor, "site ..."] | None = None


def site_biases(model: Model, site: str, layer: int) -> list[SiteBias]:
    """The biases that together shift a site by a constant, independently of the text.

    Refuses sites where no bias does so exactly. At the first block's input the embedding takes the
    place of a bias: all its rows are shifted.

    >>> len(site_biases(load_model(), "attn_out", 2))
    1
    """
    require_own_weights(model)
    hook_name(model, site, layer)
    block, cfg = model.blocks[layer], model.cfg
    if site in ("ln1_out", "ln2_out"):
        return _norm_biases(model, site, layer)
    if site == "z":
        weight = rearrange(block.attn.W_O.detach(), "head d_head d_model -> (head d_head) d_model")
        return [SiteBias(block.attn.b_O, weight)]
    if site == "resid_pre" and layer == 0:
        return [SiteBias(model.embed.ln.b if cfg.post_embedding_ln else model.embed.W_E)]
    require_free_writers(model, f"a bias for {site}")
    if site == "resid_pre":
        return site_biases(model, "resid_post", layer - 1)
    if site in ("attn_out", "resid_mid") or (site == "resid_post" and cfg.attn_only):
        return [SiteBias(block.attn.b_O)]
    return [SiteBias(_parameter(model, layer, "mlp", "b_out", site))]


def _norm_biases(model: Model, site: str, layer: int) -> list[SiteBias]:
    """The biases of all maps that read the norm's output: `(x + v) W + b = x W + (b + v W)`."""
    if model.cfg.original_architecture in POST_NORM_ARCHITECTURES:
        raise SteerlensError(
            f"{model.cfg.model_name} puts its norms after attention and MLP: nothing reads {site} "
            "but the stream itself, and no bias follows it; steer by hooks instead"
        )
    block = model.blocks[layer]
    if site == "ln1_out":
        kv = "_" if hasattr(block.attn, "_W_K") else ""  # grouped-query weights, not expanded
        names = (("W_Q", "b_Q"), (f"{kv}W_K", f"{kv}b_K"), (f"{kv}W_V", f"{kv}b_V"))
        return [
            SiteBias(getattr(block.attn, bias), getattr(block.attn, weight).detach())
            for weight, bias in names
        ]
    norm_bias = getattr(block.ln2, "b", None)
    if norm_bias is not None and model.cfg.gated_mlp:
        return [SiteBias(norm_bias)]
    if model.cfg.gated_mlp:
        raise SteerlensError(
            f"{model.cfg.model_name}'s MLP is gated: W_gate and W_in both read ln2_out, and "
            "neither has a bias before the product (b_in comes after it), nor has the norm; steer "
            "by hooks instead"
        )
    bias = _parameter(model, layer, "mlp", "b_in", site)
    return [SiteBias(bias, block.mlp.W_in.detach())]


def stream_writers(model: Model) -> list[Parameter]:
    """All weights whose rows are added up to the residual stream; `d_model` is their last axis.

    >>> {weight.shape[-1] for weight in stream_writers(load_model())}
    {192}
    """
    require_own_weights(model)
    require_free_writers(model, "a change of all writers")
    if model.cfg.post_embedding_ln:
        raise SteerlensError(
            f"{model.cfg.model_name} normalises its embedding, so that the stream does not begin "
            "as a sum of rows of a weight; steer by hooks instead"
        )
    writers = [model.embed.W_E]
    if model.cfg.positional_embedding_type == "standard":  # others do not write it to the stream
        writers.append(model.pos_embed.W_pos)
    for layer, block in enumerate(model.blocks):
        writers += [block.attn.W_O, block.attn.b_O]
        if not model.cfg.attn_only:
            writers += [
                _parameter(model, layer, "mlp", name, "mlp_out") for name in ("W_out", "b_out")
            ]
    return writers


def require_own_weights(model: Model) -> None:
    """Refuse hosts whose weights are shared, or stored in a form that cannot be edited."""
    if not is_hooked(model):
        raise SteerlensError(
            f"got a {type(model).__name__}; expected a HookedTransformer, which has a bias "
            "everywhere and shares no weight: steer this model by hooks"
        )
    if model.cfg.load_in_4bit:
        raise SteerlensError(
            f"{model.cfg.model_name}'s weights are quantised to 4 bits and cannot be edited; load "
            "it in full precision"
        )


def require_free_writers(model: Model, what: str) -> None:
    """Refuse models that normalise the outputs of attention and MLP before they are added."""
    after = model.cfg.use_normalization_before_and_after
    if after or model.cfg.original_architecture in POST_NORM_ARCHITECTURES:
        raise SteerlensError(
            f"{what} was asked for, but {model.cfg.model_name} normalises what its attention and "
            "MLP write before it enters the stream, and would normalise the change with it; steer "
            "by hooks instead"
        )


def _parameter(model: Model, layer: int, part: str, name: str, site: str) -> Parameter:
    """A parameter of a block's attention or MLP; raises if this model has none."""
    parameter = getattr(getattr(model.blocks[layer], part, None), name, None)
    if not isinstance(parameter, Parameter):
        raise SteerlensError(
            f"{model.cfg.model_name} has no {part}.{name} at layer {layer} "
            f"(a mixture of experts has none, nor has a model without {part}), by which {site} "
            "could be changed; steer by hooks instead"
        )
    return parameter
