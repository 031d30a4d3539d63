"""Sites: where in a block activations are read and written, and the host's names for them."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from steerlens.errors import SteerlensError, short_repr
from steerlens.layer_text import as_layers
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
"""Site → the host's hook name, in the order of the forward pass."""

FRAMED_SITES = ("ln1_out", "ln2_out", "z")
"""Sites that `site_frame` converts from the host's form."""

_OF_BRIDGES = {"ln1_out": "blocks.{layer}.ln1.hook_out", "ln2_out": "blocks.{layer}.ln2.hook_out"}
"""On a bridge: its hook points after the norms' weights and biases."""


def hook_name(model: Model, site: str, layer: int) -> str:
    """The host's name for a site of a layer; raises if this model has none.

    >>> hook_name(load_model(), "resid_post", 3)
    'blocks.3.hook_resid_post'
    """
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
    """Refuse to edit a site where the host passes an edit to only some of its readers."""
    if site != "resid_mid" or (model is not None and is_hooked(model)):
        return
    if model is None:
        raise SteerlensError(
            "resid_mid can be edited only on a HookedTransformer, so its hooks need the model; use "
            "hooks(model=model), attach(model) or steerlens.generate"
        )
    raise SteerlensError(
        f"{model.cfg.model_name} is a {type(model).__name__}, where an edit of resid_mid reaches "
        "the MLP but not the stream; edit attn_out (the same, for adding a vector), or resid_pre"
    )


class Frame(NamedTuple):
    """Conversion of a site's activation from the host's form to `[batch, pos, width]`, and back."""

    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def site_frame(model: Model, site: str, layer: int) -> Frame:
    """The conversion between the host's hook point and a site.

    HookedTransformer hooks a norm's output before its weight and bias are applied; `z` has an axis
    of heads on all hosts, which is flattened to `[batch, pos, head × d_head]`.
    """
    if site == "z":
        heads = model.cfg.n_heads
        return Frame(
            partial(rearrange, pattern="batch pos head d_head -> batch pos (head d_head)"),
            partial(
                rearrange, pattern="batch pos (head d_head) -> batch pos head d_head", head=heads
            ),
        )
    if not is_hooked(model):
        return Frame(_unchanged, _unchanged)
    norm = getattr(model.blocks[layer], site.removesuffix("_out"), None)
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", 0)
    if weight is None:  # folded away, or not a norm's site
        return Frame(_unchanged, _unchanged)
    if (weight == 0).any():
        raise SteerlensError(
            f"{site} of layer {layer} has weights of zero, so an edit there cannot be converted to "
            "the host's hook point; steer resid_pre or resid_mid instead"
        )
    return Frame(lambda normed: normed * weight + bias, lambda output: (output - bias) / weight)


def _unchanged(activation: Tensor) -> Tensor:
    return activation


def attention_scores(model: Model | None, layer: int) -> str | None:
    """The hook name of a layer's attention scores, `[batch, head, query, key]`, if the host has it.

    There are as many keys as queries at the beginning of a text, and more when it is continued.
    """
    name = f"blocks.{layer}.attn.hook_attn_scores"
    return name if model is None or name in model.hook_dict else None


def site_width(model: Model, site: str) -> int:
    """The width of a site's activations: d_model, or head × d_head at `z`.

    >>> site_width(load_model(), "resid_post")
    192
    """
    return model.cfg.n_heads * model.cfg.d_head if site == "z" else model.cfg.d_model


def require_site(site: str) -> None:
    """Refuse an unknown site."""
    if site not in SITES:
        raise SteerlensError(
            f"site {short_repr(site)} is unknown; the sites are {', '.join(SITES)}"
        )


def forward_order(site: str, layer: int) -> tuple[int, int]:
    """A sort key: the order of a layer's sites in the forward pass."""
    return layer, list(SITES).index(site)


def resolve_layers(model: Model, layers: Iterable[int] | None) -> tuple[int, ...]:
    """Increasing layer numbers; None stands for all, and −1 for the last.

    >>> resolve_layers(load_model(), [-1, 2])
    (2, 5)
    """
    n_layers = model.cfg.n_layers
    wanted = list(range(n_layers)) if layers is None else as_layers(layers)
    unknown = [layer for layer in wanted if not -n_layers <= layer < n_layers]
    if unknown:
        raise SteerlensError(
            f"got layer(s) {unknown}; expected layers 0 to {n_layers - 1} of {model.cfg.model_name}"
        )
    if not wanted:
        raise SteerlensError("got no layers; expected at least one, or None for all")
    return tuple(sorted({layer % n_layers for layer in wanted}))
