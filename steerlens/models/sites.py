"""Sites: where in a block activations are read and written, and the host's names for them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from steerlens.errors import SteerlensError
from steerlens.models.host import Model, is_hooked

SITES = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "ln1_out": "blocks.{layer}.ln1.hook_normalized",
    "z": "blocks.{layer}.attn.hook_z",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "ln2_out": "blocks.{layer}.ln2.hook_normalized",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
"""Where in a block activations are read and written, in the order of the forward pass."""

FRAMED_SITES = ("ln1_out", "ln2_out", "z")
"""Sites that the host shows in another form than ours: see `site_frame`."""

_OF_BRIDGES = {"ln1_out": "blocks.{layer}.ln1.hook_out", "ln2_out": "blocks.{layer}.ln2.hook_out"}
"""A bridge has hook points after a norm's weight and bias, too."""


def hook_name(model: Model, site: str, layer: int) -> str:
    """The host's name for a site of a layer; refuses what this model does not have."""
    require_site(site)
    resolve_layers(model, [layer])
    names = SITES if is_hooked(model) else SITES | _OF_BRIDGES
    name = names[site].format(layer=layer)
    if name not in model.hook_dict:
        raise SteerlensError(
            f"{model.cfg.model_name} has no {site} (it would be {name!r}); choose another site"
        )
    return name


def require_writable(model: Model | None, site: str) -> None:
    """Refuse to edit what the host lets only some of its readers see."""
    if site != "resid_mid" or (model is not None and is_hooked(model)):
        return
    if model is None:
        raise SteerlensError(
            "resid_mid is written by a HookedTransformer only: its hooks need to know the model; "
            "use hooks(model=model), attach(model) or steerlens.generate"
        )
    raise SteerlensError(
        f"{model.cfg.model_name} is a {type(model).__name__}, where an edit of resid_mid reaches "
        "the MLP but not the stream; write attn_out (to add a vector, it is the same), or resid_pre"
    )


class Frame(NamedTuple):
    """How a site's activation in the host's form becomes ours, and back."""

    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def site_frame(model: Model, site: str, layer: int) -> Frame:
    """What lies between the host's hook point and the site's meaning.

    HookedTransformer hooks a norm's output before its weight and bias are applied; all hosts keep
    the heads of `z` apart, where ours is `[row, pos, head × d_head]`.
    """
    if site == "z":
        heads = model.cfg.n_heads
        return Frame(
            partial(rearrange, pattern="row pos head d_head -> row pos (head d_head)"),
            partial(rearrange, pattern="row pos (head d_head) -> row pos head d_head", head=heads),
        )
    if not is_hooked(model):
        return Frame(_unchanged, _unchanged)
    norm = getattr(model.blocks[layer], site.removesuffix("_out"), None)
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", 0)
    if weight is None:  # folded away, or not a norm's site
        return Frame(_unchanged, _unchanged)
    if (weight == 0).any():
        raise SteerlensError(
            f"{site} of layer {layer} has weights of zero: what is written there cannot be undone "
            "to the point that the host shows; steer resid_pre or resid_mid instead"
        )
    return Frame(lambda shown: shown * weight + bias, lambda ours: (ours - bias) / weight)


def _unchanged(activation: Tensor) -> Tensor:
    return activation


def attention_scores(model: Model | None, layer: int) -> str | None:
    """Where the host shows a layer's attention scores, `[row, head, query, key]`, if it does.

    As many keys as queries stand for a text from its beginning; more, for one that is continued.
    """
    name = f"blocks.{layer}.attn.hook_attn_scores"
    return name if model is None or name in model.hook_dict else None


def site_width(model: Model, site: str) -> int:
    """How many numbers a token has at a site."""
    return model.cfg.n_heads * model.cfg.d_head if site == "z" else model.cfg.d_model


def require_site(site: str) -> None:
    """Refuse what is no site of a block."""
    if site not in SITES:
        raise SteerlensError(f"site {site!r} is unknown; the sites are {', '.join(SITES)}")


def forward_order(site: str, layer: int) -> tuple[int, int]:
    """Sorts sites of layers as the forward pass meets them."""
    return layer, list(SITES).index(site)


def resolve_layers(model: Model, layers: Iterable[int] | None) -> tuple[int, ...]:
    """Increasing layer numbers; None means all, and −1 the last."""
    n_layers = model.cfg.n_layers
    wanted = range(n_layers) if layers is None else list(layers)
    unknown = [layer for layer in wanted if not -n_layers <= layer < n_layers]
    if unknown:
        raise SteerlensError(
            f"layer(s) {unknown} came; {model.cfg.model_name} has layers 0 to {n_layers - 1}"
        )
    if not wanted:
        raise SteerlensError("no layer was given; name at least one")
    return tuple(sorted({layer % n_layers for layer in wanted}))
