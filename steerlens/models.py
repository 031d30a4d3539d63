"""A loaded host, seen through what we need of it. Nothing else knows which host it is.

TransformerLens has two: HookedTransformer, until version 3, and TransformerBridge, which lets a
Hugging Face model compute.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from inspect import signature
from operator import attrgetter
from threading import RLock
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry
from transformers import Cache as HuggingFaceCache
from transformers import DynamicCache

from steerlens.errors import SteerlensError

try:
    from transformer_lens import HookedTransformer
except ImportError:  # TransformerLens 4 and later
    HookedTransformer = None

Cache: TypeAlias = TransformerLensKeyValueCache | HuggingFaceCache
CacheEntry: TypeAlias = TransformerLensKeyValueCacheEntry


@runtime_checkable
class Model(Protocol):
    """What a HookedTransformer and a TransformerBridge have in common, of what is used here."""

    cfg: Any
    tokenizer: Any

    def __call__(self, *args: Any, **options: Any) -> Any: ...
    def run_with_cache(self, *args: Any, **options: Any) -> Any: ...
    def hooks(self, *args: Any, **options: Any) -> Any: ...
    # Its modules and weights; and `hook_dict`, which a bridge makes anew whenever it is looked at.
    def __getattr__(self, name: str) -> Any: ...


def is_hooked(model: Any) -> bool:
    """Whether it is a HookedTransformer."""
    return HookedTransformer is not None and isinstance(model, HookedTransformer)


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


def attach_hooks(
    model: Model, hooks: Iterable[tuple[str, Callable[..., Any]]]
) -> Callable[[], None]:
    """Add hooks for good; what is returned takes these off again, and no others.

    The host's own `with model.hooks()` takes off whatever was added last.
    """
    added: list[tuple[Any, Any]] = []

    def remove() -> None:
        while added:
            point, handle = added.pop()
            handle.hook.remove()
            point.fwd_hooks = [kept for kept in point.fwd_hooks if kept is not handle]

    try:
        for name, function in hooks:
            point = model.hook_dict[name]
            point.add_hook(function)
            added.append((point, point.fwd_hooks[-1]))
    except BaseException:
        remove()
        raise
    return remove


def exclusive(model: Model) -> AbstractContextManager[object]:
    """Held while a model runs with hooks on it, which every thread would run through.

    A second thread waits; the one that holds it may take it again.
    """
    return _LOCKS.setdefault(model, RLock())


_LOCKS: WeakKeyDictionary[Model, AbstractContextManager[object]] = WeakKeyDictionary()


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


def fingerprint(model: Model) -> str:
    """A short hash of the weights, from samples of each: equal models have equal ones on any host.

    Of a mixture's experts and of norms nothing is looked at: hosts keep them in different forms.
    """
    return digest_of(_weights_of_any_host(model))


def digest_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of named tensors, from 256 numbers of each; no tensor is copied for it."""
    digest = hashlib.sha256()
    for name, weight in weights:
        places = torch.arange(0, weight.numel(), max(1, weight.numel() // 256))[:256]
        sample = weight.detach()[torch.unravel_index(places.to(weight.device), weight.shape)]
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


_COMMON_WEIGHTS = (
    *((f"attn.W_{of}", f"attn._W_{of}") for of in "KV"),  # grouped ones, not repeated, if it can be
    *((f"attn.{name}",) for name in ("W_Q", "W_O", "b_Q", "b_O")),
    *((f"mlp.{name}",) for name in ("W_in", "W_gate", "W_out", "b_in", "b_out")),
)
"""What both hosts have under one name (or the second), in one shape, with equal values."""


def _weights_of_any_host(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield "W_E", model.W_E
    yield "W_U", model.W_U
    for layer, block in enumerate(model.blocks):
        found = 0
        for names in _COMMON_WEIGHTS:
            weights = [weight for name in names if (weight := _weight(block, name)) is not None]
            # A bias that one host lacks is zero on the other.
            if weights and (".W_" in names[0] or weights[-1].any()):
                yield f"{layer}.{names[0]}", weights[-1]
                found += 1
        if not found:
            yield from ((f"{layer}.{name}", own) for name, own in block.state_dict().items())


def _weight(block: Any, path: str) -> Tensor | None:
    try:
        weight = attrgetter(path)(block)
    except Exception:  # a bridge computes it, and raises what it likes where it cannot
        return None
    return weight if isinstance(weight, Tensor) else None


def processing(model: Model) -> str:
    """What loading did to the weights, as far as vectors of one model depend on it.

    "folded": norms have no weights of their own; "centred": a LayerNorm model's stream, whose mean
    it does not read, has the mean taken out.
    """
    kind = str(model.cfg.normalization_type)
    rows = model.W_E[:1024].detach().float()
    done = {
        "folded": kind.endswith("Pre") or getattr(model.cfg, "layer_norm_folding", False),
        # Of random numbers, means are larger by far, and of centred ones by rounding only.
        "centred": kind.startswith("LN") and rows.mean(dim=1).abs().max() < 1e-3 * rows.std(),
    }
    return ", ".join(name for name, holds in done.items() if holds) or "none"


def new_cache(model: Model, batch: int) -> Cache:
    """An empty key-value cache for `batch` rows."""
    if not is_hooked(model):
        return DynamicCache(config=model.original_model.config)
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


def unmasked(
    model: Model, tokens: Int[Tensor, "row pos"], cache: Cache | None = None
) -> dict[str, Any]:
    """Arguments of a forward pass without attention mask, which HookedTransformer insists on else.

    For rows without padding on the left, that continue the cache's text if there is one.
    """
    if not is_hooked(model):
        return {"input": tokens, **_continuing(model, cache)}
    offset = 0 if cache is None else cache[0].past_keys.shape[1]
    resid, shortformer = model.get_residual(model.embed(tokens), offset)
    return {
        "input": resid,
        "start_at_layer": 0,
        "shortformer_pos_embed": shortformer,
        "past_kv_cache": cache,
    }


def all_logits(model: Model, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
    """Logits after every token of rows that are not padded on the left."""
    arguments = unmasked(model, tokens)
    arguments.pop("logits_to_keep", None)
    logits: Tensor = model(**arguments)
    return logits


def next_logits(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    mask: Int[Tensor, "row text"],
    cache: Cache | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Logits after the last token of each row; only that position is un-embedded.

    `mask` tells padding from text in `tokens` and all that the cache holds before them.
    """
    if not is_hooked(model):
        return model(tokens, attention_mask=mask, **_continuing(model, cache))[:, -1]
    new = mask[:, -tokens.shape[1] :]  # the cache remembers the rest
    resid = model(tokens, attention_mask=new, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers)
    last = resid[:, -1:]
    if model.cfg.normalization_type is not None:
        last = model.ln_final(last)
    logits = model.unembed(last)[:, 0]
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap and cap > 0 else logits


def _continuing(model: Model, cache: Cache | None) -> dict[str, Any]:
    """A bridge's options: the text before, and logits of the last position alone, if it can."""
    can_cut = "logits_to_keep" in signature(model.original_model.forward).parameters
    return {
        "past_key_values": cache,
        "use_cache": cache is not None,
        **({"logits_to_keep": 1} if can_cut else {}),
    }
